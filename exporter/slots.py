"""Slots: every index of every static axis, and the facts that say which of them live or die together.

Knows no operator. A rule states facts about the slots of one node; ``exporter.solve`` turns the facts of a whole
graph into units that can be removed.

    tie(a, b)              the slots of two axes, position by position, live or die together
    product(flat, axes)    a flat slot exists exactly when its slot in every factor axis exists
    freeze(axis, why)      these slots must stay
    resize(where, slots)   an attribute or constant element that must equal the number of surviving slots

An axis is either an array of slot ids or ``Fixed``: an axis of which nothing can ever be removed (a spatial axis, a
batch), which needs no ids of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

FLAT_LIMIT = 1 << 23
"""Slots of the largest flattened axis that is still taken apart."""


class SlotError(Exception):
    """A rule stated facts that do not fit together; the node is frozen and the text is the reason.

    Attributes:
        where: the node that is the cause, where it is another than the one whose rule it is.
    """

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(text)
        self.where = where


class TooManySlots(Exception):
    """The facts of a graph are about more slots than they may be."""


class Reason(NamedTuple):
    """Why slots must stay.

    Attributes:
        text: groups the report, e.g. ``graph output``.
        where: the node or tensor that asks for it.
        hint: what would free it, if anything.
    """

    text: str
    where: str = ""
    hint: str = ""


class Fixed(NamedTuple):
    """An axis of ``size`` slots, all of which stay."""

    size: int
    why: Reason


Axis = Ids | Fixed

ONE = Reason("axis of size one")


class Product(NamedTuple):
    """``flat[i, j, ...]`` (row-major) exists exactly when ``factors[0][i]``, ``factors[1][j]``, ... all do."""

    flat: Ids
    factors: tuple[Ids, ...]
    where: str


class Slot(NamedTuple):
    """A place in the file that holds a number of slots.

    Attributes:
        node: key of the node (its first output).
        input: index of the constant input that holds it, or None.
        attribute: name of the attribute that holds it, or None.
        element: position in a vector; None for a scalar attribute.
        default: the whole vector as it is, for an input or attribute the file leaves out.
    """

    node: str
    input: int | None = None
    attribute: str | None = None
    element: int | None = None
    default: tuple[int, ...] | None = None


class Resize(NamedTuple):
    """The number at ``slot`` must be the count of surviving ``ids``."""

    slot: Slot
    ids: Ids


class Take(NamedTuple):
    """``result`` is ``source`` with ``indices`` taken along ``axis`` (slots ``ids``) by one node; a cut renews them."""

    node: str
    source: str
    result: str
    axis: int
    ids: Ids
    indices: Ids


@dataclass
class Facts:
    """All facts of one graph, in the order they were stated.

    Attributes:
        count: how many slots there are.
        most: how many slots may be named, counted each time a fact or a tensor names them; None for no limit.
    """

    count: int = 0
    most: int | None = None
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    frozen: list[tuple[Ids, int]] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    resizes: list[Resize] = field(default_factory=list)
    takes: list[Take] = field(default_factory=list)
    _reason_index: dict[Reason, int] = field(default_factory=dict)
    _named: int = 0

    def name(self, axis: Axis) -> None:
        """Count slots that something names: what it costs to look at a graph; raises TooManySlots above ``most``."""
        if not isinstance(axis, Fixed):
            self._named += axis.size
            if self.most is not None and self._named > self.most:
                raise TooManySlots

    def axis(self, size: int, where: str) -> Axis:
        """Make an axis of new slots; one of size one, or of more than can be looked at, stays."""
        if size > FLAT_LIMIT:
            return Fixed(size, Reason(f"an axis of more than {FLAT_LIMIT:,} slots", where))
        return self.fresh(size) if size > 1 else Fixed(size, ONE)

    def fresh(self, size: int) -> Ids:
        """Make ``size`` new slots."""
        if size > FLAT_LIMIT:
            raise SlotError(f"an axis of more than {FLAT_LIMIT:,} slots")
        if size < 0:
            raise SlotError(f"an axis of {size:,} slots")
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids

    def tie(self, a: Axis, b: Axis) -> None:
        """State that two axes of equal size live and die together, position by position."""
        if a.size != b.size:
            raise SlotError(f"two axes of different size ({a.size} and {b.size}) meet element by element")
        if isinstance(a, Fixed):
            if not isinstance(b, Fixed):
                self.freeze(b, a.why)
        elif isinstance(b, Fixed):
            self.freeze(a, b.why)
        elif a is not b:
            self.name(a)
            self.ties.append((a, b))

    def freeze(self, axis: Axis, why: Reason) -> None:
        """State that these slots must stay."""
        if isinstance(axis, Fixed) or axis.size == 0:
            return
        self.name(axis)
        self.frozen.append((axis, self.reason(why)))

    def reason(self, why: Reason) -> int:
        """Number of a reason."""
        if why not in self._reason_index:
            self._reason_index[why] = len(self.reasons)
            self.reasons.append(why)
        return self._reason_index[why]

    def ids(self, axis: Axis) -> Ids:
        """Slot ids of an axis; a ``Fixed`` one gets fresh, frozen ids."""
        if not isinstance(axis, Fixed):
            return axis
        made = self.fresh(axis.size)
        self.freeze(made, axis.why)
        return made

    def merge(self, axes: Sequence[Axis], where: str) -> Axis:
        """Flatten several axes into one, row-major."""
        if len(axes) == 1:
            return axes[0]
        sizes = [a.size for a in axes]
        total = math.prod(sizes)
        live = [k for k, a in enumerate(axes) if not isinstance(a, Fixed)]
        if not live:
            first = axes[0]
            assert isinstance(first, Fixed)
            whys = [a.why for a in axes if isinstance(a, Fixed) and a.why != ONE]
            return Fixed(total, whys[0] if whys else first.why)
        if total > FLAT_LIMIT:
            why = Reason(f"flattened into more than {FLAT_LIMIT:,} slots", where)
            for k in live:
                self.freeze(axes[k], why)
            return Fixed(total, why)
        if len(live) == 1:
            return _spread(axes[live[0]], sizes, live[0]).reshape(-1)
        # axes that stay whole only repeat the others, so the product is over the live ones alone
        flat = self.fresh(math.prod(sizes[k] for k in live))
        self.name(flat)
        self.products.append(Product(flat, tuple(self.ids(axes[k]) for k in live), where))
        if flat.size == total:
            return flat
        shape = [sizes[k] if k in live else 1 for k in range(len(axes))]
        return np.ascontiguousarray(np.broadcast_to(flat.reshape(shape), sizes)).reshape(-1)

    def split(self, axis: Axis, sizes: Sequence[int], where: str) -> list[Axis]:
        """Take one axis apart into several, row-major."""
        if len(sizes) == 1:
            return [axis]
        if isinstance(axis, Fixed):
            return [Fixed(s, axis.why if s > 1 else ONE) for s in sizes]
        grid = axis.reshape(tuple(sizes))
        # a factor along which the flat slots do not vary repeats them: dropping one of its slots would drop them all
        varying = [k for k, s in enumerate(sizes) if s > 1 and _varies(grid, k)]
        fixed = Reason("positions beside a cut axis", where)
        parts: list[Axis] = [Fixed(s, fixed if s > 1 else ONE) for s in sizes]
        core = grid[tuple(slice(None) if k in varying else 0 for k in range(len(sizes)))]
        if len(varying) == 1:
            parts[varying[0]] = np.ascontiguousarray(core)
        elif varying:
            if axis.size > FLAT_LIMIT:
                why = Reason(f"flattened into more than {FLAT_LIMIT:,} slots", where)
                self.freeze(axis, why)
                return [Fixed(s, why) for s in sizes]
            factors = tuple(self.fresh(sizes[k]) for k in varying)
            self.name(axis)
            self.products.append(Product(np.ascontiguousarray(core).reshape(-1), factors, where))
            for k, factor in zip(varying, factors, strict=True):
                parts[k] = factor
        return parts

    def regroup(self, axes: Sequence[Axis], sizes: Sequence[int], where: str) -> list[Axis]:
        """Carry slots through a reshape from ``axes`` to ``sizes``.

        Axes are matched in the smallest runs of equal element count; within a run they are merged, then split.
        """
        source = [(a.size, a) for a in axes]
        if math.prod(s for s, _ in source) != math.prod(sizes):
            raise SlotError(f"a reshape from {[s for s, _ in source]} to {list(sizes)} changes the number of elements")
        if any(s == 0 for s in sizes):
            raise SlotError("an axis is empty")
        result: list[Axis] = [Fixed(1, ONE) for _ in sizes]
        before = [k for k, (s, _) in enumerate(source) if s != 1]
        after = [k for k, s in enumerate(sizes) if s != 1]
        i = j = 0
        while i < len(before):
            left, right = [before[i]], [after[j]]
            have, want = source[before[i]][0], sizes[after[j]]
            while have != want:
                if have < want:
                    i += 1
                    left.append(before[i])
                    have *= source[before[i]][0]
                else:
                    j += 1
                    right.append(after[j])
                    want *= sizes[after[j]]
            i, j = i + 1, j + 1
            if len(left) == len(right) == 1:
                result[right[0]] = source[left[0]][1]
                continue
            flat = self.merge([source[k][1] for k in left], where)
            for k, part in zip(right, self.split(flat, [sizes[k] for k in right], where), strict=True):
                result[k] = part
        return result


def _varies(grid: Ids, axis: int) -> bool:
    """Say whether a grid of slots changes along an axis."""
    lines = grid.swapaxes(0, axis)
    return bool(lines[0].flat[0] != lines[1].flat[0] or (lines[0] != lines[1:]).any())


def _spread(axis: Axis, sizes: Sequence[int], position: int) -> Ids:
    assert not isinstance(axis, Fixed)
    if axis.size == math.prod(sizes):
        return axis
    shape = [1] * len(sizes)
    shape[position] = axis.size
    return np.ascontiguousarray(np.broadcast_to(axis.reshape(shape), tuple(sizes)))
