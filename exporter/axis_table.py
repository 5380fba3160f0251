"""All axes of an analysis side by side: what is asked of every axis is asked once of one long array.

Tensors that hand on their slots share one array of them, so most arrays are the axes of several tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.partitions import different
from exporter.slots import Axis, Fixed, Ids
from exporter.solve import Solution

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AxisTable:
    """Axes that have slots, and the different arrays of these one after the other.

    Attributes:
        keys: (key of the tensor, axis) of each axis, and the number of its array.
        arrays: slots, every array once.
        starts: where each array begins in ``slots``, shape (arrays + 1,); the last is the end.
        slots: the arrays one after the other, shape (positions,).
        owner: number of the array of every position, shape (positions,).
    """

    keys: list[tuple[tuple[Any, ...], int, int]]
    arrays: list[Ids]
    starts: Ids
    slots: Ids
    owner: Ids

    def all(self, flags: Mask) -> Mask:
        """Say for every array whether a flag is set at all of its positions; shape (arrays,)."""
        return ~self.any(~flags)

    def any(self, flags: Mask) -> Mask:
        """Say for every array whether a flag is set at one of its positions; shape (arrays,)."""
        found = np.zeros(len(self.arrays), np.bool_)
        filled = np.flatnonzero(np.diff(self.starts))
        if filled.size:
            found[filled] = np.logical_or.reduceat(flags, self.starts[filled])
        return found

    def uniform(self, rows: Ids) -> Mask:
        """Say for every array whether the rows of all its positions are the same, shape (arrays,); ``rows`` is of shape
        (positions, columns)."""
        if not len(rows):
            return np.ones(len(self.arrays), np.bool_)
        changes = np.zeros(len(rows), np.bool_)
        changes[1:] = (rows[1:] != rows[:-1]).any(1) & (self.owner[1:] == self.owner[:-1])
        return ~self.any(changes)


def table_of(axes: Iterable[tuple[tuple[Any, ...], list[Axis]]]) -> AxisTable:
    """Put the axes of tensors, given by their keys, side by side; those that are ``Fixed`` are left out."""
    keys: list[tuple[tuple[Any, ...], int, int]] = []
    arrays: list[Ids] = []
    numbers: dict[int, int] = {}
    for key, mine in axes:
        for k, axis in enumerate(mine):
            if not isinstance(axis, Fixed):
                number = numbers.setdefault(id(axis), len(arrays))
                if number == len(arrays):
                    arrays.append(axis)
                keys.append((key, k, number))
    lengths = np.array([a.size for a in arrays], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    slots = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
    return AxisTable(keys, arrays, starts, slots, np.repeat(np.arange(len(arrays)), lengths))


def frozen_axes(table: AxisTable, solution: Solution) -> set[tuple[tuple[Any, ...], int]]:
    """Keys of the axes of which some slot must stay."""
    frozen = table.any(solution.why[solution.root[table.slots]] != Solution.NOT_FROZEN).tolist()
    return {(key, axis) for key, axis, number in table.keys if frozen[number]}


def distinct(rows: Ids) -> Ids:
    """The different numbers in an array of shape (positions, columns), sorted, but for negative ones; they come in
    runs, which are made short first."""
    found = []
    for column in rows.T:
        first = np.ones(len(column), np.bool_)
        first[1:] = column[1:] != column[:-1]
        found.append(column[first])
    numbers = different(np.concatenate(found))
    return numbers[numbers >= 0]
