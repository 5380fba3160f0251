"""From a request to a plan: which residual blocks go, then which units of what is left.

What the options ask for, a budget always being of the dense model:

    --granularity layers             the budget is met by dropping blocks alone
    --granularity layers,heads,...   --ratio R takes that share of the blocks and of the units of every group;
                                     --macs and --params are split evenly: blocks go until the square root of the budget
                                     is left of what all blocks hold, and widths do the rest
    --layers N                       N blocks go, and widths meet the budget, if one is given

Blocks are ranked on calibration inputs where there are any, else on recorded or seeded ones. A budget of latency has
the same two steps where ``--layers`` says how many blocks go; see ``exporter.latency``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.blocks import Blocks, find_blocks
from exporter.cost import CostModel
from exporter.depth import choose_blocks, drop, matches
from exporter.edits import complete
from exporter.errors import ModelError, UsageError
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.importance import Scores, seen_first
from exporter.importance import score as score_groups
from exporter.influence import score_blocks
from exporter.interface import patterns_for
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.planner import NO_BUDGET, budget_of, check, eligible, plan_within, touched
from exporter.request import Means, Request
from exporter.score_names import LEARNED, RECONSTRUCTION
from exporter.widths import Budget
from runtime import feeds
from runtime.recorded import read_recorded

if TYPE_CHECKING:
    from exporter.calibration.damage import Prediction

_RANKING = 64
"""Calibration inputs that residual blocks are ranked on."""


@dataclass(frozen=True)
class Grounds:
    """What units were chosen on.

    Attributes:
        considered: names of the groups that might be cut; others are protected, of a kind not asked for, or the other
            factor of an axis.
        scores: one number per unit and group, higher to keep.
        damage: by group, the predicted square error of the outputs, relative to their variance, with ``k`` units kept
            at ``k - 1``, if the group alone is cut; empty where it was not predicted.
    """

    considered: frozenset[str]
    scores: Scores
    damage: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Units:
    """Units that may go, and what they are chosen by, whatever the budget comes to.

    Attributes:
        cost: counts what is left.
        request: for widths alone, with its defaults.
        numbers: of the groups that may be cut.
        scores: one number per unit and group, higher to keep.
        prediction: of the damage; None where the scores predict none.
        notes: what the reader should know.
    """

    cost: CostModel
    request: Request
    numbers: list[int]
    scores: Scores
    prediction: Prediction | None
    notes: tuple[str, ...] = ()

    @property
    def grounds(self) -> Grounds:
        """The same, for the report."""
        names = frozenset(self.cost.groups.groups[n].name for n in self.numbers)
        return Grounds(names, self.scores, self.prediction.damage if self.prediction is not None else {})

    def plan(self, budget: Budget, mended: float, options: Mapping[str, object], notes: Sequence[str] = ()) -> Plan:
        """The plan for a budget.

        Args:
            budget: what may be left of what ``cost`` counts.
            mended: share of the damage that later layers are taken to mend; see ``Prediction.mended``.
            options, notes: recorded in the plan.

        Raises:
            UsageError, ModelError, GoalError: as for ``make_plan``.
        """
        asked, found = self.request, self.prediction
        return plan_within(
            self.cost, self.scores, budget, scope=asked.scope or "local", align=asked.align, min_width=asked.min_width,
            granularity=asked.kinds, keep=asked.keep, only=asked.only,
            damage=found.mended(mended) if found is not None else None, options=options, notes=[*notes, *self.notes],
        )  # fmt: skip


@dataclass(frozen=True)
class Shallow:
    """What is left without some residual blocks.

    Attributes:
        groups: its analysis; that of the whole where no block goes.
        request: what is to go of its widths; a budget is of the whole. None where no width is to go.
        notes: what the reader should know.
    """

    groups: Groups
    request: Request | None
    notes: tuple[str, ...]


def choose(whole: Groups, request: Request, means: Means) -> tuple[Plan, Groups, Grounds | None]:
    """Choose blocks and units.

    Args:
        whole: the analysis of the dense graph.
        request: what to cut.
        means: what with.

    Returns:
        The plan, for the dense graph, the analysis of the graph without the blocks that go, and what units were chosen
        on; None where only blocks go.

    Raises:
        UsageError, ModelError, GoalError: as for ``prune``.
    """
    options = recorded(request, means)
    if not request.deep:
        plan, grounds = _widths(whole, request, means, options, (), whole.graph)
        return plan, whole, grounds
    left = without_blocks(whole, request, means)
    groups, notes = left.groups, left.notes
    rest = _rest(left.request, whole, groups) if left.request is not None else None
    if rest is not None:
        try:
            plan, grounds = _widths(groups, rest, means, options, notes, whole.graph)
            return plan, groups, grounds
        except ModelError as error:
            if groups is whole or request.ratio is None:
                raise
            notes = (*notes, str(error))
    return all_kept(groups, options, notes), groups, None


def recorded(request: Request, means: Means) -> dict[str, object]:
    """The options for the plan."""
    calibration = means.calibration
    options = request.resolved(calibration is not None).record()
    return options | ({"calib": calibration.source, "calib_samples": calibration.used} if calibration else {})


def all_kept(groups: Groups, options: Mapping[str, object], notes: Sequence[str]) -> Plan:
    """The plan that cuts no width: blocks that are gone are all that goes."""
    return complete(groups, [np.ones(g.width, bool) for g in groups], options, notes)


def _widths(
    groups: Groups,
    request: Request,
    means: Means,
    options: Mapping[str, object],
    notes: Sequence[str],
    dense: Graph,
) -> tuple[Plan, Grounds]:
    units, budget = units_for(CostModel(groups), request, means), budget_of(**request.budget)
    if units.prediction is None or units.request.scope != "damage" or not means.compensate:
        return units.plan(budget, 0.0, options, notes), units.grounds
    assert means.calibration is not None
    from exporter.calibration.damage import macs_per_sample
    from exporter.calibration.trial import best_plan

    best = best_plan(
        dense, lambda share: units.plan(budget, share, options, notes), means.calibration, macs_per_sample(groups),
        means.step, means.cache,
    )  # fmt: skip
    return best, units.grounds


def units_for(cost: CostModel, request: Request, means: Means) -> Units:
    """Find the units that may go, and judge them.

    Args:
        cost: of the graph they are units of; what the budget is a share of.
        request: for widths alone, with exactly one budget.
        means: what with.

    Raises:
        UsageError, ModelError: as for ``make_plan``.
    """
    groups, calibration = cost.groups, means.calibration
    asked = request.resolved(calibration is not None)
    assert asked.score is not None
    assert asked.scope is not None
    wanted = budget_of(**asked.budget)
    check(asked.scope, wanted, asked.align, asked.min_width)  # before the work
    numbers = eligible(cost, wanted, asked.kinds, asked.keep, asked.only, asked.align)
    prediction: Prediction | None = None
    notes: tuple[str, ...] = ()
    if calibration is None:
        scores = score_groups(groups, asked.score, consumers=asked.consumers, seed=asked.seed, progress=means.step)
    else:
        scores, prediction = _calibrated(cost, numbers, asked, means)
        if prediction is not None and not prediction.damage and request.scope is None:
            asked = replace(asked, scope="local")
            notes = ("every group is cut alike, by magnitude: no linear layer reads them",)
    if means.inputs is not None and any(g.kind == "tokens" for g in groups):
        scores = seen_first(groups, scores, read_recorded(means.inputs, input_specs(groups.graph.model)))
    return Units(cost, asked, numbers, scores, prediction, notes)


def _calibrated(
    cost: CostModel, numbers: Sequence[int], request: Request, means: Means
) -> tuple[Scores, Prediction | None]:
    """Scores by what calibration inputs tell, and the prediction where the score is ``reconstruction``."""
    from exporter.calibration.cache import Cache
    from exporter.calibration.predictions import predictions

    groups, calibration = cost.groups, means.calibration
    assert calibration is not None
    assert request.score is not None
    cache = Cache() if means.cache is None else means.cache
    found = predictions(groups, numbers, request.score, calibration, cache, means.step)
    if found is not None:
        return found.scores, found if request.score == RECONSTRUCTION else None
    if request.score in LEARNED:
        from exporter.learned import learned_scores

        return (
            learned_scores(groups, numbers, request.score, calibration, request.budget, request.seed, means.step, cost),
            None,
        )
    return score_groups(groups, request.score, consumers=request.consumers, seed=request.seed), None


def without_blocks(whole: Groups, request: Request, means: Means) -> Shallow:
    """Drop the residual blocks that a request says.

    Args:
        whole: the analysis of the dense graph.
        request: with ``layers``, or ``layers`` among its kinds.
        means: what blocks are ranked on.

    Raises:
        UsageError, ModelError, GoalError: as for ``prune``.
    """
    check_blocks(request)
    blocks = find_blocks(whole)
    check_patterns(whole, blocks, request)
    shallow, notes = _drop(blocks, request, means)
    left = {*shallow.inputs, *shallow.outputs}
    io = patterns_for({name: axes for name, axes in whole.io.items() if name in left})
    groups = find_groups(shallow, io) if shallow is not whole.graph else whole
    keep, only = of_groups(groups, request.keep), of_groups(groups, request.only)
    if not request.wide or (request.only and not only):
        return Shallow(groups, None, tuple(notes))
    rest = replace(request, layers=None, granularity=request.kinds, keep=keep, only=only)
    return Shallow(groups, rest, tuple(notes))


def check_blocks(request: Request) -> None:
    """Refuse a request for blocks that does not say how many."""
    if len(request.budget) > 1 or (not request.budget and request.layers is None):
        given = " and ".join(f"--{name}" for name in request.budget)
        raise UsageError(f"give exactly one budget, not {given}." if given else NO_BUDGET)
    for name, value in request.budget.items():
        if not 0 < value < 1:
            raise UsageError(f"--{name} {value:g}: must be between 0 and 1, both excluded.")
    if request.layers is not None and request.kinds == [] and request.budget:
        raise UsageError("--layers already says how many blocks go; leave out the budget, or name more kinds to cut.")
    if request.layers is not None and request.kinds and not request.budget:
        raise UsageError("--layers says how many blocks go; for the other kinds give --ratio, --macs or --params.")


def check_patterns(whole: Groups, blocks: Blocks, request: Request) -> None:
    """Refuse patterns that match neither a group nor a residual block with a UsageError."""
    for option, patterns in (("--keep", request.keep), ("--only", request.only)):
        for pattern in patterns:
            if not any(matches(blocks, b, pattern) for b in blocks):
                touched(whole, [pattern], option)  # raises where it touches no group either


def known_patterns(groups: Groups, patterns: Sequence[str]) -> list[str]:
    """Patterns that touch a group or a residual block."""
    blocks = find_blocks(groups)
    near = set(of_groups(groups, patterns))
    return [p for p in patterns if p in near or any(matches(blocks, b, p) for b in blocks)]


def of_groups(groups: Groups, patterns: Sequence[str]) -> list[str]:
    """Patterns that touch a group; the others meant blocks, or what went with them."""
    result = []
    for pattern in patterns:
        try:
            touched(groups, [pattern], "")
        except UsageError:
            continue
        result.append(pattern)
    return result


def _drop(blocks: Blocks, request: Request, means: Means) -> tuple[Graph, list[str]]:
    """The graph without the least important blocks."""
    graph, calibration = blocks.groups.graph, means.calibration
    budget = request.budget if request.layers is None else {}
    runs: Sequence[feeds.Feeds] = ()
    if calibration is not None and request.layer_score == "similarity":
        # as few in a run as the graph was analysed with, because the stream at every block is held
        runs = list(calibration.fit.first(_RANKING).batches(graph.batch))
    elif means.inputs is not None:
        runs = read_recorded(means.inputs, input_specs(graph.model))
    scores = score_blocks(blocks, request.layer_score, inputs=runs, seed=request.seed)
    try:
        chosen = choose_blocks(
            blocks,
            scores,
            count=request.layers,
            ratio=budget.get("ratio"),
            macs=budget.get("macs"),
            params=budget.get("params"),
            keep=request.keep,
            only=request.only,
            shared=request.wide,
        )
    except ModelError as error:
        if not request.wide or request.layers is not None:
            raise
        return graph, [str(error)]
    return drop(graph, [b.drop for b in chosen]), []


def _rest(request: Request, whole: Groups, groups: Groups) -> Request | None:
    """The same with its budget relative to the graph without the blocks; None where it is met already."""
    for name, share in request.budget.items():
        if name != "ratio":
            dense, now = (_cost(g, name) for g in (whole, groups))
            if share * dense / now >= 1:
                return None
            request = request.with_budget(name, share * dense / now)
    return request


def _cost(groups: Groups, name: str) -> float:
    cost = CostModel(groups)
    return cost.macs(cost.widths) if name == "macs" else cost.parameters(cost.widths)
