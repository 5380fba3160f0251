"""How much worse a pruned graph answers than the original: both judged on the same samples, with an interval.

The answers of the two are compared sample by sample, so what both get wrong does not blur the difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.outputs import computed_outputs, float_outputs
from exporter.calibration.portioned import Portioned, Runs, too_large
from exporter.calibration.runner import Runner
from exporter.graph import Graph
from exporter.normalise import serialize_with_data
from runtime.backends import SessionOptions, open_session
from runtime.errors import BadRequest
from runtime.feeds import Array, Feeds
from runtime.metrics import Batch, Metric, Scores, default_output
from runtime.plugins import find_metric
from runtime.samples import Samples

LEVEL = 1.96
"""Standard deviations that an interval of 95 % goes to either side."""


@dataclass(frozen=True)
class Accuracy:
    """The pruned graph against the original.

    Attributes:
        metric: name in ``runtime.metrics``.
        dense, pruned: its value for the two; for a metric that compares with the original, that of the original with
            itself.
        drop: how much worse the pruned one is, in the metric's unit; negative where it is better.
        low, high: 95 % interval of the drop over samples.
        samples: number of samples.
        rate: whether the metric is a share of samples.
    """

    metric: str
    dense: float
    pruned: float
    drop: float
    low: float
    high: float
    samples: int
    rate: bool


def usual_metric(graph: Graph, samples: Samples) -> str | None:
    """``top1`` where labels fit the outputs, else ``agreement`` where an output is one of classes, else None."""
    session = _session(graph)
    names = ["top1", "agreement"] if samples.answers is not None else ["agreement"]
    return next((name for name in names if not _misfit(session, samples, name)), None)


def why_no_labels(graph: Graph, samples: Samples) -> str:
    """Why ``top1`` is no metric for labels that there are, though another will judge; empty where all is well."""
    answers = samples.answers
    if answers is None:
        return ""
    session = _session(graph)
    why = "they hold NaN." if hold_nan(answers) else _misfit(session, samples, "top1")
    return why if why and not _misfit(session, samples, "agreement") else ""


def hold_nan(labels: Array) -> bool:
    """Whether a label is no number."""
    return labels.dtype.kind == "f" and bool(np.isnan(labels).any())


def _misfit(session: Runs, samples: Samples, name: str) -> str:
    """Why a metric does not fit the model's output, as the first sample shows; empty where it does."""
    try:
        chosen = default_output(session.outputs, None).name
        feeds, labels = next(iter(samples.labelled(1)))
        values = session.run(feeds, [chosen])
        batch = Batch(values[chosen], values, values[chosen], labels, feeds, _count(samples, feeds))
        find_metric(name).observe(batch)
    except BadRequest as error:
        return str(error)
    return ""


def compare_accuracy(pruned: Graph, graph: Graph, samples: Samples, batch: int, metric: str) -> Accuracy:
    """Judge a pruned graph and the original on the same samples.

    Args:
        pruned: a graph with the inputs and outputs of
        graph: the original.
        samples: nothing was fitted to; with labels where the metric needs them.
        batch: samples in one run.
        metric: a name in ``runtime.metrics.METRICS``, or ``plugin:...``.

    Raises:
        BadRequest: there is no such metric, or it does not fit the outputs, labels or inputs.
        RunError: a model does not run.
    """
    return compare_sessions(_session(pruned), _session(graph), samples, batch, metric)


def compare_sessions(other: Runs, original: Runs, samples: Samples, batch: int, metric: str) -> Accuracy:
    """As ``compare_accuracy``, for models that are loaded already."""
    judged = _metric(metric, samples)
    chosen = default_output(original.outputs, None).name
    names = None if judged.whole else [chosen]
    pairs = ((_run(original, feeds, names), _run(other, feeds, names)) for feeds in samples.batches(batch))
    return _compared(judged, pairs, chosen, samples, batch)


def compare_answers(other: Runner, original: Runner, samples: Samples, batch: int, metric: str) -> Accuracy:
    """As ``compare_accuracy``, for graphs that have run to their outputs on these samples in batches of this size."""
    judged = _metric(metric, samples)
    chosen = next(iter(float_outputs(original.graph)), None)
    if chosen is None:
        raise BadRequest("the model has no floating-point output to judge.")
    names = computed_outputs(original.graph) if judged.whole else [chosen]
    pairs = zip(original.branch(names, {}), other.branch(names, {}), strict=True)
    return _compared(judged, pairs, chosen, samples, batch)


def _metric(name: str, samples: Samples) -> Metric:
    judged = find_metric(name)
    if judged.needs == "labels" and samples.answers is None:
        raise BadRequest(
            f"--metric {name} needs labels: store them as y, label or labels beside the inputs, or name them with "
            "--labels."
        )
    return judged


def _session(graph: Graph) -> Runs:
    if too_large(graph):
        return Portioned(graph)
    options = SessionOptions(spinning=False)  # between the runs others work
    return open_session(serialize_with_data(graph.model, graph.folder), options=options)


def _count(samples: Samples, feeds: Feeds) -> int:
    return 1 if samples.store.single else len(next(iter(feeds.values())))


def _compared(
    judged: Metric,
    pairs: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]],
    chosen: str,
    samples: Samples,
    batch: int,
) -> Accuracy:
    """Judge the outputs of the original and of the other, batch by batch."""
    scores: tuple[list[Scores], list[Scores]] = ([], [])
    for (feeds, labels), pair in zip(samples.labelled(batch), pairs, strict=True):
        reference = pair[0][chosen] if judged.needs == "reference" else None
        for found, outputs in zip(scores, pair, strict=True):
            count = _count(samples, feeds)
            found.append(judged.observe(Batch(outputs[chosen], outputs, reference, labels, feeds, count)))
    return _accuracy(judged, _joined(scores[0]), _joined(scores[1]), len(samples))


def _run(session: Runs, feeds: Feeds, names: list[str] | None) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in session.run(feeds, names).items()}


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(np.concatenate([p.totals for p in parts]), np.concatenate([p.weights for p in parts]))


def _accuracy(judged: Metric, dense: Scores, pruned: Scores, samples: int) -> Accuracy:
    before, after = (_value(judged, s) for s in (dense, pruned))
    sign = 1 if judged.better == "higher" else -1
    change = sign * (_influence(judged, dense) - _influence(judged, pruned))
    drop = sign * (before - after)
    if judged.rate and judged.needs == "reference":
        low, high = wilson(drop, len(change))
    elif judged.rate:
        low, high = paired(change, drop)
    else:
        n = len(change)
        spread = LEVEL * math.sqrt(float(np.square(change).sum()) * n / (n - 1)) if n > 1 else math.inf
        low, high = drop - spread, drop + spread
    return Accuracy(judged.name, before, after, drop, low, high, samples, judged.rate)


def _value(judged: Metric, scores: Scores) -> float:
    total = float(scores.weights.sum())
    if not total:
        raise BadRequest(f"{judged.name}: there is nothing to judge on these samples.")
    return judged.finish(float(scores.totals.sum()) / total)


def _influence(judged: Metric, scores: Scores) -> NDArray[np.float64]:
    """What each sample contributes to the value, less its mean; the sum of squares is the variance of the value."""
    total = float(scores.weights.sum())
    mean = float(scores.totals.sum()) / total
    return np.asarray((scores.totals - mean * scores.weights) / total * judged.slope(mean))


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of ``count`` samples; not empty where the share is 0.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    z2 = LEVEL**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = LEVEL / (1 + z2 / count) * math.sqrt(max(share * (1 - share), 0.0) / count + z2 / (4 * count**2))
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def paired(change: NDArray[np.float64], drop: float) -> tuple[float, float]:
    """95 % interval of the difference of two shares on the same samples; not empty where none differs.

    Half a sample is added to each cell of the table of who is right: Agresti & Min, "Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 2005.

    Args:
        change: what each sample contributes to the difference, less the mean; shape (n,).
        drop: the difference.
    """
    n = len(change)
    squares = float(np.square(change * n).sum()) + n * drop**2 + 1
    centre = n * drop / (n + 2)
    spread = LEVEL * math.sqrt(max(squares / (n + 2) - centre**2, 0.0) / (n + 2))
    return centre - spread, centre + spread
