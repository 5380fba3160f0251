"""Partitions: connected pieces, what two labellings have in common, and whether labels fill a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.slots import Ids

_PAIR = 2


def connected(count: int, a: Ids, b: Ids) -> Ids:
    """Smallest member of the connected component of every vertex, given edges ``a[i]``-``b[i]``; shape (count,)."""
    parent = np.arange(count, dtype=np.int64)
    while True:
        u, v = parent[a], parent[b]
        apart = u != v
        if not apart.any():
            return parent
        a, b, u, v = a[apart], b[apart], u[apart], v[apart]
        np.minimum.at(parent, np.maximum(u, v), np.minimum(u, v))
        while True:
            hop = parent[parent]
            if (hop == parent).all():
                break
            parent = hop


def common_part(a: Ids, b: Ids) -> Ids:
    """Finest labelling of rows that is a function of ``a`` alone and of ``b`` alone; labels 0..k-1, shape (rows,)."""
    _, u = np.unique(a, return_inverse=True)
    _, v = np.unique(b, return_inverse=True)
    left = int(u.max()) + 1
    roots = connected(left + int(v.max()) + 1, u.astype(np.int64), v.astype(np.int64) + left)
    return np.unique(roots[u], return_inverse=True)[1].astype(np.int64)


def different(numbers: Ids) -> Ids:
    """The different numbers of an array, sorted. ``np.unique`` hashes them first, which takes several times as long."""
    if not numbers.size:
        return numbers.reshape(-1)
    ordered = np.sort(numbers, axis=None)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]]


def cells_of(labels: Sequence[Ids]) -> tuple[Ids, bool]:
    """Number every row's combination of labels, 0..k-1, and say whether every combination occurs."""
    stacked = np.stack(labels, 1)
    cells, numbers = np.unique(stacked, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), len(cells) == int(np.prod(stacked.max(0) + 1))


def grid_of(column: Ids, labels: Sequence[Ids]) -> Ids:
    """Cells of the labellings, finest first, that fill a grid together and share the column's values evenly.

    Shape (rows,); all zero where there is none.
    """
    first = np.unique(column, return_index=True)[1]
    chosen: list[Ids] = []
    cells = np.zeros(len(column), np.int64)
    for labelling in sorted(labels, key=lambda one: -int(one.max())):
        trial, full = cells_of([*chosen, labelling])
        counts = np.bincount(trial[first])
        if full and (counts == counts[0]).all():
            chosen.append(labelling)
            cells = trial
    return cells


def is_grid(columns: Ids, mine: Sequence[int], others: Sequence[int], pieces: dict[tuple[int, int], Ids]) -> bool:
    """Say whether every column of ``mine`` is exactly the grid of its common parts with the other side."""
    for k in mine:
        cells, full = cells_of([pieces[k, m] for m in others])
        if not full or np.unique(columns[:, k]).size != int(cells.max()) + 1:
            return False
    return True


def unique_rows(rows: Ids) -> Ids:
    """Sort every row descending, drop repeats, and trim columns that are empty everywhere."""
    if rows.shape[1] == _PAIR:
        low, high = rows.min(1), rows.max(1)
        low[low == high] = -1
        rows = np.stack([high, low], 1)
    elif rows.shape[1] > 1:
        rows = -np.sort(-rows, axis=1)
        repeated = rows[:, 1:] == rows[:, :-1]
        if repeated.any():
            rows[:, 1:][repeated] = -1
            rows = -np.sort(-rows, axis=1)
    width = max(1, int((rows >= 0).any(0).sum()))
    return np.ascontiguousarray(rows[:, :width])


def with_rows(table: Ids, at: Ids, rows: Ids) -> Ids:
    """A padded table with other rows, trimmed by ``unique_rows``, in some places; its columns are trimmed too."""
    width = max(table.shape[1], rows.shape[1])
    result = np.full((len(table), width), -1, np.int64)
    result[:, : table.shape[1]] = table
    result[at] = -1
    result[at, : rows.shape[1]] = rows
    if width == rows.shape[1]:
        return result
    filled = max(1, int((result >= 0).any(0).sum()))
    return np.ascontiguousarray(result[:, :filled])


def equal_rows(a: Ids, b: Ids) -> NDArray[np.bool_]:
    """Say which rows of two padded tables are the same."""
    width = max(a.shape[1], b.shape[1])

    def pad(rows: Ids) -> Ids:
        return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=-1)

    return np.asarray((pad(a) == pad(b)).all(1))
