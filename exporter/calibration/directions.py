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
        """Rows [groups, rows, channels * P] along the directions, shape [groups, rows, ``columns``]."""
        groups, channels, positions, _ = self.basis.shape
        whole = inputs.reshape(groups, -1, channels, positions).transpose(0, 2, 1, 3)
        along = (whole @ self.basis.astype(np.float32)).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(along).reshape(groups, -1, self.columns)

    def weights(self, whole: Matrix) -> Matrix:
        """Weights [groups, channels * P, outputs] along the directions, shape [groups, ``columns``, outputs]."""
        groups, channels, positions, _ = self.basis.shape
        split = whole.reshape(groups, channels, positions, -1)
        return np.asarray(self.basis.swapaxes(2, 3) @ split).reshape(groups, self.columns, -1)

    def back(self, weights: Matrix) -> Matrix:
        """The weights [groups, channels * P, outputs] that act as these along the directions do."""
        groups, channels, positions, count = self.basis.shape
        split = weights.reshape(groups, channels, count, -1)
        return np.asarray(self.basis @ split).reshape(groups, channels * positions, -1)


def find_directions(weights: Matrix, positions: int) -> Directions | None:
    """The strongest directions of a kernel's weights; None where all columns are to be kept.

    Args:
        weights: shape [groups, channels * P, outputs].
        positions: P.
    """
    groups, columns, outputs = weights.shape
    channels = columns // positions
    count = max(1, WIDE // channels)
    if columns <= WIDE or count >= positions:
        return None
    split = weights.reshape(groups, channels, positions, outputs)
    left, _, _ = np.linalg.svd(split @ split.swapaxes(2, 3))  # the square has the same directions
    return Directions(left[..., :count])
