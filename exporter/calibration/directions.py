"""A wide kernel seen through few directions: what choosing units needs of it, at a fraction of the columns.

A channel that a kernel reads at P positions has P columns, and so has one whose P positions were flattened before a
dense layer; the work of choosing grows with the cube of the columns.
Of the P directions that the channel's weights take, the few strongest carry most of what the channel brings (a singular
value decomposition of its weights, as in Denton et al., "Exploiting linear structure within convolutional networks",
2014). They also ask for fewer rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.readers import Matrix, Rows

Values = TypeVar("Values", Matrix, Rows)

WIDE = 1024
"""Columns up to which all are kept."""


@dataclass(frozen=True)
class Layout:
    """How the columns of a layer lie.

    Attributes:
        positions: P, how often it sees every channel.
        order: the columns in the order of a kernel's, all channels at a position and then all at the next; shape
            (P * channels,). None where they are in that order.
    """

    positions: int = 1
    order: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions of every channel, strongest first.

    Attributes:
        basis: shape [groups, channels, P, directions].
        order: as in ``Layout``.
    """

    basis: Matrix
    order: NDArray[np.int64] | None = None

    @property
    def columns(self) -> int:
        """Columns of a group that are left."""
        return int(self.basis.shape[1] * self.basis.shape[3])

    def rows(self, inputs: Rows) -> Rows:
        """Rows [groups, rows, P * channels] along the directions, shape [groups, rows, ``columns``]."""
        groups, channels, positions, count = self.basis.shape
        whole = self._ordered(inputs, 2).reshape(groups, -1, positions, channels)
        basis = np.ascontiguousarray(self.basis.transpose(3, 0, 2, 1), np.float32)
        along = [np.einsum("grpc,gpc->grc", whole, basis[k]) for k in range(count)]
        return np.stack(along, 2).reshape(groups, -1, self.columns)

    def weights(self, whole: Matrix) -> Matrix:
        """Weights [groups, P * channels, outputs] along the directions, shape [groups, ``columns``, outputs]."""
        groups, channels, positions, _ = self.basis.shape
        split = self._ordered(whole, 1).reshape(groups, positions, channels, -1).swapaxes(1, 2)
        along = self.basis.swapaxes(2, 3) @ split
        return np.asarray(along.swapaxes(1, 2)).reshape(groups, self.columns, -1)

    def back(self, weights: Matrix) -> Matrix:
        """The weights [groups, P * channels, outputs] that act as these along the directions do."""
        groups, channels, positions, count = self.basis.shape
        split = weights.reshape(groups, count, channels, -1).swapaxes(1, 2)
        found = np.asarray((self.basis @ split).swapaxes(1, 2)).reshape(groups, positions * channels, -1)
        if self.order is None:
            return found
        result = np.empty_like(found)
        result[:, self.order] = found
        return result

    def _ordered(self, values: Values, axis: int) -> Values:
        return values if self.order is None else values.take(self.order, axis)


def find_directions(weights: Matrix, layout: Layout) -> Directions | None:
    """The strongest directions of a kernel's weights; None where all columns are to be kept.

    Args:
        weights: shape [groups, P * channels, outputs].
        layout: of the columns.
    """
    groups, columns, outputs = weights.shape
    count, positions = directions_for(columns, layout), layout.positions
    if count == positions:
        return None
    if layout.order is not None:
        weights = weights[:, layout.order]
    split = weights.reshape(groups, positions, columns // positions, outputs).swapaxes(1, 2)
    left, _, _ = np.linalg.svd(split @ split.swapaxes(2, 3))  # the square has the same directions
    return Directions(left[..., :count], layout.order)


def directions_for(columns: int, layout: Layout) -> int:
    """How many directions of a channel are seen: all its positions where the columns are few enough."""
    positions = layout.positions
    return positions if columns <= WIDE else min(max(1, WIDE // (columns // positions)), positions)
