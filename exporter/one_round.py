"""One round: carry out a request on a graph, which is to choose, rewrite, prove, and fit the layers that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.choice import Grounds, choose
from exporter.depth import drop
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.interface import patterns_for
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.plan_check import check_fits
from exporter.proof import Proof
from exporter.request import Means, Request
from exporter.rewriter import rewrite
from exporter.verifier import verify
from runtime.recorded import read_recorded

if TYPE_CHECKING:
    from exporter.calibration.fidelity import Fidelity


@dataclass(frozen=True)
class Chosen:
    """What is to go.

    Attributes:
        plan: for the graph that was given.
        whole: its analysis.
        groups: the analysis without the blocks that go.
        notes: what the reader should know.
        grounds: what units were chosen on; None where a plan was given, or only blocks go.
    """

    plan: Plan
    whole: Groups
    groups: Groups
    notes: tuple[str, ...]
    grounds: Grounds | None = None


@dataclass(frozen=True)
class Outcome:
    """A plan that was carried out.

    Attributes:
        chosen: the plan, and the analysis behind it.
        pruned: the result.
        proof: what the proof found; None where it was skipped.
        fidelity: how true the result is to the original, where calibration inputs were given.
        notes: what the reader should know of the fit.
    """

    chosen: Chosen
    pruned: Graph
    proof: Proof | None
    fidelity: Fidelity | None
    notes: tuple[str, ...] = ()


def chosen_for(graph: Graph, request: Request, means: Means) -> Chosen:
    """Choose what goes.

    Raises:
        UsageError, ModelError, GoalError: as for ``prune``.
    """
    whole = find_groups(graph, request.io)
    means.step("scoring and choosing what goes")
    plan, groups, grounds = choose(whole, request, means)
    return Chosen(plan, whole, groups, tuple(plan.notes), grounds)


def chosen_by(plan: Plan, graph: Graph) -> Chosen:
    """Take what a plan says.

    Raises:
        UsageError: the plan is for another model.
    """
    warning = check_fits(plan, graph)
    groups = find_groups(drop(graph, plan.drop), patterns_for(plan.io))
    whole = find_groups(graph) if plan.drop else groups
    return Chosen(plan, whole, groups, (*([warning] if warning else []), *plan.notes))


def carry_out(graph: Graph, chosen: Chosen, means: Means) -> Outcome:
    """Rewrite, prove, and fit.

    Raises:
        GoalError: the proof failed.
        CannotRun: a model does not run at the sizes taken for its dynamic axes.
    """
    means.step("rewriting the graph")
    pruned = rewrite(graph, chosen.plan)
    proof = proved(pruned, graph, chosen.plan, means)
    if means.calibration is None:
        return Outcome(chosen, pruned, proof, None)
    from exporter.calibration.fidelity import fitted

    final, fidelity, notes = fitted(
        pruned, graph, chosen.plan, means.calibration, means.compensate, means.step, cache=means.cache
    )
    return Outcome(chosen, final, proof, fidelity, tuple(notes))


def proved(pruned: Graph, graph: Graph, plan: Plan, means: Means) -> Proof | None:
    """Prove a rewrite, unless that is switched off.

    Raises:
        GoalError: the proof failed.
        CannotRun: a model does not run at the sizes taken for its dynamic axes.
    """
    if not means.prove:
        return None
    inputs = means.inputs
    recorded = read_recorded(inputs, input_specs(graph.model)) if inputs is not None else ()
    return verify(pruned, graph, plan, inputs=recorded, progress=means.step)
