"""From a request to a plan: which residual blocks go, then which units of what is left.

What the options ask for, a budget always being of the dense model:

    --granularity layers             the budget is met by dropping blocks alone
    --granularity layers,heads,...   --ratio R takes that share of the blocks and of the units of every group;
                                     --macs and --params are split evenly: blocks go until the square root of the budget
                                     is left of what all blocks hold, and widths do the rest
    --layers N                       N blocks go, and widths meet the budget, if one is given

Blocks are ranked on calibration inputs where there are any, else on recorded or seeded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.blocks import KIND, Blocks, find_blocks
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
from exporter.learned import learned_scores
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.planner import KINDS, NO_BUDGET, budget_of, check, eligible, plan_within, touched
from exporter.score_names import LEARNED, MASKS, RECONSTRUCTION
from runtime import feeds
from runtime.meant import instead

if TYPE_CHECKING:
    from exporter.calibration.cache import Cache
    from exporter.calibration.damage import Prediction
    from exporter.calibration.data import Calibration

_BUDGETS = ("ratio", "macs", "params")
_RANKING = 64
"""Calibration inputs that residual blocks are ranked on."""


@dataclass(frozen=True)
class Request:
    """What to cut: the options of ``prune``, by the same names."""

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    layers: int | None = None
    score: str | None = None
    layer_score: str = "similarity"
    consumers: bool = False
    scope: str | None = None
    align: int | str = "auto"
    min_width: int = 1
    granularity: Sequence[str] | None = None
    keep: Sequence[str] = ()
    only: Sequence[str] = ()
    io: Sequence[str] = ()
    seed: int = 0
    max_drop: float | str | None = None
    of: str = "macs"
    sure: bool = False
    steps: int = 1

    @property
    def budget(self) -> dict[str, float]:
        """The budgets that are given."""
        given = {name: getattr(self, name) for name in _BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    def with_budget(self, kind: str, value: float) -> Request:
        """With this budget instead of those that are given."""
        ratio, macs, params = (value if name == kind else None for name in _BUDGETS)
        return replace(self, ratio=ratio, macs=macs, params=params)

    @property
    def deep(self) -> bool:
        """Whether residual blocks are to go."""
        return self.layers is not None or KIND in (self.granularity or ())

    @property
    def kinds(self) -> list[str] | None:
        """Kinds of groups to cut; None for the default choice."""
        return None if self.granularity is None else [k for k in self.granularity if k != KIND]

    @property
    def wide(self) -> bool:
        """Whether units of groups are to go."""
        return not self.deep or (bool(self.budget) and self.kinds != [])

    def resolved(self, calibrated: bool) -> Request:
        """With the defaults that depend on whether there are calibration inputs."""
        least = calibrated and self.score in (None, RECONSTRUCTION) and self.budget.keys() <= {"macs", "params"}
        score = self.score or (RECONSTRUCTION if calibrated else "l2")
        scope = "global" if score in MASKS else "damage" if least else "local"
        return replace(self, score=score, scope=self.scope or scope)

    def record(self) -> dict[str, object]:
        """The options for the plan."""
        options = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in asdict(self).items()}
        if not self.deep:
            del options["layers"], options["layer_score"]
        if self.max_drop is None:
            del options["max_drop"], options["of"], options["sure"]
        if self.steps == 1:
            del options["steps"]
        return {k: v for k, v in options.items() if k not in _BUDGETS or v is not None}


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


def choose(
    whole: Groups,
    request: Request,
    inputs: Path | None = None,
    calibration: Calibration | None = None,
    step: Callable[[str], None] = lambda _: None,
    cache: Cache | None = None,
    fitting: bool = True,
) -> tuple[Plan, Groups, Grounds | None]:
    """Choose blocks and units.

    Args:
        whole: the analysis of the dense graph.
        request: what to cut.
        inputs: ``.npz`` of recorded inputs, to rank blocks and ids with.
        calibration: inputs to predict the damage of a cut with.
        step: called with a line before each step that may take time.
        cache: where predictions are looked for and kept; None computes them.
        fitting: whether the layers that stay will be fitted, and so mend some of the damage.

    Returns:
        The plan, for the dense graph, the analysis of the graph without the blocks that go, and what units were chosen
        on; None where only blocks go.

    Raises:
        UsageError, ModelError, GoalError: as for ``prune``.
    """
    given_scope = request.scope is not None
    request = request.resolved(calibration is not None)
    options = request.record()
    if calibration is not None:
        options |= {"calib": calibration.source, "calib_samples": calibration.used}
    widths = partial(
        _widths, request=request, options=options, inputs=inputs, calibration=calibration, given_scope=given_scope,
        dense=whole.graph, step=step, cache=cache, fitting=fitting,
    )  # fmt: skip
    if not request.deep:
        plan, grounds = widths(whole, budget=request.budget, keep=request.keep, only=request.only, notes=[])
        return plan, whole, grounds
    _check(request)
    blocks = find_blocks(whole)
    check_patterns(whole, blocks, request)
    shallow, notes = _drop(blocks, request, inputs, calibration)
    left = {*shallow.inputs, *shallow.outputs}
    io = patterns_for({name: axes for name, axes in whole.io.items() if name in left})
    groups = find_groups(shallow, io) if shallow is not whole.graph else whole
    keep, only = of_groups(groups, request.keep), of_groups(groups, request.only)
    budget = _rest(request, whole, groups)
    if request.wide and budget and not (request.only and not only):
        try:
            plan, grounds = widths(groups, budget=budget, keep=keep, only=only, notes=notes)
            return plan, groups, grounds
        except ModelError as error:
            if shallow is whole.graph or "ratio" not in budget:
                raise
            notes = [*notes, str(error)]
    return complete(groups, [np.ones(g.width, bool) for g in groups], options, notes), groups, None


def _widths(
    groups: Groups,
    *,
    request: Request,
    budget: dict[str, float],
    keep: Sequence[str],
    only: Sequence[str],
    options: dict[str, object],
    notes: Sequence[str],
    inputs: Path | None,
    calibration: Calibration | None,
    given_scope: bool,
    dense: Graph,
    step: Callable[[str], None],
    cache: Cache | None,
    fitting: bool,
) -> tuple[Plan, Grounds]:
    assert request.score is not None
    assert request.scope is not None
    scope, prediction = request.scope, None
    cost, wanted = CostModel(groups), budget_of(**budget)
    check(scope, wanted, request.align, request.min_width)  # before the work
    numbers = eligible(cost, wanted, request.kinds, keep, only, request.align)
    if calibration is None:
        scores = score_groups(groups, request.score, consumers=request.consumers, seed=request.seed, progress=step)
    else:
        scores, prediction = calibrated(groups, numbers, request, calibration, step, cache)
        if prediction is not None and not prediction.damage and not given_scope:
            scope, notes = "local", [*notes, "every group is cut alike, by magnitude: no linear layer reads them"]
    if inputs is not None and any(g.kind == "tokens" for g in groups):
        scores = seen_first(groups, scores, feeds.recorded(inputs, input_specs(groups.graph.model)))

    def plan_for(damage: Mapping[str, NDArray[np.float64]] | None = None) -> Plan:
        return plan_within(
            cost,
            scores,
            wanted,
            scope=scope,
            align=request.align,
            min_width=request.min_width,
            granularity=request.kinds,
            keep=keep,
            only=only,
            damage=damage,
            options=options,
            notes=notes,
        )

    considered = frozenset(groups.groups[n].name for n in numbers)
    grounds = Grounds(considered, scores, prediction.damage if prediction is not None else {})
    if prediction is None or scope != "damage":
        return plan_for(), grounds
    if not fitting:
        return plan_for(prediction.damage), grounds
    assert calibration is not None
    from exporter.calibration.damage import macs_per_sample
    from exporter.calibration.trial import best_plan

    best = best_plan(
        dense, lambda share: plan_for(prediction.mended(share)), calibration, macs_per_sample(groups), step, cache
    )
    return best, grounds


def calibrated(
    groups: Groups,
    numbers: Sequence[int],
    request: Request,
    calibration: Calibration,
    step: Callable[[str], None],
    cache: Cache | None,
    cost: CostModel | None = None,
) -> tuple[Scores, Prediction | None]:
    """Scores of all groups by what calibration inputs tell, and the prediction where the score is ``reconstruction``.

    Args:
        groups: the analysis.
        numbers: of the groups that may be cut.
        request: with its defaults resolved.
        calibration: inputs.
        step: called with a line before each step that may take time.
        cache: as for ``choose``.
        cost: what the budget is a share of, for masks that are learned.
    """
    from exporter.calibration.cache import Cache
    from exporter.calibration.predictions import predictions

    assert request.score is not None
    found = predictions(groups, numbers, request.score, calibration, Cache() if cache is None else cache, step)
    if found is not None:
        return found.scores, found if request.score == RECONSTRUCTION else None
    if request.score in LEARNED:
        found_scores = learned_scores(
            groups, numbers, request.score, calibration, request.budget, request.seed, step, cost
        )
        return found_scores, None
    return score_groups(groups, request.score, consumers=request.consumers, seed=request.seed), None


def _check(request: Request) -> None:
    """Refuse a request for blocks that does not say how many."""
    unknown = [k for k in request.kinds or () if k not in KINDS]
    if unknown:
        raise UsageError(f"--granularity {unknown[0]}: {instead(unknown[0], (KIND, *KINDS))}")
    if request.layers is not None and request.layers < 1:
        raise UsageError(f"--layers {request.layers}: must be at least 1.")
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


def _drop(
    blocks: Blocks, request: Request, inputs: Path | None, calibration: Calibration | None
) -> tuple[Graph, list[str]]:
    """The graph without the least important blocks."""
    graph = blocks.groups.graph
    budget = request.budget if request.layers is None else {}
    recorded: Sequence[feeds.Feeds] = ()
    if calibration is not None and request.layer_score == "similarity":
        # as few in a run as the graph was analysed with, because the stream at every block is held
        recorded = list(calibration.fit.part(0, _RANKING).batches(max(graph.binding.batch, 1)))
    elif inputs is not None:
        recorded = feeds.recorded(inputs, input_specs(graph.model))
    scores = score_blocks(blocks, request.layer_score, inputs=recorded, seed=request.seed)
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


def _rest(request: Request, whole: Groups, groups: Groups) -> dict[str, float]:
    """The budget relative to the graph without the blocks; empty where it is met already."""
    budget = request.budget
    for name in budget.keys() - {"ratio"}:
        dense, now = (_cost(g, name) for g in (whole, groups))
        budget[name] *= dense / now
        if budget[name] >= 1:
            return {}
    return budget


def _cost(groups: Groups, name: str) -> float:
    cost = CostModel(groups)
    return cost.macs(cost.widths) if name == "macs" else cost.parameters(cost.widths)
