"""How true a pruned graph is to the original, on inputs nothing was fitted to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from exporter.calibration.accuracy import Accuracy, compare_answers
from exporter.calibration.cache import Cache
from exporter.calibration.choices import choices
from exporter.calibration.compensation import compensate
from exporter.calibration.data import Calibration
from exporter.calibration.fit import Refit
from exporter.calibration.runner import Runner
from exporter.calibration.sensitivity import answers, deviation, deviation_between
from exporter.calibration.unfitted import Unfitted, find_unfitted
from exporter.graph import Graph
from exporter.interface import shrunk
from exporter.plan import Plan
from runtime.errors import BadRequest
from runtime.samples import Samples

SWITCHED_OFF, LEFT_OUT = "compensation was switched off", "compensation was left out"


@dataclass(frozen=True)
class Fidelity:
    """The pruned graph against the original on held-out inputs.

    Attributes:
        samples: number of held-out inputs.
        plain: square error of the outputs relative to their variance, mean over outputs, as pruned.
        error: the same of the graph that is written.
        agreement: share of inputs with the same highest output; None where no output is one of classes.
        accuracy: by the metric asked for, by default ``top1`` where there are labels, else ``agreement``; None where
            there are neither labels nor classes.
        refits: the layers fitted anew; empty where compensation was off or did not help.
        unfitted: the layers behind a cut that kept their weights, and why.
        synthetic: whether the inputs were made up.
    """

    samples: int
    plain: float
    error: float
    agreement: float | None
    refits: tuple[Refit, ...]
    synthetic: bool
    accuracy: Accuracy | None = None
    unfitted: tuple[Unfitted, ...] = ()

    @property
    def kept(self) -> dict[str, list[str]]:
        """Names of layers that kept their weights though others were fitted, by reason, the most frequent one first."""
        found: dict[str, list[str]] = {}
        for layer in self.unfitted:
            found.setdefault(layer.reason, []).append(layer.layer)
        if found.keys() <= {SWITCHED_OFF, LEFT_OUT}:
            return {}
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))


@dataclass(frozen=True)
class Fit:
    """A pruned graph with its layers fitted, if that helped.

    Attributes:
        graph: the graph to write.
        plain, error: see ``Fidelity``.
        answers: its answers to the held-out inputs, and the original's.
        refits: the layers fitted anew.
        why: the reason where none were.
        notes: what the reader should know.
    """

    graph: Graph
    plain: float
    error: float
    answers: tuple[Runner, Runner]
    refits: tuple[Refit, ...] = ()
    why: str = ""
    notes: tuple[str, ...] = ()


def comparable(pruned: Graph, graph: Graph, plan: Plan) -> bool:
    """Say whether the two can be fed alike: no axis of an input or output shrinks, and no input goes."""
    return not shrunk(plan, graph) and pruned.inputs == graph.inputs


def fit(
    pruned: Graph,
    graph: Graph,
    plan: Plan,
    calibration: Calibration,
    wanted: bool,
    step: Callable[[str], None],
    start: tuple[Graph, Plan] | None = None,
    cache: Cache | None = None,
) -> Fit:
    """Compensate where that helps.

    Args:
        pruned: as proved.
        graph: the dense graph.
        plan: what leads from it to ``pruned``.
        calibration: inputs.
        wanted: whether to compensate.
        step: called with a line before each step.
        start: the graph whose tensors the layers are fitted to, and the plan that leads from it to ``pruned``; the
            dense graph by default.
        cache: see ``compensate``.

    Raises:
        ModelError: a model does not run on the samples.
    """
    step("measuring the pruned model on held-out inputs")
    held, batch = calibration.held, calibration.batch
    original, own = answers(graph, held, batch), answers(pruned, held, batch, graph)
    plain = _error(own, original, held, batch)
    unfitted = Fit(pruned, plain, plain, (own, original))
    if not wanted:
        return replace(unfitted, why=SWITCHED_OFF)
    origin, cut = start or (graph, plan)
    better, refits = compensate(pruned, origin, cut, calibration.fit, batch, step, cache=cache)
    if not refits:
        return replace(unfitted, notes=("no layer behind the cuts can be fitted",))
    own = answers(better, held, batch, graph)
    error = _error(own, original, held, batch)
    if error < plain:
        return Fit(better, plain, error, (own, original), tuple(refits))
    note = f"{LEFT_OUT}: output error on held-out inputs {error:.3g} with it, {plain:.3g} without"
    return replace(unfitted, why=LEFT_OUT, notes=(note,))


def _error(own: Runner, original: Runner, samples: Samples, batch: int) -> float:
    """``deviation`` of the ``answers`` of a graph; these tell it, unless the original is to choose and they did."""
    if choices(original.graph, own.graph):
        return deviation(own.graph, original, samples, batch)
    return deviation_between(own, original)


def fidelity_of(found: Fit, plan: Plan, calibration: Calibration) -> Fidelity:
    """Measure a fitted graph on the held-out inputs.

    Raises:
        BadRequest: the metric that was asked for does not fit the outputs or the labels.
    """
    accuracy, agreement = judged(*found.answers, calibration)
    return Fidelity(
        samples=len(calibration.held),
        plain=found.plain,
        error=found.error,
        agreement=agreement,
        refits=found.refits,
        synthetic=calibration.synthetic,
        accuracy=accuracy,
        unfitted=tuple(find_unfitted(found.graph, plan, found.refits, found.why)),
    )


def judged(after: Runner, original: Runner, calibration: Calibration) -> tuple[Accuracy | None, float | None]:
    """Judge the ``answers`` of a graph and of the original to the held-out inputs.

    Returns:
        ``Fidelity.accuracy`` and ``Fidelity.agreement``.

    Raises:
        BadRequest: the metric that was asked for does not fit the outputs or the labels.
    """
    held, batch = calibration.held, calibration.batch
    metric = calibration.metric or ("top1" if held.answers is not None else "agreement")
    accuracy = agreement = None
    try:
        accuracy = compare_answers(after, original, held, batch, metric)
    except BadRequest:  # what is called y holds something else
        if calibration.metric is not None:
            raise
    with contextlib.suppress(BadRequest):  # no output of classes
        agreement = accuracy if metric == "agreement" else compare_answers(after, original, held, batch, "agreement")
    return accuracy or agreement, agreement.pruned if agreement is not None else None


def fitted(
    pruned: Graph,
    graph: Graph,
    plan: Plan,
    calibration: Calibration,
    wanted: bool,
    step: Callable[[str], None],
    start: tuple[Graph, Plan] | None = None,
    cache: Cache | None = None,
) -> tuple[Graph, Fidelity | None, list[str]]:
    """Compensate where that helps, and measure what is left; arguments and errors as for ``fit`` and ``fidelity_of``.

    Returns:
        The graph to write, its fidelity (None where the two cannot be fed alike), and what the reader should know.
    """
    if not comparable(pruned, graph, plan):
        return pruned, None, ["not compensated and not measured: inputs or outputs of the model shrink"]
    found = fit(pruned, graph, plan, calibration, wanted, step, start, cache)
    return found.graph, fidelity_of(found, plan, calibration), list(found.notes)
