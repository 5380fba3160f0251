"""How good a model is on samples: run it batch by batch and judge the outputs by a metric."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.backends import Session, open_session
from runtime.class_labels import numbered
from runtime.errors import BadRequest, RunError
from runtime.feeds import Array, Feeds, in_width
from runtime.metrics import Batch, Metric, Tally, default_output
from runtime.model_files import near
from runtime.plugins import find_metric
from runtime.samples import Samples
from runtime.steps import Count

Model = Path | str | bytes | Session


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        metric: its name.
        value: over all samples.
        error: standard error of the value over samples: binomial for a rate; None where it cannot be told.
        samples: number of samples.
        seconds: time it took, loading excluded.
        better: "higher" or "lower".
        output: the output that was judged.
        rate: whether the value is a share of samples.
        notes: what was done to the samples or left out.
    """

    metric: str
    value: float
    error: float | None
    samples: int
    seconds: float
    better: str
    output: str
    rate: bool
    notes: tuple[str, ...] = ()

    def drop_to(self, other: Evaluation) -> float:
        """How much worse ``other`` is than this, in the metric's own unit; negative where it is better."""
        return self.value - other.value if self.better == "higher" else other.value - self.value


def evaluate(
    model: Model,
    samples: Samples,
    metric: str,
    *,
    reference: Model | None = None,
    output: str | None = None,
    batch: int = 32,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Judge a model's outputs on samples, holding one batch of outputs at a time.

    Args:
        model: path, bytes, or a session that is open already.
        samples: inputs, with labels where the metric needs them.
        metric: a name in ``runtime.metrics.METRICS``, or ``plugin:...``.
        reference: the model to compare with, for ``agreement``, ``mse``, ``psnr`` and ``cosine``.
        output: the output to judge; the first floating-point one by default.
        batch: most samples in one run; the file may fix another number.
        progress: called with a line after each tenth of the samples.

    Raises:
        BadRequest: the metric lacks labels or a reference, or samples, labels and outputs do not fit each other.
        RunError: a model does not load or run.
    """
    judged = find_metric(metric)
    if judged.needs == "reference" and reference is None:
        raise BadRequest(f"--metric {metric} compares with another model: give the original with --reference.")
    if judged.needs != "reference" and reference is not None:
        raise BadRequest(f"--metric {metric} does not compare models; leave out --reference.")
    if judged.needs == "labels" and samples.answers is None:
        raise BadRequest(
            f"--metric {metric} needs labels: store them as y, label or labels beside the inputs, or name them with "
            "--labels."
        )
    if not len(samples):
        raise BadRequest("there are no samples to evaluate.")
    session = _open(model)
    original = _open(reference) if reference is not None else None
    spec = default_output(session.outputs, output)
    samples, chosen = numbered(samples, spec.classes), spec.name
    if original is not None and chosen not in {o.name for o in original.outputs}:
        raise BadRequest(f"the reference has no output '{chosen}': {', '.join(o.name for o in original.outputs)}.")
    tally, done, started = Tally(judged), 0, time.perf_counter()
    for feeds, labels in samples.labelled(batch):
        count = 1 if samples.store.single else len(next(iter(feeds.values())))
        tally.add(_observed(judged, session, original, chosen, feeds, labels, count))
        done += count
        if progress is not None:
            progress(Count("judging samples", done, len(samples)))
    return Evaluation(
        metric=metric,
        value=tally.value,
        error=tally.error,
        samples=done,
        seconds=time.perf_counter() - started,
        better=judged.better,
        output=chosen,
        rate=judged.rate,
        notes=samples.notes,
    )


def _open(model: Model) -> Session:
    if not isinstance(model, (Path, str, bytes)):
        return model
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise BadRequest(f"{model}: no such file.{near(Path(model))}")
    return open_session(model)


def _observed(
    judged: Metric,
    session: Session,
    original: Session | None,
    chosen: str,
    feeds: Feeds,
    labels: Array | None,
    count: int,
) -> Batch:
    outputs = _run(session, feeds, None if judged.whole else [chosen])
    reference = None if original is None else _run(original, feeds, [chosen])[chosen]
    return Batch(outputs[chosen], outputs, reference, labels, feeds, count)


def _run(session: Session, feeds: Feeds, names: list[str] | None) -> dict[str, Array]:
    missing = [spec.name for spec in session.inputs if spec.name not in feeds]
    if missing:
        raise BadRequest(f"the samples lack the input {', '.join(missing)}; they hold {', '.join(feeds)}.")
    try:
        found = session.run({spec.name: in_width(feeds[spec.name], spec.dtype) for spec in session.inputs}, names)
    except RunError as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise RunError(f"{error}\nThe inputs were {shapes}.") from error
    return {name: np.asarray(value) for name, value in found.items()}
