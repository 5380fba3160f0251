"""From a request to a plan: which residual blocks go, then which units of what is left.

What the options ask for, a budget always being of the dense model:

    --granularity layers             the budget is met by dropping blocks alone
    --granularity layers,heads,...   --ratio R takes that share of the blocks and of the units of every group;
                                     --macs and --params are split evenly: blocks go until the square root of the budget
                                     is left of what all blocks hold, and widths do the rest
    --layers N                       N blocks go, and widths meet the budget, if one is given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from exporter.blocks import KIND, Blocks, find_blocks
from exporter.cost import CostModel
from exporter.depth import choose_blocks, drop, matches
from exporter.edits import complete
from exporter.errors import ModelError, UsageError
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.importance import score as score_groups
from exporter.importance import seen_first
from exporter.influence import score_blocks
from exporter.interface import patterns_for
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.planner import KINDS, make_plan, touched
from runtime import feeds

_BUDGETS = ("ratio", "macs", "params")


@dataclass(frozen=True)
class Request:
    """What to cut: the options of ``prune``, by the same names."""

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    layers: int | None = None
    score: str = "l2"
    layer_score: str = "similarity"
    consumers: bool = False
    scope: str = "local"
    align: int | str = "auto"
    min_width: int = 1
    granularity: Sequence[str] | None = None
    keep: Sequence[str] = ()
    only: Sequence[str] = ()
    io: Sequence[str] = ()
    seed: int = 0

    @property
    def budget(self) -> dict[str, float]:
        """The budgets that are given."""
        given = {name: getattr(self, name) for name in _BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

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

    def record(self) -> dict[str, object]:
        """The options for the plan."""
        options = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in asdict(self).items()}
        if not self.deep:
            del options["layers"], options["layer_score"]
        return {k: v for k, v in options.items() if k not in _BUDGETS or v is not None}


def choose(whole: Groups, request: Request, inputs: Path | None = None) -> tuple[Plan, Groups]:
    """Choose blocks and units.

    Args:
        whole: the analysis of the dense graph.
        request: what to cut.
        inputs: ``.npz`` of recorded inputs, to rank blocks and ids with.

    Returns:
        The plan, for the dense graph, and the analysis of the graph without the blocks that go.

    Raises:
        UsageError, ModelError, GoalError: as for ``prune``.
    """
    options = request.record()
    if not request.deep:
        return _widths(whole, request, request.budget, request.keep, request.only, options, [], inputs), whole
    _check(request)
    blocks = find_blocks(whole)
    _check_patterns(whole, blocks, request)
    shallow, notes = _drop(blocks, request, inputs)
    left = {*shallow.inputs, *shallow.outputs}
    io = patterns_for({name: axes for name, axes in whole.io.items() if name in left})
    groups = find_groups(shallow, io) if shallow is not whole.graph else whole
    keep, only = _of_groups(groups, request.keep), _of_groups(groups, request.only)
    budget = _rest(request, whole, groups)
    if request.wide and budget and not (request.only and not only):
        try:
            return _widths(groups, request, budget, keep, only, options, notes, inputs), groups
        except ModelError as error:
            if shallow is whole.graph or "ratio" not in budget:
                raise
            notes = [*notes, str(error)]
    return complete(groups, [np.ones(g.width, bool) for g in groups], options, notes), groups


def _widths(
    groups: Groups,
    request: Request,
    budget: dict[str, float],
    keep: Sequence[str],
    only: Sequence[str],
    options: dict[str, object],
    notes: Sequence[str],
    inputs: Path | None,
) -> Plan:
    scores = score_groups(groups, request.score, consumers=request.consumers, seed=request.seed)
    if inputs is not None and any(g.kind == "tokens" for g in groups):
        scores = seen_first(groups, scores, feeds.recorded(inputs, input_specs(groups.graph.model)))
    return make_plan(
        groups,
        scores,
        **budget,
        scope=request.scope,
        align=request.align,
        min_width=request.min_width,
        granularity=request.kinds,
        keep=keep,
        only=only,
        options=options,
        notes=notes,
    )


def _check(request: Request) -> None:
    """Refuse a request for blocks that does not say how many."""
    unknown = [k for k in request.kinds or () if k not in KINDS]
    if unknown:
        raise UsageError(f"--granularity {unknown[0]}: choose from {', '.join((KIND, *KINDS))}.")
    if request.layers is not None and request.layers < 1:
        raise UsageError(f"--layers {request.layers}: must be at least 1.")
    if len(request.budget) > 1 or (not request.budget and request.layers is None):
        raise UsageError("give exactly one budget: --ratio, --macs or --params.")
    for name, value in request.budget.items():
        if not 0 < value < 1:
            raise UsageError(f"--{name} {value:g}: must be between 0 and 1, both excluded.")
    if request.layers is not None and request.kinds == [] and request.budget:
        raise UsageError("--layers already says how many blocks go; leave out the budget, or name more kinds to cut.")
    if request.layers is not None and request.kinds and not request.budget:
        raise UsageError("--layers says how many blocks go; for the other kinds give --ratio, --macs or --params.")


def _check_patterns(whole: Groups, blocks: Blocks, request: Request) -> None:
    for option, patterns in (("--keep", request.keep), ("--only", request.only)):
        for pattern in patterns:
            if not any(matches(blocks, b, pattern) for b in blocks):
                touched(whole, [pattern], option)  # raises where it touches no group either


def _of_groups(groups: Groups, patterns: Sequence[str]) -> list[str]:
    """Patterns that touch a group; the others meant blocks, or what went with them."""
    result = []
    for pattern in patterns:
        try:
            touched(groups, [pattern], "")
        except UsageError:
            continue
        result.append(pattern)
    return result


def _drop(blocks: Blocks, request: Request, inputs: Path | None) -> tuple[Graph, list[str]]:
    """The graph without the least important blocks."""
    graph = blocks.groups.graph
    budget = request.budget if request.layers is None else {}
    recorded = feeds.recorded(inputs, input_specs(graph.model)) if inputs is not None else ()
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
