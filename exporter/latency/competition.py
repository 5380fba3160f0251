"""Residual blocks and widths under one budget of seconds: on the way down, what goes next is the block that does the
least damage for the time it saves, and for every set of blocks the widths are chosen that meet the rest.

Both are judged in one currency, the square error of the outputs relative to their variance: that of a width as
predicted from calibration inputs, that of a set of blocks as measured without them. A block that goes takes along what
the widths inside it would have cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from exporter.blocks import Block, Blocks
from exporter.cost import Keep
from exporter.depth import drop, with_block
from exporter.edits import Mask, complete
from exporter.errors import GoalError, OutOfReach
from exporter.groups import Groups, find_groups
from exporter.importance import Scores
from exporter.interface import patterns_for
from exporter.latency.cost import LatencyCost
from exporter.plan import Plan
from exporter.planner import best_units, least_damage
from exporter.widths import Budget

Damages = Mapping[str, NDArray[np.float64]]

_PATIENCE = 3
"""So many more blocks are tried after the best set of them."""
_NOTHING = 1e-6
"""Share of the time that is no saving."""


@dataclass(frozen=True)
class Cut:
    """What goes.

    Attributes:
        counts: units that every group of the dense graph keeps, shape (groups,).
        blocks: the blocks that go, none inside another, in the order of the graph.
        gone: names of the nodes (by their first output), tensors and constants that go with them.
        damage: predicted; comparable between cuts of one competition.
        notes: what the reader should know.
    """

    counts: Keep
    blocks: tuple[Block, ...] = ()
    gone: frozenset[str] = frozenset()
    damage: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Competition:
    """What may go, and what it does.

    Attributes:
        cost: seconds of the dense graph, for any widths and without any blocks.
        blocks: the residual blocks.
        able: those that may go.
        chosen: numbers of the groups that may be cut; none leaves the widths as they are.
        damage: of the widths of these groups, by name; see ``make_plan``.
        harm: damage of dropping a set of blocks.
        align, min_width: see ``make_plan``.
    """

    cost: LatencyCost
    blocks: Blocks
    able: Sequence[Block]
    chosen: Sequence[int]
    damage: Damages
    harm: Callable[[Sequence[Block]], float]
    align: int | str
    min_width: int
    _harms: dict[frozenset[str], float] = field(default_factory=dict)
    _goes: dict[str, frozenset[str]] = field(default_factory=dict)

    def cut(self, share: float, price: float = 1.0) -> Cut:
        """The cut of least damage that leaves at most a share of the dense graph's predicted seconds.

        Args:
            share: what may be left.
            price: how much more the damage of blocks counts than that of widths; infinite: no block goes.

        Raises:
            GoalError: nothing leaves so little.
        """
        target = share * self.cost.macs(self.cost.widths)
        now = Cut(self.cost.widths.copy())
        best: Cut | None = None
        failure: GoalError | None = None
        since = 0
        while since <= _PATIENCE:
            try:
                now = self._with_widths(now, target, price)
            except GoalError as error:
                failure = error
            else:
                since += 1
                if best is None or now.damage < best.damage:
                    best, since = now, 0
            further = self._one_more(now, price) if np.isfinite(price) else None
            if further is None:
                break
            now = further
        if best is None:
            assert failure is not None
            raise failure
        return best

    def _with_widths(self, cut: Cut, target: float, price: float) -> Cut:
        """The same blocks, and widths that leave the target."""
        cost = self.cost.without(cut.gone)
        dense = cost.macs(cost.widths)
        counts, notes, damage = cost.widths.copy(), list[str](), 0.0
        if dense > target:
            rest = [n for n in self.chosen if not self._inside(n, cut.gone)]
            if not rest:
                raise GoalError(f"without the blocks that may go {dense / self.cost.macs(cost.widths):.3f} is left.")
            budget = Budget("macs", target / dense)
            try:
                counts, notes = least_damage(cost, rest, self.damage, budget, self.align, self.min_width)
            except OutOfReach as error:
                raise OutOfReach("the budget", error.left * dense / self.cost.whole) from error
            damage = sum(self._of_width(n, counts) for n in rest)
        if cut.blocks:
            damage += price * self._harm(cut.blocks)
        return Cut(counts, cut.blocks, cut.gone, damage, tuple(notes))

    def _one_more(self, cut: Cut, price: float) -> Cut | None:
        """With the block that does the least damage for the seconds it saves; None where no other can go."""
        before = self.cost.without(cut.gone).macs(cut.counts)
        rates: list[tuple[float, int]] = []
        for place, block in enumerate(self.able):
            gone = cut.gone | self._alone(block)
            saved = before - self.cost.without(gone).macs(cut.counts)
            if saved > _NOTHING * before:
                inner = [n for n in self.chosen if self._inside(n, gone) and not self._inside(n, cut.gone)]
                freed = sum(self._of_width(n, cut.counts) for n in inner)
                rates.append(((price * self._harm([block]) - freed) / saved, place))
        for _, place in sorted(rates):
            more = with_block(self.blocks, cut.blocks, self.able[place])
            if more is not None:
                more.sort(key=self.blocks.blocks.index)
                return Cut(cut.counts, tuple(more), self.blocks.gone(more))
        return None

    def _alone(self, block: Block) -> frozenset[str]:
        """What goes with one block."""
        if block.name not in self._goes:
            self._goes[block.name] = self.blocks.gone([block])
        return self._goes[block.name]

    def _of_width(self, n: int, counts: Keep) -> float:
        return float(self.damage[self.cost.groups.groups[n].name][counts[n] - 1])

    def _inside(self, n: int, gone: frozenset[str]) -> bool:
        """Whether a group goes whole."""
        spans = self.cost.groups.groups[n].spans
        return bool(gone) and all(s.tensor in gone or (s.use is not None and s.use[0] in gone) for s in spans)

    def _harm(self, blocks: Sequence[Block]) -> float:
        names = frozenset(b.name for b in blocks)
        if names not in self._harms:
            self._harms[names] = self.harm(blocks)
        return self._harms[names]


def plan_of(cut: Cut, groups: Groups, scores: Scores, options: Mapping[str, object]) -> Plan:
    """The plan that carries out a cut.

    Args:
        cut: what goes.
        groups: the analysis of the dense graph.
        scores: importance by group name, shape (width,).
        options: recorded in the plan.
    """
    masks = [best_units(scores[g.name], int(n)) for g, n in zip(groups, cut.counts, strict=True)]
    if not cut.blocks:
        return complete(groups, masks, options, cut.notes)
    shallow = drop(groups.graph, [b.drop for b in cut.blocks])
    left = {*shallow.inputs, *shallow.outputs}
    rest = find_groups(shallow, patterns_for({name: axes for name, axes in groups.io.items() if name in left}))
    return complete(rest, carried_over(groups, masks, rest), options, cut.notes)


def carried_over(groups: Groups, masks: Sequence[Mask], rest: Groups) -> list[Mask]:
    """The units that groups of what is left keep, as the groups of the whole keep them.

    Args:
        groups: of the whole graph.
        masks: for each of them which units stay, shape (width,).
        rest: of the graph without some blocks. Its groups touch the same positions of the same tensors.

    Returns:
        For each group of the rest which units stay.
    """
    known: dict[tuple[object, ...], list[tuple[NDArray[np.int64], Mask]]] = {}
    for group, mask in zip(groups, masks, strict=True):
        for s in group.spans:
            known.setdefault((s.tensor, s.axis, s.use), []).append((s.units, mask))
    result = []
    for group in rest:
        kept = np.ones(group.width, bool)
        for s in group.spans:
            for units, mask in known.get((s.tensor, s.axis, s.use), ()):
                both = (s.units >= 0) & (units >= 0)
                kept[s.units[both & ~np.append(mask, True)[units]]] = False
        result.append(kept if kept.any() else np.ones(group.width, bool))
    return result
