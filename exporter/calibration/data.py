"""Calibration inputs as ``prune`` takes them: from data or made up, parts of them held out, in batches that fit."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from exporter.calibration.accuracy import hold_nan, why_no_labels
from exporter.calibration.evidence import HELD_OUT
from exporter.calibration.outputs import classes_of
from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.model_file import finished
from exporter.normalise import input_specs, is_large, serialize_with_data
from exporter.synthetic import synthetic_samples
from runtime.backends import SessionOptions, open_session
from runtime.class_labels import whole
from runtime.errors import BadRequest, RunError
from runtime.feeds import Feeds
from runtime.images import Preprocess
from runtime.nouns import counted
from runtime.samples import Samples, load_samples, samples_of
from runtime.sources import USUAL_LABELS

SYNTHETIC = "synthetic"
FEWEST = 16
"""Samples below which least squares learns nothing worth keeping."""
JUDGES = 2048
"""Most samples that tries are judged on."""

_MOST_IN_A_BATCH = 64
_TENSOR_BYTES, _ALL_BYTES = 1 << 26, 1 << 30
"""Most of one tensor of a run, and of all where they are kept."""
_JUDGING = 4
"""One of so many samples judges where the data hold no more than those to fit to."""
_MORE_HELD = 512

Source = str | os.PathLike[str] | Samples | Feeds | Iterable[Feeds]


@dataclass(frozen=True)
class Calibration:
    """Inputs to choose and to fit with, and others to judge with. No sample is in two of the parts.

    Attributes:
        fit: the samples that are used.
        held: an eighth, used for nothing but the before and after of the report; more where judges are set apart.
        batch: samples in one run.
        batch_of_all: the same where a run keeps all its tensors.
        source: what they came from, for the reader.
        synthetic: whether they were made up.
        judges: samples to choose between tries with; None where there is nothing to choose.
        metric: how outputs are judged; None: by ``top1`` where there are labels, else by ``agreement``.
    """

    fit: Samples
    held: Samples
    batch: int
    batch_of_all: int
    source: str
    synthetic: bool
    judges: Samples | None = None
    metric: str | None = None

    @property
    def used(self) -> int:
        """Number of samples in all parts but the judges."""
        return len(self.fit) + len(self.held)


def calibration_of(
    source: Source,
    graph: Graph,
    *,
    preprocess: Preprocess | None = None,
    limit: int = 512,
    seed: int = 0,
    labels: str | None = None,
    metric: str | None = None,
    judged: bool = False,
    strict: bool = False,
) -> Calibration:
    """Load calibration inputs for a graph.

    Args:
        source: ``synthetic``, a path as ``load_samples`` takes it, ``Samples``, or feeds.
        graph: the graph.
        preprocess: for images and pixels; see ``load_samples``.
        limit: most samples to use; of made-up ones there are at least as many as are needed.
        seed: of the order, which decides the parts, and of synthetic inputs.
        labels: the array or key that holds labels; by default those under the usual names, if there are any.
        metric: see ``Calibration``.
        judged: set samples apart to choose between tries with: what the data hold beyond ``limit``, up to ``JUDGES``
            and less a quarter that joins the held-out ones, or a quarter of them all if that is more. Of made-up ones
            as many as ``limit``: what they tell of a model is not worth the time to draw more.
        strict: refuse labels that do not fit, where by default a note says why agreement judges instead: a limit would
            mean something else.

    Raises:
        UsageError: the graph has no inputs, there are fewer than ``FEWEST`` samples, or labels do not fit.
        BadRequest: the data cannot be read, or do not fit the model; there are no labels of that name.
    """
    if not input_specs(graph.model):
        raise UsageError("the model has no inputs, so there is nothing to calibrate it with: leave --calib out.")
    more = (min(JUDGES, limit) if _made_up(source) else JUDGES) if judged else 0
    samples, text, misfit = _read(source, graph, preprocess, limit + more, seed, labels)
    run = samples.run
    fewest = max(FEWEST, (3 if judged else 2) * run)
    if len(samples) < fewest and _made_up(source):
        enough = max(fewest, math.ceil((limit + more) * fewest / len(samples)))  # a run may count as one sample
        samples, text, misfit = _read(source, graph, preprocess, enough, seed, labels)
    if len(samples) < fewest:
        why = f", because the model takes {run} at a time" if run > 1 else "; a few hundred do well"
        raise UsageError(f"--calib {text} holds {counted(len(samples), 'sample')}; at least {fewest} are needed{why}.")
    samples = samples.shuffled(seed)  # what is sorted by class is no order to divide by
    _check_numbers(samples.part(0, fewest), text)
    if metric is None and (why := misfit or _why_no_labels(graph, samples)):
        if strict:
            raise UsageError(f"--calib {text}: the labels do not fit: {why} To judge without: --metric agreement.")
        note = f"the labels do not judge, agreement with the original does: {why}"
        samples = replace(samples, notes=(*samples.notes, note))
        if samples.answers is not None and hold_nan(samples.answers):
            samples = replace(samples, answers=None)
    count = len(samples)
    spare = min(_runs(max(count - limit, count // _JUDGING), run, 1), count - 2 * run) if judged else 0
    also_held = _runs(min(spare // _JUDGING, _MORE_HELD), run) if count > limit else 0
    cut = count - spare - _runs((count - spare) // HELD_OUT, run, 1)
    kept = count - spare + also_held
    fit, held, judges = samples.part(0, cut), samples.part(cut, kept), samples.part(kept, count)
    given = samples.store.fixed or samples.store.single or graph.batch > 1
    batch, of_all = 1, 1
    if given or _takes_two(graph, fit.first(2)):
        times = _times_larger(graph, fit)
        batch = batch_of(graph, times)
        of_all = min(batch, _most(_ALL_BYTES, times * sum(_bytes_of_samples(graph))))
    return Calibration(fit, held, batch, of_all, text, _made_up(source), judges if judged else None, metric)


def _takes_two(graph: Graph, samples: Samples) -> bool:
    """Whether two samples go into a run. A file may say that any number does, and squeeze the batch away."""
    if is_large(graph.model):
        return True
    try:
        session = open_session(
            serialize_with_data(finished(graph), graph.folder), options=SessionOptions(optimize=False)
        )
        for feeds in samples.batches(2):
            session.run(feeds)
    except RunError:
        return False
    return True


def _check_numbers(samples: Samples, text: str) -> None:
    """Refuse inputs that are never numbers; here and there one that is not does no harm."""
    bad: Counter[str] = Counter()
    for feed in samples.batches(1):
        bad.update(name for name, values in feed.items() if values.dtype.kind == "f" and np.isnan(values).any())
    runs = len(samples.counts(1))
    for name in (n for n, times in bad.items() if times == runs):
        raise BadRequest(f"--calib {text}: every sample looked at holds NaN in input '{name}'.")


def _runs(count: int, run: int, least: int = 0) -> int:
    """About so many samples that fill runs of a fixed size; ``least`` runs at least."""
    return max(count // run, least) * run


def _made_up(source: Source) -> bool:
    return isinstance(source, str) and source == SYNTHETIC


def _read(
    source: Source, graph: Graph, preprocess: Preprocess | None, limit: int, seed: int, labels: str | None
) -> tuple[Samples, str, str]:
    """Samples with labels where there are any, what messages call them, and why labels were left out."""
    inputs = input_specs(graph.model)
    if _made_up(source):
        if labels is not None:
            raise UsageError("--labels: synthetic inputs have none.")
        return synthetic_samples(graph, limit, seed), SYNTHETIC, ""
    if isinstance(source, Samples):
        mixed = source.shuffled(seed) if limit < len(source) else source
        return whole(mixed.part(0, limit), classes_of(graph)), "samples", ""
    if not isinstance(source, (str, os.PathLike)):
        samples = samples_of(source, inputs, labels=labels, limit=limit, seed=seed)
        return whole(samples, classes_of(graph)), "feeds", ""
    path = Path(source)
    usual = tuple(name for name in USUAL_LABELS if name not in {spec.name for spec in inputs})
    names = usual if labels is None else labels
    misfit = ""
    try:
        samples = load_samples(path, inputs, preprocess=preprocess, limit=limit, seed=seed, labels=names)
        samples = whole(samples, classes_of(graph))
    except BadRequest as error:
        if labels is not None:
            raise
        # what is called y may be something else
        samples, misfit = load_samples(path, inputs, preprocess=preprocess, limit=limit, seed=seed), str(error)
    return samples, str(source), misfit


def _why_no_labels(graph: Graph, samples: Samples) -> str:
    """Why labels say nothing of the model's outputs; empty where they do, or where it does not run as it is."""
    try:
        return why_no_labels(graph, samples)
    except RunError:
        return ""


def batch_of(graph: Graph, times: float = 1.0) -> int:
    """Samples in one run, so that no tensor of it takes more than 64 MB.

    Args:
        graph: the graph.
        times: how much larger a sample is than the sizes that the graph is described at.
    """
    return _most(_TENSOR_BYTES, times * max(_bytes_of_samples(graph), default=1))


def _most(room: int, each: float) -> int:
    """Samples in one run, of so many bytes each, that there is room for."""
    return int(np.clip(room / max(each, 1), 1, _MOST_IN_A_BATCH))


def _bytes_of_samples(graph: Graph) -> list[int]:
    """What each tensor takes for one sample, as a rule."""
    shapes = [graph.shape(name) for name in graph.producer if name not in graph.constants]
    return [4 * math.prod(shape) // graph.batch for shape in shapes if shape is not None]


def _times_larger(graph: Graph, samples: Samples) -> float:
    """How much larger a sample is than the sizes that a graph is described at, where these are any."""
    feed = next(samples.first(1).batches(1))
    ran = max(samples.run, 1)
    sizes = graph.binding.shapes
    each = [(np.size(feed[n]) / ran, math.prod(sizes[n]) / graph.batch) for n in feed if n in sizes]
    return max((given / bound for given, bound in each if bound), default=1.0)
