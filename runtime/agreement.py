"""How far the outputs of two models are apart on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.backends import Array, Session
from runtime.feeds import Feeds
from runtime.metrics import class_axis


@dataclass(frozen=True)
class OutputDifference:
    """One output of two models, over all runs.

    Attributes:
        name: of the first model's output; the other's has the same name, or the same place.
        largest: greatest absolute difference.
        mean: mean absolute difference.
        relative: greatest difference relative to the standard deviation of the first model's output.
        cosine: cosine of the two outputs.
        top1: share of positions where the largest entry along the classes is the same; None where there are none.
        problem: why they cannot be compared; then the figures are NaN.
    """

    name: str
    largest: float = float("nan")
    mean: float = float("nan")
    relative: float = float("nan")
    cosine: float = float("nan")
    top1: float | None = None
    problem: str = ""


def output_differences(
    first: Session, other: Session, feeds: Sequence[Feeds], others: Sequence[Feeds]
) -> list[OutputDifference]:
    """Run both models and compare what comes out.

    Args:
        first, other: the models.
        feeds: inputs of the first model, one or more sets.
        others: those of the other one, which may lack some or have other sizes.

    Raises:
        RunError: a model does not run.
    """
    pairs = _pairs(first, other)
    runs = [(first.run(a), other.run(b)) for a, b in zip(feeds, others, strict=True)]
    samples = [next((len(v) for v in feed.values() if np.ndim(v)), 1) for feed in feeds]
    return [_difference(name, match, runs, samples) for name, match in pairs]


def _pairs(first: Session, other: Session) -> list[tuple[str, str]]:
    """Names that belong together: equal ones, else those in the same place; "" for no partner."""
    theirs = [o.name for o in other.outputs]
    taken = {o.name for o in first.outputs} & set(theirs)
    pairs = []
    for place, output in enumerate(first.outputs):
        match = output.name if output.name in taken else ""
        if not match and len(theirs) == len(first.outputs) and theirs[place] not in taken:
            match = theirs[place]
        pairs.append((output.name, match))
    return pairs


def _difference(
    name: str, match: str, runs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]], samples: Sequence[int]
) -> OutputDifference:
    if not match:
        return OutputDifference(name, problem="the other model has no such output")
    got, want = (
        [np.asarray(values[key]) for values in side]
        for key, side in ((match, [b for _, b in runs]), (name, [a for a, _ in runs]))
    )
    shapes = {(a.shape, b.shape) for a, b in zip(want, got, strict=True) if a.shape != b.shape}
    if shapes:
        a, b = shapes.pop()
        return OutputDifference(name, problem=f"shapes differ: {list(a)} and {list(b)}")
    if any(a.dtype.kind not in "fiub" for a in (*want, *got)):
        return OutputDifference(name, problem="not numbers")
    x, y = (np.concatenate([np.asarray(a, np.float64).ravel() for a in side]) for side in (want, got))
    if not x.size:
        return OutputDifference(name, problem="empty")
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(x - y))
    apart = np.where(np.isnan(apart), np.inf, apart)
    finite = np.isfinite(x) & np.isfinite(y)
    spread = float(x[finite].std()) if finite.any() else 0.0
    largest = float(apart.max())
    relative = largest / spread if spread else (0.0 if largest == 0 else float("inf"))
    return OutputDifference(
        name, largest, float(apart.mean()), relative, _cosine(x[finite], y[finite]), _top1(want, got, samples)
    )


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length else float(np.array_equal(x, y))


def _top1(want: Sequence[Array], got: Sequence[Array], samples: Sequence[int]) -> float | None:
    same = []
    for a, b, count in zip(want, got, samples, strict=True):
        axis = class_axis(a.shape, count) if a.dtype.kind == "f" else None
        if axis is None:
            return None
        same.append(np.ravel(a.argmax(axis) == b.argmax(axis)))
    return float(np.concatenate(same).mean())
