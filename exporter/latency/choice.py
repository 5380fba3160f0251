"""What goes for a share of the latency: widths by the table of seconds, and residual blocks where these may go too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from exporter.blocks import Block, Blocks, find_blocks
from exporter.choice import Grounds, all_kept, check_patterns, of_groups, units_for
from exporter.depth import able_to_go, drop
from exporter.errors import GoalError, ModelError, OutOfReach, UsageError
from exporter.importance import Scores
from exporter.influence import score_blocks
from exporter.latency.competition import Competition, plan_of
from exporter.latency.cost import LatencyCost
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.planner import budget_of
from exporter.request import Means, Request
from exporter.request_check import check_choice
from exporter.score_names import RECONSTRUCTION
from runtime.recorded import read_recorded

_PRICES = (1.0, 0.25, 4.0, float("inf"))
"""How much more the damage of blocks may count than that of widths; infinite leaves all blocks."""
_ALMOST = 1 - 1e-6
_WORK, _MOST = 1.5e11, 64
"""Multiply-accumulates to spend on what a set of blocks does to the outputs, and most samples."""


@dataclass(frozen=True)
class Candidate:
    """A plan, and what the table of seconds needs to know of it.

    Attributes:
        plan: for the dense graph.
        counts: units that every group of the table keeps.
        gone: names of what goes with blocks that the table still has; see ``Blocks.gone``.
        grounds: what units were chosen on; None where only blocks go.
    """

    plan: Plan
    counts: tuple[int, ...]
    gone: frozenset[str] = frozenset()
    grounds: Grounds | None = None


Chooser = Callable[[float], Candidate]
"""The plan for a share of the predicted seconds. Raises GoalError where none leaves so little."""


def chooser(
    cost: LatencyCost, request: Request | None, means: Means, options: Mapping[str, object], notes: Sequence[str] = ()
) -> Chooser:
    """Prepare to choose.

    Args:
        cost: the table of seconds.
        request: what to cut of what the table is of; its budget of ``macs`` is the share to reach first. None: nothing.
        means: what with.
        options, notes: recorded in the plans.

    Raises:
        UsageError, ModelError: as for ``prune``.
    """
    if request is None:
        return lambda _: _uncut(cost, options, notes)
    if request.deep:
        return _competing(cost, request, means, options)
    first = min(_part(cost, request.macs or 1.0), _ALMOST)
    judged = cache(lambda: units_for(cost, request.with_budget("macs", first), means))

    def widths(share: float) -> Candidate:
        part = _part(cost, share)
        if part >= 1:
            return _uncut(cost, options, [*notes, "dropping residual blocks is enough: no width was cut"])
        units = judged()
        try:
            plan = units.plan(budget_of(macs=part), _mended(means), options, notes)
        except OutOfReach as error:
            raise OutOfReach("the budget", error.left * share / part) from error
        kept = {g.name: len(g.keep) for g in plan.groups}
        return Candidate(plan, tuple(kept[g.name] for g in cost.groups), grounds=units.grounds)

    return widths


def _part(cost: LatencyCost, share: float) -> float:
    """A share of the whole, as one of what the table is of."""
    return share * cost.whole / cost.macs(cost.widths)


def _uncut(cost: LatencyCost, options: Mapping[str, object], notes: Sequence[str]) -> Candidate:
    return Candidate(all_kept(cost.groups, options, notes), tuple(map(int, cost.widths)))


def _mended(means: Means) -> float:
    """Share of the damage that later layers are taken to mend."""
    if means.calibration is None or not means.compensate:
        return 0.0
    from exporter.calibration.trial import USUAL_SHARE

    return USUAL_SHARE


def _competing(cost: LatencyCost, request: Request, means: Means, options: Mapping[str, object]) -> Chooser:
    """Residual blocks against widths, or against each other where there is nothing to weigh them by."""
    groups = cost.groups
    blocks = find_blocks(groups)
    check_patterns(groups, blocks, request)
    able = [b for b in able_to_go(blocks, request.keep, request.only) if not b.drop.interface]
    if not able:
        raise ModelError(
            "every residual block takes an input or output of the model with it: name other --granularity."
        )
    scores: Scores = {g.name: np.ones(g.width) for g in groups}
    if means.calibration is None:
        means.step("ranking residual blocks")
        runs = read_recorded(means.inputs, input_specs(groups.graph.model)) if means.inputs is not None else ()
        influence = score_blocks(blocks, request.layer_score, inputs=runs, seed=request.seed)
        ranked = Competition(
            cost, blocks, able, (), {}, lambda chosen: sum(influence[b.name] for b in chosen), request.align, 1
        )
        return partial(_candidate, ranked, 1.0, scores, options, None)
    numbers, damage, grounds = list[int](), dict[str, NDArray[np.float64]](), None
    if request.kinds:
        keep, only = of_groups(groups, request.keep), of_groups(groups, request.only)
        units = units_for(cost, replace(request, granularity=request.kinds, keep=keep, only=only), means)
        scores, grounds = units.scores, units.grounds
        damage = units.prediction.mended(_mended(means)) if units.prediction is not None else {}
        numbers = [n for n in units.numbers if groups.groups[n].name in damage]
    rivals = Competition(cost, blocks, able, numbers, damage, _harm(blocks, means), request.align, request.min_width)
    means.step("letting residual blocks and widths compete")
    price = _price(rivals, scores, request.macs or 1.0, means) if numbers else 1.0
    return partial(_candidate, rivals, price, scores, options, grounds)


def _candidate(
    rivals: Competition,
    price: float,
    scores: Scores,
    options: Mapping[str, object],
    grounds: Grounds | None,
    share: float,
) -> Candidate:
    cut = rivals.cut(share, price)
    plan = plan_of(cut, rivals.cost.groups, scores, options)
    return Candidate(plan, tuple(map(int, cut.counts)), cut.gone, grounds)


def _price(rivals: Competition, scores: Scores, share: float, means: Means) -> float:
    """The price of blocks whose cut leaves the least error once its layers are fitted, found by trial."""
    from exporter.calibration.damage import macs_per_sample
    from exporter.calibration.trial import errors_of

    plans: dict[str, tuple[float, Plan]] = {}
    for price in _PRICES:
        try:
            plan = _candidate(rivals, price, scores, {}, None, share).plan
        except GoalError:  # widths alone do not reach it
            continue
        plans.setdefault(repr(([(g.name, g.keep) for g in plan.groups], plan.drop)), (price, plan))
    tried = list(plans.values())
    if len(tried) < 2:
        return tried[0][0] if tried else 1.0
    assert means.calibration is not None
    groups = rivals.cost.groups
    errors = errors_of(
        groups.graph, [p for _, p in tried], means.calibration, macs_per_sample(groups), means.compensate, means.step
    )
    return tried[int(np.argmin(errors))][0] if errors else 1.0


def _harm(blocks: Blocks, means: Means) -> Callable[[Sequence[Block]], float]:
    """What the outputs lose without some blocks, less what later layers mend where they will be fitted."""
    from exporter.calibration.damage import affordable, macs_per_sample
    from exporter.calibration.readers import find_readers
    from exporter.calibration.sensitivity import answers, deviation

    assert means.calibration is not None
    groups, calibration = blocks.groups, means.calibration
    graph = groups.graph
    few = calibration.fit.first(affordable(_WORK, macs_per_sample(groups), min(_MOST, len(calibration.fit))))
    places = np.array([r.node.index for r in find_readers(graph)])
    share = _mended(means)
    original = answers(graph, few, calibration.batch)

    def harm(chosen: Sequence[Block]) -> float:
        means.step(f"measuring what the outputs lose without {', '.join(b.name for b in chosen)}")
        lost = deviation(drop(graph, [b.drop for b in chosen]), original, few, calibration.batch)
        later = [float((places > graph.producer[b.drop.node].index).mean()) if places.size else 0.0 for b in chosen]
        return lost * (1 - share * float(np.mean(later)))

    return harm


def check_competition(request: Request, calibrated: bool) -> None:
    """Refuse with a UsageError a choice that there is not, and what a competition of blocks and widths would ignore.

    Args:
        request: what to cut.
        calibrated: whether there are calibration inputs.
    """
    check_choice(request, calibrated)
    if not request.deep or request.layers is not None:
        return
    if not calibrated and request.kinds:
        raise UsageError(
            "--latency weighs residual blocks against widths by what the outputs lose, which takes inputs: give "
            "--calib DATA, or --calib synthetic.\nNo inputs are needed for blocks alone (--granularity layers), nor "
            "for a number of them, and widths for the rest (--layers N)."
        )
    if request.kinds and (request.scope not in (None, "damage") or request.score not in (None, RECONSTRUCTION)):
        raise UsageError("residual blocks and widths compete by predicted damage; leave out --scope and --score.")
    if calibrated and request.layer_score != "similarity":
        raise UsageError(
            f"--layer-score {request.layer_score}: with --calib residual blocks are judged by what the outputs lose; "
            "leave it out."
        )
