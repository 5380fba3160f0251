"""Several rounds of pruning and fitting towards a budget, each starting from what the one before made.

The shares left go down geometrically. Each round chooses on the model of the round before, with damage measured there,
and is proved against it; the layers are fitted to what the original gave, so that errors do not add up. The plans of
all rounds are put into one, which leads from the original to the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from exporter.choice import known_patterns
from exporter.cost import CostModel
from exporter.errors import OutOfReach, UsageError
from exporter.graph import Graph
from exporter.groups import find_groups
from exporter.one_round import Chosen, Outcome, chosen_for, proved
from exporter.plan import Plan
from exporter.proof import Proof
from exporter.request import Means, Request
from exporter.rewriter import rewrite
from exporter.sequence import compose
from runtime.steps import Count


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        budget: share of the original's multiply-accumulates or parameters that may be left; with ``--ratio`` the share
            of the units.
        macs, params: shares of the original's that are left.
        proof: against the model the round started from; None where it was skipped.
        error: square error of the outputs against the original's on held-out inputs, relative to their variance.
        refits: number of layers fitted anew.
        original: whether they were fitted to the original's tensors, not to those of the round before.
    """

    budget: float
    macs: float
    params: float
    proof: Proof | None
    error: float | None
    refits: int
    original: bool


def in_rounds(graph: Graph, request: Request, means: Means) -> tuple[Outcome, tuple[Round, ...]]:
    """Carry out a request in ``request.steps`` rounds.

    Args:
        graph: the dense graph.
        request: with one budget; ``layers`` go in the first round.
        means: what it is carried out with.

    Returns:
        The outcome, whose plan leads from the dense graph to the result and is proved as a whole, and what each round
        did. A round whose budget is met before it starts is left out.

    Raises:
        UsageError, ModelError, GoalError: as for ``prune``; the plans cannot be put into one.
    """
    kind, target = next(iter(request.budget.items()))
    goal = 1 - target if kind == "ratio" else target
    dense = CostModel(find_groups(graph, request.io))
    last: Outcome | None = None
    rounds: list[Round] = []
    for number in range(1, request.steps + 1):
        means.step(Count("rounds", number - 1, request.steps))
        share = goal ** (number / request.steps)
        now = last.pruned if last is not None else graph
        part = _first(request, kind, share) if last is None else _next(request, kind, share, now, dense)
        if part is None:
            continue
        try:
            chosen = chosen_for(now, part, means)
        except OutOfReach as error:
            raise OutOfReach(f"--{kind} {target:g}", error.left * share / part.budget[kind]) from error
        means.step("rewriting the graph")
        pruned = rewrite(now, chosen.plan)
        proof = proved(pruned, now, chosen.plan, means)
        whole = _composed(last.chosen if last is not None else None, chosen, request)
        original = has_targets(graph, pruned)
        last = _fitted(pruned, graph, whole, means, None if original else (now, chosen.plan))
        rounds.append(_round(share, proof, last, dense, original))
    assert last is not None  # the first round always has something to do
    if len(rounds) > 1:
        means.step("proving all rounds together")
        plan = last.chosen.plan
        last = replace(last, proof=proved(rewrite(graph, plan), graph, plan, means))
    else:
        last = replace(last, proof=rounds[0].proof)
    return last, tuple(rounds)


def _first(request: Request, kind: str, share: float) -> Request:
    return request.with_budget(kind, 1 - share if kind == "ratio" else share)


def _next(request: Request, kind: str, share: float, now: Graph, dense: CostModel) -> Request | None:
    """What a later round is to do on the model it starts from; None where there is nothing left to do."""
    groups = find_groups(now, request.io)
    keep, only = (known_patterns(groups, patterns) for patterns in (request.keep, request.only))
    if request.only and not only:
        return None
    kinds = request.granularity if request.layers is None else request.kinds
    rest = replace(request, layers=None, granularity=kinds, keep=keep, only=only)
    if kind == "ratio":
        return rest.with_budget(kind, 1 - (1 - request.budget[kind]) ** (1 / request.steps))
    cost = CostModel(groups)
    wanted = share * _cost(dense, kind) / _cost(cost, kind)
    return rest.with_budget(kind, wanted) if wanted < 1 else None


def _cost(cost: CostModel, kind: str) -> float:
    return cost.macs(cost.widths) if kind == "macs" else cost.parameters(cost.widths)


def _composed(first: Chosen | None, then: Chosen, request: Request) -> Chosen:
    """What all rounds so far chose, for the dense graph."""
    if first is None:
        return replace(then, plan=replace(then.plan, options={**then.plan.options, **_asked(request)}))
    try:
        plan = compose(first.plan, then.plan)
    except UsageError as error:
        raise UsageError(f"--steps {request.steps}: {error}\nLeave out --steps.") from error
    notes = tuple(dict.fromkeys((*first.notes, *then.notes)))
    return replace(first, plan=replace(plan, options=first.plan.options, notes=notes), notes=notes)


def _asked(request: Request) -> dict[str, object]:
    return {**request.budget, "steps": request.steps}


def _fitted(pruned: Graph, graph: Graph, whole: Chosen, means: Means, start: tuple[Graph, Plan] | None) -> Outcome:
    if means.calibration is None:
        return Outcome(whole, pruned, None, None)
    from exporter.calibration.fidelity import fitted

    final, fidelity, notes = fitted(
        pruned, graph, whole.plan, means.calibration, means.compensate, means.step, start, means.cache
    )
    return Outcome(whole, final, None, fidelity, tuple(notes))


def has_targets(graph: Graph, pruned: Graph) -> bool:
    """Say whether every layer that can be fitted gives a tensor that the original has too."""
    from exporter.calibration.readers import find_readers

    return all(reader.result in graph.producer for reader in find_readers(pruned))


def _round(share: float, proof: Proof | None, outcome: Outcome, dense: CostModel, original: bool) -> Round:
    cost = CostModel(find_groups(outcome.pruned))
    fidelity = outcome.fidelity
    return Round(
        budget=share,
        macs=_cost(cost, "macs") / _cost(dense, "macs"),
        params=_cost(cost, "params") / _cost(dense, "params"),
        proof=proof,
        error=fidelity.error if fidelity is not None else None,
        refits=sum(r.damping is not None for r in fidelity.refits) if fidelity is not None else 0,
        original=original,
    )
