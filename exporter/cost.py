"""What a pruned graph costs: multiply-accumulates and parameters, as a function of how many units each group keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.groups import Groups
from exporter.slots import Axis, Fixed, Ids

Keep = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CostArrays:
    """A sum of factors times products of axis sizes; an axis is a sum of segments, each times its groups' shares.

    Attributes:
        segment_groups: (segments, k), padded with the number of groups.
        segment_counts, segment_axis: (segments,).
        axis_count: number of axes.
        factors: (terms,).
        axes: (terms, depth), padded with the number of axes.
    """

    segment_groups: Keep
    segment_counts: NDArray[np.float64]
    segment_axis: Keep
    axis_count: int
    factors: NDArray[np.float64]
    axes: Keep


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of positions of axes that depend on the same groups, in the order of the axes.

    Attributes:
        groups: (segments, k), padded with the number of groups.
        counts: positions of each, shape (segments,).
        axis: number of the axis of each, ascending, shape (segments,).
    """

    groups: Keep
    counts: NDArray[np.float64]
    axis: Keep


class CostModel:
    """Costs of a graph for any choice of widths.

    ``steps`` are the multiples that automatic alignment aims at: widths of convolutions, and of matrix products.

    An axis is a sum of segments: positions that depend on the same groups. A segment's size shrinks with the share each
    of its groups keeps, so an axis of heads and head dimensions shrinks with both.
    """

    steps = (16, 8)

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.widths: Keep = np.array([g.width for g in groups], np.int64)
        self._axis_number: dict[int, int] = {}
        self._arrays: list[Ids] = []  # keeps the arrays alive, so that their id() stays theirs
        self._counts: list[int] = []
        self._members: list[tuple[int, ...]] = []
        self._owners: list[int] = []
        self.constant_axes: list[tuple[str, int, int]] = []
        self._parting: list[Ids] = []  # terms of the uses of one constant
        work = [(w.factor, [self._axis(a) for a in w.axes]) for w in groups.analysis.work]
        parameters = self._parameters()
        self._work = Terms(work)
        self._weights = Terms(parameters)
        self._index()
        self._dense_weights = self._weights.each(self.axis_sizes(self.widths))

    def _index(self) -> None:
        """Arrays over the segments of all axes that are known so far."""
        self._depth = max((len(m) for m in self._members), default=1)
        padded = [m + (len(self.widths),) * (self._depth - len(m)) for m in self._members]
        self.segments = Segments(
            np.array(padded, np.int64).reshape(len(padded), self._depth),
            np.array(self._counts, np.float64),
            np.array(self._owners, np.int64),
        )

    def macs(self, keep: Sequence[int] | Keep) -> float:
        """Multiply-accumulates when group ``g`` keeps ``keep[g]`` units, under the graph's binding."""
        return self._work.total(self.axis_sizes(keep))

    def parameters(self, keep: Sequence[int] | Keep) -> float:
        """Number of parameters when group ``g`` keeps ``keep[g]`` units.

        Uses of a constant that lose units of different groups each get one of their own; the whole ones share one.
        """
        values = self._weights.each(self.axis_sizes(keep))
        shared = 0.0
        for places in self._parting:
            dense = self._dense_weights[places]
            shared += max(np.count_nonzero(values[places] == dense) - 1, 0) * dense[0]
        return float(values.sum() - shared)

    def parameters_apart(self, keep: Sequence[int] | Keep) -> float:
        """Number of parameters where all uses of a constant that may part have: never fewer than there are, and never
        more with fewer units."""
        return self._weights.total(self.axis_sizes(keep))

    def terms(self, kind: str) -> Terms | None:
        """The products of axis sizes that make up ``macs``, or ``parameters_apart`` for ``params``; None where it is no
        such sum."""
        return self._work if kind == "macs" else self._weights

    def arrays(self, kind: str) -> CostArrays:
        """The model as arrays, for those who compute with it in another way; ``kind`` is ``macs`` or ``params``."""
        return self.arrays_of(self._work if kind == "macs" else self._weights)

    def arrays_of(self, terms: Terms) -> CostArrays:
        """Terms over this model's axes as arrays."""
        segments = self.segments
        return CostArrays(segments.groups, segments.counts, segments.axis, len(self._arrays), terms.factors, terms.axes)

    def axis_sizes(self, keep: Sequence[int] | Keep) -> NDArray[np.float64]:
        """Surviving size of every axis the model knows, shape (axes,)."""
        share = np.append(np.asarray(keep, np.float64) / np.maximum(self.widths, 1), 1.0)
        left = self.segments.counts * share[self.segments.groups].prod(1)
        return np.bincount(self.segments.axis, left, minlength=len(self._arrays)).astype(np.float64)

    def members(self, axis: int) -> list[tuple[int, tuple[int, ...]]]:
        """(size, groups) of the segments of an axis."""
        first, last = np.searchsorted(self.segments.axis, (axis, axis + 1))
        return [(self._counts[k], self._members[k]) for k in range(first, last)]

    def _axis(self, ids: Axis) -> int:
        assert not isinstance(ids, Fixed)
        if id(ids) in self._axis_number:
            return self._axis_number[id(ids)]
        number = self._axis_number[id(ids)] = len(self._arrays)
        self._arrays.append(ids)
        group, _ = self.groups.units(ids)
        for row, count in zip(*_distinct(-np.sort(-group, axis=1)), strict=True):
            self._counts.append(int(count))
            self._members.append(tuple(int(g) for g in row if g >= 0))
            self._owners.append(number)
        return number

    def _parameters(self) -> list[tuple[int, list[int]]]:
        """A term for each constant that a cut leaves behind: several where uses of one may part."""
        terms: list[tuple[int, list[int]]] = []
        graph, analysis = self.groups.graph, self.groups.analysis
        keys: dict[str, list[tuple[str, ...]]] = {}
        for key in analysis.axes:
            if key[0] in graph.trained:
                keys.setdefault(key[0], []).append(key)
        for name, found in keys.items():
            uses = [analysis.axes[key] for key in self._apart(name, found)]
            places = range(len(terms), len(terms) + len(uses))
            for axes in uses:
                live = [(k, self._axis(axis)) for k, axis in enumerate(axes) if not isinstance(axis, Fixed)]
                terms.append((math.prod(a.size for a in axes if isinstance(a, Fixed)), [axis for _, axis in live]))
                self.constant_axes += [(name, k, axis) for k, axis in live if axes is uses[0]]
            if len(uses) > 1:
                self._parting.append(np.array(places))
        terms.extend((math.prod(graph.constants[name].dims), []) for name in graph.trained - keys.keys())
        return terms

    def _apart(self, name: str, keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Those of a constant's uses that may lose units that others keep; one of each that always lose the same."""
        if len(keys) == 1:
            return keys
        read = {self.groups.analysis.use.get((user.key, i)) for user, i in self.groups.graph.users.get(name, ())}
        found: dict[tuple[bytes | None, ...], tuple[str, ...]] = {}
        for key in [k for k in keys if k in read] or keys[:1]:
            found.setdefault(tuple(map(self._units, self.groups.analysis.axes[key])), key)
        return list(found.values())

    def _units(self, axis: Axis) -> bytes | None:
        """Which units an axis depends on; None where it stays."""
        if isinstance(axis, Fixed):
            return None
        group, unit = self.groups.units(axis)
        return group.tobytes() + unit.tobytes() if (group >= 0).any() else None


def _distinct(rows: Ids) -> tuple[Ids, Ids]:
    """Distinct rows of a table, shape (distinct, columns), and how often each is there; most tables have one."""
    if not rows.size or (rows == rows[0]).all():
        return rows[:1], np.array([len(rows)] if len(rows) else [], np.int64)
    base = int(rows.max()) + 2
    if rows.shape[1] == 1 or base ** rows.shape[1] < 1 << 62:
        codes = rows[:, 0].copy()
        for column in rows.T[1:]:
            codes = codes * base + column + 1
        _, first, counts = np.unique(codes, return_index=True, return_counts=True)
        return rows[first], counts
    found, counts = np.unique(rows, axis=0, return_counts=True)
    return found, counts


class Terms:
    """A sum of factors times products of axis sizes."""

    def __init__(self, terms: Sequence[tuple[float, Sequence[int]]]) -> None:
        depth = max((len(a) for _, a in terms), default=0)
        self.factors = np.array([f for f, _ in terms], np.float64)
        self.axes = np.array([list(a) + [-1] * (depth - len(a)) for _, a in terms], np.int64).reshape(len(terms), depth)

    def each(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Every term, shape (terms,), given the size of every axis."""
        padded = np.append(sizes, 1.0)  # place -1: no axis
        return np.asarray(self.factors * padded[self.axes].prod(1))

    def total(self, sizes: NDArray[np.float64]) -> float:
        """The sum of all terms."""
        return float(self.each(sizes).sum())
