"""What goes for a share of the latency: widths by the table of seconds, and residual blocks where these may go too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.blocks import Block, Blocks, find_blocks
from exporter.choice import Request, calibrated, check_patterns, of_groups
from exporter.competition import Competition, plan_of
from exporter.depth import able_to_go, drop
from exporter.errors import ModelError, UsageError
from exporter.importance import Scores
from exporter.importance import score as score_groups
from exporter.influence import score_blocks
from exporter.latency_cost import LatencyCost
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.planner import KINDS, budget_of, check, eligible, plan_within
from exporter.score_names import MASKS, RECONSTRUCTION
from runtime import feeds
from runtime.meant import instead

if TYPE_CHECKING:
    from exporter.calibration.data import Calibration

_PRICES = (1.0, 0.25, 4.0, float("inf"))
"""How much more the damage of blocks may count than that of widths; infinite leaves all blocks."""
_WORK, _MOST = 1.5e11, 64
"""Multiply-accumulates to spend on what a set of blocks does to the outputs, and most samples."""


@dataclass(frozen=True)
class Candidate:
    """A plan, and what the table of seconds needs to know of it.

    Attributes:
        plan: for the dense graph.
        counts: units that every group of the dense graph keeps.
        gone: names of what goes with its blocks; see ``Blocks.gone``.
    """

    plan: Plan
    counts: tuple[int, ...]
    gone: frozenset[str] = frozenset()


Chooser = Callable[[float], Candidate]
"""The plan for a share of the predicted seconds. Raises GoalError where none leaves so little."""


def chooser(
    cost: LatencyCost,
    request: Request,
    options: Mapping[str, object],
    calibration: Calibration | None,
    fitting: bool,
    inputs: Path | None,
    step: Callable[[str], None],
) -> Chooser:
    """Prepare to choose.

    Args:
        cost: the table of seconds.
        request: what to cut; its budget of ``macs`` is the share to reach first.
        options: recorded in the plans.
        calibration: inputs to predict damage with.
        fitting: whether the layers that stay will be fitted.
        inputs: ``.npz`` of recorded inputs to rank blocks with, where there are no calibration inputs.
        step: called with a line before each step.

    Raises:
        UsageError, ModelError: as for ``prune``.
    """
    if request.deep:
        return _deep(cost, request, options, calibration, fitting, inputs, step)
    groups = cost.groups
    numbers = eligible(
        cost, budget_of(macs=request.macs), request.granularity, request.keep, request.only, request.align
    )
    scores, damage = _scores(cost, numbers, request, calibration, step)
    scope = request.scope or ("damage" if damage else "global" if request.score in MASKS else "local")

    def widths(share: float) -> Candidate:
        plan = plan_within(
            cost, scores, budget_of(macs=share), scope=scope, align=request.align, min_width=request.min_width,
            granularity=request.granularity, keep=request.keep, only=request.only, damage=damage, options=options,
        )  # fmt: skip
        kept = {g.name: len(g.keep) for g in plan.groups}
        return Candidate(plan, tuple(kept[g.name] for g in groups))

    return widths


def _deep(
    cost: LatencyCost,
    request: Request,
    options: Mapping[str, object],
    calibration: Calibration | None,
    fitting: bool,
    inputs: Path | None,
    step: Callable[[str], None],
) -> Chooser:
    groups = cost.groups
    blocks = find_blocks(groups)
    _check(request, calibration)
    check_patterns(groups, blocks, request)
    able = [b for b in able_to_go(blocks, request.keep, request.only) if not b.drop.interface]
    if not able:
        raise ModelError(
            "every residual block takes an input or output of the model with it: name other --granularity."
        )
    if calibration is None:
        step("ranking residual blocks")
        recorded = feeds.recorded(inputs, input_specs(groups.graph.model)) if inputs is not None else ()
        influence = score_blocks(blocks, request.layer_score, inputs=recorded, seed=request.seed)
        ranked = Competition(
            cost, blocks, able, (), {}, lambda chosen: sum(influence[b.name] for b in chosen), request.align, 1
        )
        return partial(_candidate, ranked, 1.0, {g.name: np.ones(g.width) for g in groups}, options)
    numbers, damage = list[int](), dict[str, NDArray[np.float64]]()
    scores: Scores = {g.name: np.ones(g.width) for g in groups}
    if request.kinds:
        keep, only = of_groups(groups, request.keep), of_groups(groups, request.only)
        numbers = eligible(cost, budget_of(macs=request.macs), request.kinds, keep, only, request.align)
        scores, found = _scores(cost, numbers, request, calibration, step)
        damage = dict(found or {})
        numbers = [n for n in numbers if groups.groups[n].name in damage]
    harm = _harm(blocks, calibration, fitting, step)
    rivals = Competition(cost, blocks, able, numbers, damage, harm, request.align, request.min_width)
    step("letting residual blocks and widths compete")
    price = _price(rivals, scores, request.macs or 1.0, calibration, fitting, step) if numbers else 1.0
    return partial(_candidate, rivals, price, scores, options)


def _candidate(
    rivals: Competition, price: float, scores: Scores, options: Mapping[str, object], share: float
) -> Candidate:
    cut = rivals.cut(share, price)
    return Candidate(plan_of(cut, rivals.cost.groups, scores, options), tuple(map(int, cut.counts)), cut.gone)


def _price(
    rivals: Competition,
    scores: Scores,
    share: float,
    calibration: Calibration,
    fitting: bool,
    step: Callable[[str], None],
) -> float:
    """The price of blocks whose cut leaves the least error once its layers are fitted, found by trial."""
    from exporter.calibration.damage import macs_per_sample
    from exporter.calibration.trial import errors_of

    plans: dict[str, tuple[float, Plan]] = {}
    for price in _PRICES:
        try:
            plan = _candidate(rivals, price, scores, {}, share).plan
        except ModelError:  # widths alone do not reach it
            continue
        plans.setdefault(repr(([(g.name, g.keep) for g in plan.groups], plan.drop)), (price, plan))
    tried = list(plans.values())
    if len(tried) < 2:
        return tried[0][0] if tried else 1.0
    groups = rivals.cost.groups
    errors = errors_of(groups.graph, [p for _, p in tried], calibration, macs_per_sample(groups), fitting, step)
    return tried[int(np.argmin(errors))][0] if errors else 1.0


def _harm(
    blocks: Blocks, calibration: Calibration, fitting: bool, step: Callable[[str], None]
) -> Callable[[Sequence[Block]], float]:
    """What the outputs lose without some blocks, less what later layers mend where they will be fitted."""
    from exporter.calibration.damage import affordable, macs_per_sample
    from exporter.calibration.readers import find_readers
    from exporter.calibration.sensitivity import answers, deviation
    from exporter.calibration.trial import USUAL_SHARE

    groups = blocks.groups
    graph = groups.graph
    few = calibration.fit.part(0, affordable(_WORK, macs_per_sample(groups), min(_MOST, len(calibration.fit))))
    places = np.array([r.node.index for r in find_readers(graph)])
    share = USUAL_SHARE if fitting else 0.0
    original = answers(graph, few, calibration.batch)

    def harm(chosen: Sequence[Block]) -> float:
        step(f"measuring what the outputs lose without {', '.join(b.name for b in chosen)}")
        lost = deviation(drop(graph, [b.drop for b in chosen]), original, few, calibration.batch)
        later = [float((places > graph.producer[b.drop.node].index).mean()) if places.size else 0.0 for b in chosen]
        return lost * (1 - share * float(np.mean(later)))

    return harm


def _check(request: Request, calibration: Calibration | None) -> None:
    """Refuse what the competition would ignore."""
    unknown = [k for k in request.kinds or () if k not in KINDS]
    if unknown:
        raise UsageError(f"--granularity {unknown[0]}: {instead(unknown[0], ('layers', *KINDS))}")
    check(request.scope or "local", budget_of(macs=request.macs), request.align, request.min_width)
    if calibration is None and request.kinds:
        raise UsageError(
            "--latency weighs residual blocks against widths by what the outputs lose, which takes inputs: give "
            "--calib DATA, or --calib synthetic.\nBlocks alone need none: --granularity layers"
        )
    if request.kinds and (request.scope not in (None, "damage") or request.score not in (None, RECONSTRUCTION)):
        raise UsageError("residual blocks and widths compete by predicted damage; leave out --scope and --score.")
    if calibration is not None and request.layer_score != "similarity":
        raise UsageError(
            f"--layer-score {request.layer_score}: with --calib residual blocks are judged by what the outputs lose; "
            "leave it out."
        )


def _scores(
    cost: LatencyCost,
    chosen: Sequence[int],
    request: Request,
    calibration: Calibration | None,
    step: Callable[[str], None],
) -> tuple[Scores, Mapping[str, NDArray[np.float64]] | None]:
    """Importance of all units, and the predicted damage where calibration inputs tell it."""
    groups = cost.groups
    if calibration is None:
        if request.score == RECONSTRUCTION:
            raise UsageError(f"--score {request.score} needs calibration inputs: give --calib.")
        return score_groups(groups, request.score or "l2", consumers=request.consumers, seed=request.seed), None
    from exporter.calibration.trial import USUAL_SHARE

    wanted = request.resolved(calibrated=True)
    scores, prediction = calibrated(groups, chosen, wanted, calibration, step, None, cost)
    return scores, prediction.mended(USUAL_SHARE) if prediction is not None else None
