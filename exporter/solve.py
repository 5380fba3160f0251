"""From facts to units: which slots live and die together, which must stay, and what derived slots are made of.

1. Ties are merged by union-find.
2. Products are simplified until nothing changes: a frozen flat slot freezes its factors, a factor that is wholly frozen
   drops out, a product of one factor is a tie.
3. Where two products describe the same slots, their factors are refined to common ones: 12 x 64 and 4 x 192 become
   4 x 3 x 64. The refinement is the common part of two partitions: the connected pieces of the graph that links the
   values of one factor with the values of the other (Gács and Körner, 1973). It does not depend on the order in which
   the slots are laid out, so a channel shuffle between two grouped convolutions is refined too.
4. Factors that share only a part are narrowed to it: 12 x 64 and 8 x 96 share 4 and 32, and the 6 between them stay.
   What shares nothing is frozen, with the reason.

Every step either merges slots or freezes some, which only restricts what may be cut; so the result is sound however far
it gets, and the loop ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.expansion import expand
from exporter.partitions import common_part, connected, different, equal_rows, grid_of, is_grid, unique_rows
from exporter.slots import ONE, Facts, Ids, Product, Reason

_NONE = np.iinfo(np.int32).max
_MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Solution:
    """The classes of tied slots.

    Attributes:
        root: class of every slot, shape (slots,): the smallest slot id in it.
        parts: for every slot id that is a class, the classes it is made of, shape (slots, k), padded with -1: itself
            for a unit, its factors for a derived class, nothing for a frozen one.
        why: number of the reason for which a class is frozen, shape (slots,); ``NOT_FROZEN`` otherwise.
    """

    root: Ids
    parts: Ids
    why: NDArray[np.int32]

    NOT_FROZEN = _NONE

    def parts_of(self, ids: Ids) -> Ids:
        """The units each slot is made of, shape (slots, k), padded with -1."""
        return self.parts[self.root[ids]]


class _Solver:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.root: Ids = np.arange(facts.count, dtype=np.int64)
        self.why: NDArray[np.int32] = np.full(facts.count, _NONE, np.int32)
        self.products: list[Product] = list(facts.products)
        self.pending: list[tuple[Ids, Ids]] = []
        self.settled: set[tuple[int, int]] = set()
        self.expanded: tuple[Ids, Ids] | None = None
        self.overlapping: list[tuple[int, int]] | None = None
        """What ``expand`` and ``_overlapping`` found, as long as nothing has changed since."""

    # -- merging ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Merge pending ties and carry the reasons over to the merged classes."""
        grown = self.facts.count - len(self.root)
        if grown or self.pending:
            self._forget()
        if grown:
            self.root = np.concatenate([self.root, np.arange(len(self.root), self.facts.count, dtype=np.int64)])
            self.why = np.concatenate([self.why, np.full(grown, _NONE, np.int32)])
        if self.pending:
            a = self.root[np.concatenate([p for p, _ in self.pending])]
            b = self.root[np.concatenate([q for _, q in self.pending])]
            self.pending.clear()
            merged = connected(len(self.root), a, b)
            self.root = merged[self.root]
            moved = np.flatnonzero(self.why != _NONE)
            np.minimum.at(self.why, self.root[moved], self.why[moved])

    def tie(self, a: Ids, b: Ids) -> bool:
        """Queue a tie; True if it says something new."""
        different = self.root[a] != self.root[b]
        if not different.any():
            return False
        self.pending.append((a[different], b[different]))
        return True

    def freeze(self, ids: Ids, reason: int) -> bool:
        """Freeze classes; True if any was free."""
        classes = self.root[ids]
        free = self.why[classes] == _NONE
        if not free.any():
            return False
        self.why[classes[free]] = reason
        self._forget()
        return True

    def _forget(self) -> None:
        self.expanded = self.overlapping = None

    def frozen(self, ids: Ids) -> NDArray[np.bool_]:
        return np.asarray(self.why[self.root[ids]] != _NONE)

    # -- products -----------------------------------------------------------------------------------------------

    def quiet(self) -> NDArray[np.bool_]:
        """Which products ``simplify`` would leave as they are: nothing in them is frozen, tied or of one slot."""
        number = len(self.products)
        quiet = np.ones(number, np.bool_)
        if not number:
            return quiet
        owner = np.repeat(np.arange(number), [p.flat.size for p in self.products])
        classes = self.root[np.concatenate([p.flat for p in self.products])]
        quiet[owner[self.why[classes] != _NONE]] = False
        codes = np.sort(owner * len(self.root) + classes)
        quiet[codes[1:][codes[1:] == codes[:-1]] // len(self.root)] = False
        factors = [f for p in self.products for f in p.factors]
        owner = np.repeat(np.arange(number), [len(p.factors) for p in self.products])
        sizes = np.array([f.size for f in factors])
        classes = self.root[np.concatenate(factors)]
        starts = np.cumsum(sizes) - sizes
        same = np.logical_and.reduceat(classes == np.repeat(classes[starts], sizes), starts)
        frozen = np.logical_or.reduceat(self.why[classes] != _NONE, starts)
        quiet[owner[same | frozen]] = False
        return quiet

    def simplify(self, product: Product) -> tuple[bool, Product | None]:
        """Apply step 2 to one product: (something changed, what is left of it)."""
        sizes = tuple(f.size for f in product.factors)
        grid = product.flat.reshape(sizes)
        changed = False
        frozen_grid = self.frozen(product.flat).reshape(sizes)
        if frozen_grid.any():
            reasons = self.why[self.root[grid]]
            for k, factor in enumerate(product.factors):
                others = tuple(i for i in range(len(sizes)) if i != k)
                hit = frozen_grid.any(axis=others) & ~self.frozen(factor)
                if hit.any():
                    changed |= self.freeze(factor[hit], int(reasons.min()))
        for factor in product.factors:
            # all slots of the factor are one: dropping it would leave nothing
            if (self.root[factor] == self.root[factor[0]]).all() and not self.frozen(factor[:1])[0]:
                changed |= self.freeze(factor[:1], self.facts.reason(ONE))
        live = [k for k, f in enumerate(product.factors) if not self.frozen(f).all()]
        if len(live) < len(sizes):
            core = grid[tuple(slice(None) if k in live else 0 for k in range(len(sizes)))]
            shape = tuple(sizes[k] if k in live else 1 for k in range(len(sizes)))
            self.tie(product.flat, np.broadcast_to(core.reshape(shape), sizes).reshape(-1))
            if not live:
                reason = int(self.why[self.root[product.factors[0]]].min())
                self.freeze(product.flat, reason)
                return True, None
            if len(live) == 1:
                self.tie(core.reshape(-1), product.factors[live[0]])
                return True, None
            return True, Product(
                np.ascontiguousarray(core).reshape(-1), tuple(product.factors[k] for k in live), product.where
            )
        changed |= self._tie_twins(product, sizes)
        return changed, product

    def _tie_twins(self, product: Product, sizes: tuple[int, ...]) -> bool:
        """Two flat slots of one product that are tied tie their factor slots."""
        classes = self.root[product.flat]
        order = np.argsort(classes, kind="stable")
        same = classes[order[1:]] == classes[order[:-1]]
        if not same.any():
            return False
        one = np.unravel_index(order[:-1][same], sizes)
        other = np.unravel_index(order[1:][same], sizes)
        changed = False
        for factor, i, j in zip(product.factors, one, other, strict=True):
            changed |= self.tie(factor[i], factor[j])
        return changed

    # -- two products over the same slots -----------------------------------------------------------------------

    def reconcile(self) -> bool:
        """Apply step 3 to every pair of products that disagree; True if there was one."""
        parts, cyclic = self.expand()
        if cyclic.size:
            return self.freeze(cyclic, self._misfit("a cycle of reshapes"))
        refined = False
        for p, q in self._overlapping():
            if (p, q) in self.settled:
                continue
            one, other = self.products[p], self.products[q]
            rows_p, rows_q = self._shared_rows(one, other)
            self.settled.add((p, q))
            if not equal_rows(self._atoms(one, rows_p, parts), self._atoms(other, rows_q, parts)).all():
                if self._refine(one, other, rows_p, rows_q):
                    self.settled.discard((p, q))
                    return True
                refined = True
        return refined

    def check(self) -> bool:
        """After refinement, freeze whatever two products still describe differently; True if any did."""
        parts, _ = self.expand()
        changed = False
        for p, q in self._overlapping():
            one, other = self.products[p], self.products[q]
            rows_p, rows_q = self._shared_rows(one, other)
            a, b = self._atoms(one, rows_p, parts), self._atoms(other, rows_q, parts)
            different = ~equal_rows(a, b)
            if different.any():
                wrong = np.concatenate([a[different].reshape(-1), b[different].reshape(-1)])
                reason = self._misfit(f"{one.where} and {other.where}")
                changed |= self.freeze(wrong[wrong >= 0], reason)
        return changed

    def _misfit(self, where: str) -> int:
        return self.facts.reason(
            Reason("two reshapes of the axis do not fit a common grid", where, "use sizes that divide each other")
        )

    def _overlapping(self) -> list[tuple[int, int]]:
        """Pairs of products that share a flat class."""
        number = len(self.products)
        if self.overlapping is None and number < 2:
            self.overlapping = []
        if self.overlapping is None:
            owner = np.repeat(np.arange(number), [p.flat.size for p in self.products])
            classes = self.root[np.concatenate([p.flat for p in self.products])]
            cls, own = np.divmod(different(classes * number + owner), number)
            starts = np.flatnonzero(np.r_[True, cls[1:] != cls[:-1]])
            first = np.repeat(own[starts], np.diff(np.r_[starts, cls.size]))
            pairs = different((first * number + own)[first != own]).tolist()
            self.overlapping = [divmod(pair, number) for pair in pairs]
        return self.overlapping

    def _shared_rows(self, one: Product, other: Product) -> tuple[Ids, Ids]:
        """Positions in both flat arrays of the classes they share, in the same order."""
        a, first_a = np.unique(self.root[one.flat], return_index=True)
        b, first_b = np.unique(self.root[other.flat], return_index=True)
        _, in_a, in_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
        return first_a[in_a], first_b[in_b]

    def _columns(self, product: Product, rows: Ids) -> Ids:
        """Factor classes of some flat positions, shape (rows, factors); frozen ones are -1."""
        places = np.unravel_index(rows, tuple(f.size for f in product.factors))
        columns = [self.root[f[i]] for f, i in zip(product.factors, places, strict=True)]
        stacked = np.stack(columns, 1)
        stacked[self.why[stacked] != _NONE] = -1
        return stacked

    def _atoms(self, product: Product, rows: Ids, parts: Ids) -> Ids:
        """Units of some flat positions, sorted, padded with -1."""
        columns = self._columns(product, rows)
        width = parts.shape[1]
        wide = np.where(columns[:, :, None] >= 0, parts[columns], -1)
        return unique_rows(wide.reshape(len(rows), columns.shape[1] * width))

    def _refine(self, one: Product, other: Product, rows_p: Ids, rows_q: Ids) -> bool:
        """Give two products common factors; True if they had to be narrowed first and should be looked at again."""
        a, b = self._columns(one, rows_p), self._columns(other, rows_q)
        where = f"{one.where} and {other.where}"
        left = [k for k in range(a.shape[1]) if not any((a[:, k] == b[:, m]).all() for m in range(b.shape[1]))]
        right = [m for m in range(b.shape[1]) if not any((a[:, k] == b[:, m]).all() for k in range(a.shape[1]))]
        # a factor that is frozen in places takes no part in the refinement; check() settles what that leaves open
        left = [k for k in left if (a[:, k] >= 0).all()]
        right = [m for m in right if (b[:, m] >= 0).all()]
        if not left or not right:
            return False
        pieces = {(k, m): common_part(a[:, k], b[:, m]) for k in left for m in right}
        mirrored = {(m, k): v for (k, m), v in pieces.items()}
        if not (is_grid(a, left, right, pieces) and is_grid(b, right, left, mirrored)):
            if all(labels.max() == 0 for labels in pieces.values()):
                return False
            narrowed = self._narrow(a, left, right, pieces, where)
            return self._narrow(b, right, left, mirrored, where) or narrowed
        fine: dict[tuple[int, int], Ids] = {}
        for (k, m), labels in pieces.items():
            size = int(labels.max()) + 1
            if size > 1:
                fine[k, m] = self._fine_axis(a[:, k], b[:, m], labels, size)
        for k in left:
            self._derive(a[:, k], [(pieces[k, m], fine[k, m]) for m in right if (k, m) in fine], where)
        for m in right:
            self._derive(b[:, m], [(pieces[k, m], fine[k, m]) for k in left if (k, m) in fine], where)
        return False

    def _narrow(
        self, columns: Ids, mine: Sequence[int], others: Sequence[int], pieces: dict[tuple[int, int], Ids], where: str
    ) -> bool:
        """Leave of each factor what it has in common with the other side: two group normalisations over parts of one
        concatenation, in groups of 16 and of 24, share an inner axis of 8. What it has beyond that stays.
        """
        changed = False
        for k in mine:
            cells = grid_of(columns[:, k], [pieces[k, m] for m in others])
            if not cells.any():
                changed |= self.freeze(columns[:, k], self._misfit(where))
            else:
                first = np.unique(cells, return_index=True)[1]
                changed |= self.tie(columns[:, k], columns[first[cells], k])
        return changed

    def _fine_axis(self, a: Ids, b: Ids, labels: Ids, size: int) -> Ids:
        """Slots of one common factor: an existing factor where it is one already, else fresh ones."""
        first = np.unique(labels, return_index=True)[1]
        matches_a, matches_b = np.unique(a).size == size, np.unique(b).size == size
        if matches_a and matches_b:
            self.tie(a, b)
        if matches_a:
            return a[first]
        if matches_b:
            return b[first]
        return self.facts.fresh(size)

    def _derive(self, values: Ids, digits: Sequence[tuple[Ids, Ids]], where: str) -> None:
        """State that the classes in ``values`` are the product of fine axes, given each row's digit on every one."""
        if len(digits) < 2:
            return
        sizes = tuple(axis.size for _, axis in digits)
        flat = np.full(int(np.prod(sizes)), -1, np.int64)
        flat[np.ravel_multi_index(tuple(labels for labels, _ in digits), sizes)] = values
        self.products.append(Product(flat, tuple(axis for _, axis in digits), where))
        self._forget()

    # -- what derived classes are made of -----------------------------------------------------------------------

    def expand(self) -> tuple[Ids, Ids]:
        """Units of every class: (parts of shape (slots, k), classes on a cycle)."""
        if self.expanded is None:
            self.expanded = expand(self.products, self.root, self.why != _NONE)
        return self.expanded

    def run(self) -> Solution:
        facts = self.facts
        self.pending.extend(facts.ties)
        for ids, reason in facts.frozen:
            np.minimum.at(self.why, ids, np.int32(reason))
        self.flush()
        for _ in range(_MAX_ROUNDS):
            changed = False
            kept: list[Product] = []
            for product, quiet in zip(self.products, self.quiet(), strict=True):
                if quiet and not (changed and any(self.frozen(a).any() for a in (product.flat, *product.factors))):
                    kept.append(product)
                    continue
                some, rest = self.simplify(product)
                changed |= some
                if rest is not None:
                    kept.append(rest)
            if len(kept) != len(self.products) or any(a is not b for a, b in zip(kept, self.products, strict=True)):
                self.products, self.settled = kept, set()
                self._forget()
            self.flush()
            if changed:
                continue
            if self.reconcile() or self.check():
                self.flush()
                continue
            break
        else:
            everything = np.concatenate([np.concatenate(p.factors) for p in self.products])
            self.freeze(everything, self._misfit("the whole graph"))
            self.flush()
        parts, _ = self.expand()
        # every slot id answers for its class
        return Solution(self.root, parts, self.why)


def solve(facts: Facts) -> Solution:
    """Solve the facts of a graph.

    Args:
        facts: what the rules stated; the refinement may add fresh slots to it.

    Returns:
        Classes, what derived classes are made of, and which are frozen and why.
    """
    return _Solver(facts).run()
