"""What a model's outputs are worth: metrics against labels or another model's outputs, summed batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from runtime.backends import TensorSpec
from runtime.errors import BadRequest
from runtime.feeds import Array, Feeds
from runtime.nouns import counted

IGNORED = -100
"""Label of a position that does not count (padding)."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """What a metric sees of one run.

    Attributes:
        output: the output looked at, [N, ...] (one run is one sample where an input has no batch axis).
        outputs: all outputs that were asked for, by name.
        reference: the same output of the original model, if there is one.
        labels: of the samples, [N, ...], if there are any.
        feeds: what was fed.
        samples: number of samples N.
    """

    output: Array
    outputs: Mapping[str, Array]
    reference: Array | None
    labels: Array | None
    feeds: Feeds
    samples: int


@dataclass(frozen=True, eq=False)
class Scores:
    """What a batch adds: sums of the quantity and how much of it there is, per sample or for the whole batch.

    Attributes:
        totals: float64 [n].
        weights: float64 [n]; the metric is the sum of all totals over the sum of all weights.
    """

    totals: Numbers
    weights: Numbers


Observe = Callable[[Batch], Scores]


@dataclass(frozen=True)
class Metric:
    """One way to judge outputs.

    Attributes:
        name: as asked for.
        better: "higher" or "lower".
        needs: "labels", "reference" or "".
        observe: what one batch adds.
        rate: a share of samples, whose standard error is the binomial one.
        finish: the value from the mean.
        slope: derivative of ``finish`` at the mean, for the standard error.
        whole: whether it wants every output, not only the one looked at.
    """

    name: str
    better: str
    needs: str
    observe: Observe
    rate: bool = False
    finish: Callable[[float], float] = float
    slope: Callable[[float], float] = lambda _: 1.0
    whole: bool = False


METRICS: dict[str, Metric] = {}


def metric(
    name: str, better: str, needs: str, *, rate: bool = False, exponential: bool = False
) -> Callable[[Observe], Observe]:
    """Register a function that observes batches as the metric ``name``; ``exponential`` reports exp of the mean."""

    def register(observe: Observe) -> Observe:
        if name in METRICS:
            raise ValueError(f"metric '{name}' is registered twice")
        last = _exp if exponential else float
        slope = _exp if exponential else lambda _: 1.0
        METRICS[name] = Metric(name, better, needs, observe, rate, last, slope)
        return observe

    return register


class Tally:
    """Running sums of a metric: constant memory, however many batches are added."""

    def __init__(self, judged: Metric) -> None:
        self.metric = judged
        self.count = 0
        self._sums = np.zeros(5)

    def add(self, batch: Batch) -> None:
        """Add one batch.

        Raises:
            BadRequest: the metric does not fit the outputs, labels or inputs.
        """
        scores = self.metric.observe(batch)
        t, w = scores.totals, scores.weights
        self.count += len(t)
        self._sums += (t.sum(), w.sum(), (t * t).sum(), (t * w).sum(), (w * w).sum())

    @property
    def value(self) -> float:
        """The metric over everything added.

        Raises:
            BadRequest: nothing that counts was added.
        """
        if not self._sums[1]:
            raise BadRequest(f"{self.metric.name}: nothing to judge; every label is {IGNORED}, or there is no sample.")
        return self.metric.finish(float(self._sums[0] / self._sums[1]))

    @property
    def error(self) -> float | None:
        """Standard error of the value over samples; None where one number says nothing of it, or there is no value.

        For a ratio of sums m = sum(t) / sum(w): the root of sum((t - m w)^2) over sum(w), which is the binomial error
        for rates; times n / (n - 1) under the root for other means.
        """
        total, weight, squares, products, weights = self._sums.tolist()
        if not weight or (self.count < 2 and not self.metric.rate):
            return None
        mean = total / weight
        if not math.isfinite(mean):
            return None
        variance = max(0.0, squares - 2 * mean * products + mean * mean * weights) / weight**2
        if not self.metric.rate:
            variance *= self.count / (self.count - 1)
        return math.sqrt(variance) * self.metric.slope(mean)


def default_output(outputs: Sequence[TensorSpec], name: str | None) -> TensorSpec:
    """The output to look at: the one named, else the first floating-point one.

    Raises:
        BadRequest: there is no such output.
    """
    if name is not None:
        found = next((o for o in outputs if o.name == name), None)
        if found is None:
            raise BadRequest(f"--output {name}: the model has {', '.join(o.name for o in outputs)}.")
        return found
    found = next((o for o in outputs if o.dtype is not None and o.dtype.kind == "f"), None)
    if found is None:
        raise BadRequest("the model has no floating-point output; name another with --output.")
    return found


def _exp(mean: float) -> float:
    return math.exp(min(mean, 700.0))


def _ones(totals: Array) -> Scores:
    values = np.asarray(totals, np.float64)
    return Scores(values, np.ones(len(values)))


def _both(batch: Batch) -> tuple[Array, Array]:
    """Output and reference, which have one shape, and are not empty."""
    mine, theirs = batch.output, batch.reference
    if theirs is None:
        raise BadRequest("there is no reference output to compare with.")
    if mine.shape != theirs.shape:
        raise BadRequest(
            f"the outputs differ in shape: {list(mine.shape)}, and {list(theirs.shape)} in the reference. Where that "
            "depends on what the model finds, judge with a function of yours: --metric plugin:file.py:function."
        )
    if not mine.size:
        raise BadRequest(f"the output has no elements: {list(mine.shape)}.")
    return mine, theirs


def _pair(batch: Batch) -> tuple[Numbers, Numbers]:
    """Output and reference, [N, elements] each."""
    mine, theirs = _both(batch)
    rows = len(mine) if mine.ndim and len(mine) == batch.samples else 1
    one, other = (np.asarray(a, np.float64).reshape(rows, -1) for a in (mine, theirs))
    return one, other


def class_axis(shape: Sequence[int], samples: int) -> int | None:
    """The axis along which the classes of an output lie; None where it holds none.

    It is the only one with several places, if there is one; else the last. In images it is the second (channels first)
    where that is the shorter, or where height and width after it are nearer to each other than what lies before the
    last; in volumes the same, and where neither is, the second. An axis that counts the samples of a run holds no
    classes: one number for each sample is a score.

    Args:
        shape: of the output.
        samples: in the run it comes from.
    """
    if not shape or tuple(shape) == (samples,):
        return None
    several = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    axis = several[0] if len(several) == 1 else len(shape) - 1
    if len(several) > 1 and len(shape) > 3:
        first, last = _spread(shape[2:]), _spread(shape[1:-1])
        shorter = shape[1] < shape[-1] or (len(shape) > 4 and first == last)
        if (first < last and min(shape[1:]) > 1) or (shorter and not last == 1 < first):
            axis = 1
    return axis if shape[axis] > 1 else None


def _spread(sizes: Sequence[int]) -> float:
    """How far sizes are apart: the largest over the smallest."""
    return max(sizes) / max(min(sizes), 1)


@metric("mse", "lower", "reference")
def mse(batch: Batch) -> Scores:
    """Mean squared difference from the reference output, mean over samples."""
    one, other = _pair(batch)
    return _ones(np.square(one - other).mean(1))


@metric("psnr", "higher", "reference")
def psnr(batch: Batch) -> Scores:
    """10 log10(range^2 / mse) in dB, mean over samples; the range is that of the reference output of the sample.

    At most 138 dB, where the difference is the resolution of float32.
    """
    one, other = _pair(batch)
    span = np.ptp(other, axis=1)
    span = np.where(span > 0, span, np.maximum(np.abs(other).max(1), 1e-30))
    floor = np.finfo(np.float32).eps
    return _ones(-20 * np.log10(np.maximum(np.sqrt(np.square(one - other).mean(1)) / span, floor)))


@metric("cosine", "higher", "reference")
def cosine(batch: Batch) -> Scores:
    """Cosine of the angle between output and reference output, mean over samples; two zero outputs agree."""
    one, other = _pair(batch)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = ~one.any(1) & ~other.any(1)
    return _ones(np.where(norms > 0, (one * other).sum(1) / np.where(norms > 0, norms, 1), same))


@metric("agreement", "higher", "reference", rate=True)
def agreement(batch: Batch) -> Scores:
    """Share of samples whose largest output is that of the reference.

    Of several positions in a sample the share that agrees counts. NaN agrees with nothing.
    """
    mine, theirs = _both(batch)
    axis = class_axis(mine.shape, batch.samples)
    if axis is None:
        raise BadRequest(f"agreement: the output {list(mine.shape)} has no classes to choose from; use mse or cosine.")
    valid = ~(np.isnan(mine).any(axis) | np.isnan(theirs).any(axis)) if mine.dtype.kind == "f" else True
    same = (mine.argmax(axis) == theirs.argmax(axis)) & valid
    rows = len(mine) if mine.ndim > 1 and len(mine) == batch.samples else 1
    return _ones(same.reshape(rows, -1).mean(1))


@metric("top1", "higher", "labels", rate=True)
def top1(batch: Batch) -> Scores:
    """Share of samples whose largest output is that of the label."""
    return _top(batch, 1)


@metric("top5", "higher", "labels", rate=True)
def top5(batch: Batch) -> Scores:
    """Share of samples whose label is among the five largest outputs."""
    return _top(batch, 5)


def _top(batch: Batch, most: int) -> Scores:
    """Of several positions in a sample the share that is right counts; ``IGNORED`` ones do not."""
    found, labels = _by_class(batch)
    logits = found.astype(np.float64)
    classes = logits.shape[-1]
    if classes <= most:
        raise BadRequest(f"top{most}: the output has only {counted(classes, 'class')}, so every answer would be right.")
    judged = labels != IGNORED
    if ((labels < 0) | (labels >= classes))[judged].any():
        low, high = labels[judged].min(), labels[judged].max()
        raise BadRequest(f"top{most}: labels go from {low} to {high}, the output has {counted(classes, 'class')}.")
    target = np.where(judged, labels, 0)[..., None]
    own = np.take_along_axis(logits, target, -1)
    # equal values rank by their index, as argmax does: an output that is the same everywhere is not always right
    before = (logits > own) | ((logits == own) & (np.arange(classes) < target))
    right = (before.sum(-1) < most) & ~np.isnan(logits).any(-1) & judged
    rows = len(labels) if len(labels) == batch.samples else 1
    weights = judged.reshape(rows, -1).sum(1).astype(np.float64)
    shares = np.divide(right.reshape(rows, -1).sum(1), weights, out=np.zeros(rows), where=weights > 0)
    return Scores(shares, (weights > 0).astype(np.float64))


def _by_class(batch: Batch) -> tuple[Array, NDArray[np.int64]]:
    """Outputs with the classes last, [..., classes], and whole-number labels [...]."""
    logits, labels = batch.output, batch.labels
    if labels is None:
        raise BadRequest("the data hold no labels.")
    if logits.ndim < 2:
        raise BadRequest(f"the output {list(logits.shape)} has no axis of classes.")
    if labels.shape == logits.shape and labels.ndim == 2:  # one-hot
        return logits, labels.argmax(1).astype(np.int64)
    candidates = [labels]
    if len(labels) == 1 and labels.ndim > 1:
        candidates.append(labels[0])  # a run of several samples, labelled together
    if labels.ndim > 1 and labels.shape[-1] == 1:
        candidates.append(labels[..., 0])
    narrow = [axis for axis in range(1, logits.ndim) if logits.shape[axis] == 1]
    for values, found in product((logits, logits.squeeze(tuple(narrow))), candidates):
        for axis in (values.ndim - 1, 1):
            if values.ndim > axis and found.shape == (*values.shape[:axis], *values.shape[axis + 1 :]):
                return np.moveaxis(values, axis, -1), whole_numbers(found)
    raise BadRequest(f"labels of shape {list(labels.shape)} do not fit the output {list(logits.shape)}.")


def whole_numbers(labels: Array) -> NDArray[np.int64]:
    """Labels as int64.

    Raises:
        BadRequest: they are not whole numbers.
    """
    if labels.dtype.kind not in "iubf" or (np.asarray(labels, np.float64) % 1 != 0).any():
        raise BadRequest(f"the labels are {labels.dtype}, not whole numbers.")
    return labels.astype(np.int64)


@metric("perplexity", "lower", "", exponential=True)
def perplexity(batch: Batch) -> Scores:
    """Exp of the mean of -ln p(next id), in nats per id; logits [N, S, V], each position predicting the next id.

    The ids are the labels [N, S], or [N, S + 1], or without labels the model's own ids. Logits for one position,
    [N, V], take the label of each sample, [N]. A label of ``IGNORED`` does not count; the model's own ids all do.
    """
    logits = batch.output
    ids = whole_numbers(batch.labels if batch.labels is not None else _own_ids(batch))
    if logits.ndim == 2 and ids.shape in {logits.shape[:1], (len(logits), 1)} and batch.labels is not None:
        ids, logits = ids.reshape(-1, 1), logits[:, None]
    elif logits.ndim == 3 and ids.shape == (len(logits), logits.shape[1] + 1):
        ids = ids[:, 1:]
    elif logits.ndim == 3 and ids.shape == logits.shape[:2] and ids.shape[1] > 1:
        ids, logits = ids[:, 1:], logits[:, :-1]
    else:
        raise BadRequest(
            f"perplexity: logits of shape {list(logits.shape)} do not fit ids of shape {list(ids.shape)}; expected "
            "[N, S, V] with [N, S] or [N, S + 1], or [N, V] with labels [N]."
        )
    counted = ids != IGNORED
    if ((ids < 0) | (ids >= logits.shape[-1]))[counted].any():
        raise BadRequest(
            f"perplexity: ids outside 0 to {logits.shape[-1] - 1}, which is what the output has logits for."
        )
    nats = np.zeros(ids.shape)
    for row, (values, wanted, valid) in enumerate(zip(logits, ids, counted, strict=True)):
        nats[row, valid] = -_log_softmax(values[valid], wanted[valid])
    return Scores(nats.sum(1), counted.sum(1).astype(np.float64))


def _log_softmax(logits: Array, wanted: NDArray[np.int64]) -> Numbers:
    """Logarithm of the probability of each wanted class, [n]; logits [n, classes]."""
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    own = np.take_along_axis(values, wanted[:, None], -1)[:, 0]
    return np.asarray(own - np.log(np.exp(values).sum(-1)), np.float64)


def _own_ids(batch: Batch) -> Array:
    shape = batch.output.shape[:2]
    found = {n: a for n, a in batch.feeds.items() if a.dtype.kind in "iu" and a.shape == shape and a.ndim == 2}
    if "input_ids" in found:
        return found["input_ids"]
    if len(found) != 1:
        raise BadRequest(
            f"perplexity: {'several inputs could be' if found else 'no input is'} the ids that the logits "
            f"{list(batch.output.shape)} predict ({', '.join(found or batch.feeds)}); give them as labels."
        )
    return next(iter(found.values()))
