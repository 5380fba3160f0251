"""A wide kernel seen through few directions: what choosing units needs of it, at a fraction of the columns.

A channel that a kernel reads at P positions has P columns, and the work of choosing grows with the cube of the columns.
Of the P directions that the channel's weights take, the few strongest carry most of what the channel brings (a singular
value decomposition of its weights, as in Denton et al., "Exploiting linear structure within convolutional networks",
2014). They also ask for fewer rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.calibration.readers import Matrix, Rows

WIDE = 1024
"""Columns up to which all are kept."""


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions of every channel, strongest first.

    Attributes:
        basis: shape [groups, channels, P, directions].
    """

    basis: Matrix

    @property
    def columns(self) -> int:
        """Columns of a group that are left."""
        return int(self.basis.shape[1] * self.basis.shape[3])

    def rows(self, inputs: Rows) -> Rows:
        """Rows [groups, rows, P * channels] along the directions, shape [groups, rows, ``columns``]."""
        groups, channels, positions, count = self.basis.shape
        whole = inputs.reshape(groups, -1, positions, channels)
        basis = np.ascontiguousarray(self.basis.transpose(3, 0, 2, 1), np.float32)
        along = [np.einsum("grpc,gpc->grc", whole, basis[k]) for k in range(count)]
        return np.stack(along, 2).reshape(groups, -1, self.columns)

    def weights(self, whole: Matrix) -> Matrix:
        """Weights [groups, P * channels, outputs] along the directions, shape [groups, ``columns``, outputs]."""
        groups, channels, positions, _ = self.basis.shape
        split = whole.reshape(groups, positions, channels, -1).swapaxes(1, 2)
        along = self.basis.swapaxes(2, 3) @ split
        return np.asarray(along.swapaxes(1, 2)).reshape(groups, self.columns, -1)

    def back(self, weights: Matrix) -> Matrix:
        """The weights [groups, P * channels, outputs] that act as these along the directions do."""
        groups, channels, positions, count = self.basis.shape
        split = weights.reshape(groups, count, channels, -1).swapaxes(1, 2)
        return np.asarray((self.basis @ split).swapaxes(1, 2)).reshape(groups, positions * channels, -1)


def find_directions(weights: Matrix, positions: int) -> Directions | None:
    """The strongest directions of a kernel's weights; None where all columns are to be kept.

    Args:
        weights: shape [groups, P * channels, outputs].
        positions: P.
    """
    groups, columns, outputs = weights.shape
    count = directions_for(columns, positions)
    if count == positions:
        return None
    split = weights.reshape(groups, positions, columns // positions, outputs).swapaxes(1, 2)
    left, _, _ = np.linalg.svd(split @ split.swapaxes(2, 3))  # the square has the same directions
    return Directions(left[..., :count])


def directions_for(columns: int, positions: int) -> int:
    """How many directions of a kernel are seen: all ``positions`` where the columns are few enough."""
    return positions if columns <= WIDE else min(max(1, WIDE // (columns // positions)), positions)
