"""How true a pruned graph is to the original, on inputs nothing was fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exporter.calibration.compensation import Refit, compensate
from exporter.calibration.data import Calibration
from exporter.calibration.runner import Runner
from exporter.calibration.sensitivity import Deviation, float_outputs
from exporter.graph import Graph
from exporter.interface import shrunk
from exporter.normalise import serialize_with_data
from exporter.plan import Plan
from runtime.errors import BadRequest
from runtime.evaluation import evaluate
from runtime.samples import Samples


@dataclass(frozen=True)
class Fidelity:
    """The pruned graph against the original on held-out inputs.

    Attributes:
        samples: number of held-out inputs.
        plain: square error of the outputs relative to their variance, mean over outputs, as pruned.
        error: the same of the graph that is written.
        agreement: share of inputs with the same highest output; None where no output is one of classes.
        refits: the layers fitted anew; empty where compensation was off or did not help.
        synthetic: whether the inputs were made up.
    """

    samples: int
    plain: float
    error: float
    agreement: float | None
    refits: tuple[Refit, ...]
    synthetic: bool


def fitted(
    pruned: Graph, graph: Graph, plan: Plan, calibration: Calibration, wanted: bool, step: Callable[[str], None]
) -> tuple[Graph, Fidelity | None, list[str]]:
    """Compensate where that helps, and measure what is left.

    Args:
        pruned: as proved.
        graph: the dense graph.
        plan: what was carried out.
        calibration: inputs.
        wanted: whether to compensate.
        step: called with a line before each step.

    Returns:
        The graph to write, its fidelity (None where the two cannot be fed alike), and what the reader should know.
    """
    if shrunk(plan, graph) or pruned.inputs != graph.inputs:
        return pruned, None, ["not compensated and not measured: inputs or outputs of the model shrink"]
    step("measuring the pruned model on held-out inputs")
    plain = deviation(pruned, graph, calibration.held, calibration.batch)
    if not wanted:
        return pruned, _fidelity(pruned, graph, calibration, plain, plain, []), []
    better, refits = compensate(pruned, graph, plan, calibration.fit, calibration.batch, step)
    error = deviation(better, graph, calibration.held, calibration.batch)
    if not error < plain:
        note = f"compensation was left out: output error on held-out inputs {error:.3g} with it, {plain:.3g} without"
        return pruned, _fidelity(pruned, graph, calibration, plain, plain, []), [note]
    return better, _fidelity(better, graph, calibration, plain, error, refits), []


def _fidelity(
    final: Graph, graph: Graph, calibration: Calibration, plain: float, error: float, refits: list[Refit]
) -> Fidelity:
    models = [serialize_with_data(g.model, g.folder) for g in (final, graph)]
    try:
        agreement = evaluate(
            models[0], calibration.held, "agreement", reference=models[1], batch=calibration.batch
        ).value
    except BadRequest:  # no output of classes
        agreement = None
    return Fidelity(len(calibration.held), plain, error, agreement, tuple(refits), calibration.synthetic)


def deviation(pruned: Graph, graph: Graph, samples: Samples, batch: int) -> float:
    """Square error of the outputs relative to their variance, mean over outputs."""
    outputs = float_outputs(graph)
    found = Deviation()
    runners = [Runner(g, samples, batch) for g in (pruned, graph)]
    for got, want in zip(*(r.branch(outputs, {}) for r in runners), strict=True):
        found.add(got, want)
    return found.value
