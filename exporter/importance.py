"""Importance: one number per unit of a group, higher means keep."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.ahead import MANY, made_ahead
from exporter.codes import is_plain, numbers_of
from exporter.errors import ModelError, UsageError
from exporter.graph import Graph
from exporter.groups import Group, Groups
from exporter.halves import numbers
from exporter.score_names import CALIBRATED, LEARNED
from exporter.spans import Span
from exporter.tensors import Array, row_ranges
from runtime.feeds import Feeds
from runtime.nouns import out_of
from runtime.registry import enter
from runtime.steps import Count

Scores = dict[str, NDArray[np.float64]]

_ROWS_AT_ONCE = 512
_LARGE = 1 << 23
"""Elements from which a weight is summed some rows at a time."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    Attributes:
        consumers: add the weights that read a unit to those that produce it.
        seed: for ``random``.
        step: called with a line now and then.
    """

    consumers: bool = False
    seed: int = 0
    step: Callable[[str], None] = lambda _: None


class Comparable(dict[str, NDArray[np.float64]]):
    """Scores whose values mean the same in every group, so that no global ranking normalises them again."""


def refuse_mute(scores: Iterable[NDArray[np.float64]], option: str) -> None:
    """Refuse scores that rank nothing.

    Args:
        scores: of each group or weight.
        option: that asked for them, for the message.

    Raises:
        ModelError: one is no finite number, or all are zero.
    """
    held = list(scores)
    wrong, count = sum(int((~np.isfinite(s)).sum()) for s in held), sum(s.size for s in held)
    if wrong:
        raise ModelError(
            f"{option}: {out_of(wrong, count, 'score', 'is no finite number', 'are no finite numbers')}, so they "
            "rank nothing. Choose another one, or check the data."
        )
    if count and not any(s.any() for s in held):
        raise ModelError(
            f"{option}: every score is zero, so they rank nothing: the outputs say nothing of what is scored. Choose "
            "another one, or give --labels."
        )


Scorer = Callable[[Groups, ScoreOptions], Scores]

SCORERS: dict[str, Scorer] = {}


def scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Register a scorer."""
    return enter(SCORERS, "scores", name)


def score(
    groups: Groups,
    by: str = "l2",
    *,
    consumers: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Scores:
    """Score every unit of every group.

    Args:
        groups: as ``find_groups`` returned them.
        by: ``l1``, ``l2`` (magnitude: the norm of all parameters a unit owns; Li et al., "Pruning filters for efficient
            ConvNets", ICLR 2017), ``fpgm``, ``lamp`` or ``random``.
        consumers: count the weights that read a unit too, not only those that produce it.
        seed: for ``random``.
        progress: called with a line now and then.

    Returns:
        For each group name an array of shape (width,); higher means keep.

    Raises:
        UsageError: there is no scorer of that name, or it needs calibration inputs.
    """
    check_score(by, calibrated=False)
    return SCORERS[by](groups, ScoreOptions(consumers, seed, progress or (lambda _: None)))


def check_score(by: str, calibrated: bool) -> None:
    """Refuse a score that there is not, or one that needs inputs where there are none, with a UsageError."""
    if by in SCORERS or (calibrated and by in (*CALIBRATED, *LEARNED)):
        return
    if by in CALIBRATED:
        raise UsageError(
            f"the score '{by}' needs inputs: give them with --calib DATA, or --calib synthetic if there are none."
        )
    if by in LEARNED:
        raise UsageError(
            f"the score '{by}' needs inputs: give them with --calib DATA, and labels with --labels KEY, if any."
        )
    raise UsageError(f"there is no score '{by}'. Choose from: {', '.join((*SCORERS, *CALIBRATED, *LEARNED))}.")


def normalised(scores: Mapping[str, NDArray[np.float64]]) -> Scores:
    """Scores divided by their group's mean, so that units of different groups can be ranked together.

    Raw magnitudes cannot: they grow with a layer's fan-in and differ between kinds of layers by orders of magnitude,
    so a global threshold would empty whole layers. Relative to the mean of its group, a score says how much a unit
    matters among those that could stand in for it. (Torch-Pruning's ``mean`` normaliser does the same.) ``Comparable``
    scores, which ``lamp`` gives, stay as they are.
    """
    if isinstance(scores, Comparable):
        return scores
    result: Scores = {}
    for name, values in scores.items():
        mean = float(np.mean(values)) if values.size else 0.0
        result[name] = values / mean if mean > 0 else np.ones_like(values)
    return result


def seen_first(groups: Groups, scores: Scores, recorded: Sequence[Feeds]) -> Scores:
    """Scores in which the ids that occur in recorded inputs come before all others, the more often the earlier.

    Args:
        groups: as ``find_groups`` returned them, with the ids of some inputs free.
        scores: as ``score`` returned them.
        recorded: input sets.
    """
    result = type(scores)({name: values.copy() for name, values in scores.items()})
    for name in groups.io:
        for ids in groups.analysis.axes.get((name, "ids"), [])[-1:]:
            slots = groups.analysis.facts.ids(ids)
            counts = np.zeros(slots.size, np.int64)
            for feed in recorded:
                np.add.at(counts, np.ravel(feed[name]).astype(np.int64), 1)
            number, unit = (part[:, 0] for part in groups.units(slots))
            for place in np.flatnonzero((counts > 0) & (number >= 0)):
                group = groups.groups[number[place]].name
                result[group][unit[place]] = scores[group].max() + counts[place]
    return result


@scorer("l1")
def l1(groups: Groups, options: ScoreOptions) -> Scores:
    """Sum of |w| over the parameters a unit owns."""
    return _magnitude(groups, options, np.abs)


@scorer("l2")
def l2(groups: Groups, options: ScoreOptions) -> Scores:
    """Square root of the sum of w^2 over the parameters a unit owns."""
    return {name: np.sqrt(values) for name, values in _magnitude(groups, options, np.square).items()}


@scorer("fpgm")
def fpgm(groups: Groups, options: ScoreOptions) -> Scores:
    """Sum of the distances from a unit's parameters to those of all units of its group: what is redundant goes.

    He et al., "Filter pruning via geometric median for deep neural networks acceleration", CVPR 2019.
    """
    return {group.name: _distances(_parameters(groups, group, options)) for group in groups}


@scorer("lamp")
def lamp(groups: Groups, options: ScoreOptions) -> Scores:
    """Square of the ``l2`` score over the sum of this square and all larger ones; equal ones count in their order.

    Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021. Within a group the ranking is that
    of ``l2``. Between groups it needs no normalisation: the largest of each scores 1, and the wider a group, the lower
    its least units.
    """
    result = Comparable()
    for name, values in l2(groups, options).items():
        order = np.argsort(values, kind="stable")
        squares = np.square(values[order])
        left = np.cumsum(squares[::-1])[::-1]
        result[name] = np.empty_like(values)
        result[name][order] = np.divide(squares, left, out=np.zeros_like(left), where=left > 0)
    return result


@scorer("random")
def random(groups: Groups, options: ScoreOptions) -> Scores:
    """Uniform on (0, 1), fixed by the seed and the group's name."""
    return {g.name: np.random.default_rng([options.seed, zlib.crc32(g.name.encode())]).random(g.width) for g in groups}


def _magnitude(groups: Groups, options: ScoreOptions, power: np.ufunc) -> Scores:
    """Sum of ``power(w)`` over the parameters of each unit; every constant is read once."""
    produced: Scores = {g.name: np.zeros(g.width) for g in groups}
    consumed: Scores = {g.name: np.zeros(g.width) for g in groups}
    by_tensor: dict[str, dict[int, list[tuple[str, Span]]]] = {}
    for group in groups:
        for span in _owned(groups.graph, group.parameters):
            by_tensor.setdefault(span.tensor, {}).setdefault(span.axis, []).append((group.name, span))
    tensors = list(by_tensor)
    ahead = MANY if any(_is_large(groups.graph, tensor) for tensor in tensors) else 0
    found = made_ahead(tensors, lambda t: _sums(groups.graph, t, power, tuple(by_tensor[t])), ahead)
    for count, (tensor, sums) in enumerate(found, 1):
        options.step(Count("scoring tensors", count - 1, len(by_tensor)))
        axes = by_tensor[tensor]
        if sums is None:
            continue
        for axis, spans in axes.items():
            along = sums[axis]
            for name, span in spans:
                here = span.units >= 0
                np.add.at((consumed if span.contracted else produced)[name], span.units[here], along[here])
    if options.consumers:
        return {name: produced[name] + consumed[name] for name in produced}
    # a unit that no constant produces is judged by what reads it
    return {name: values if values.any() else consumed[name] for name, values in produced.items()}


def _sums(graph: Graph, tensor: str, power: np.ufunc, axes: tuple[int, ...]) -> dict[int, NDArray[np.float64]] | None:
    """Sum of ``power(w)`` over all axes but one, for each of some axes; None for what is neither number nor code."""
    if is_plain(graph, tensor) and _is_large(graph, tensor):
        return _sums_by_rows(graph.array(tensor), power, axes)
    values = numbers_of(graph, tensor)
    if values is None:
        return None
    magnitude = power(values)
    return {axis: magnitude.sum(axis=tuple(k for k in range(magnitude.ndim) if k != axis)) for axis in axes}


def _is_large(graph: Graph, tensor: str) -> bool:
    return int(math.prod(graph.constants[tensor].dims)) > _LARGE


def _sums_by_rows(values: Array, power: np.ufunc, axes: tuple[int, ...]) -> dict[int, NDArray[np.float64]]:
    """The same, some rows at a time, numbers of 16 bits in 32."""
    sums = {axis: np.zeros(values.shape[axis]) for axis in axes}
    ranges = row_ranges(values.shape, _BLOCK)
    room = np.empty((ranges[0][1], *values.shape[1:]), np.float32)
    for start, stop in ranges:
        part: Any = values[start:stop]
        wide = numbers(part, room[: len(part)]) if part.itemsize == 2 else part.astype(np.float64)
        part = power(wide, out=wide)
        for axis in axes:
            along = part.sum(axis=tuple(k for k in range(part.ndim) if k != axis))
            if axis == 0:
                sums[0][start:stop] = along
            else:
                sums[axis] += along
    return sums


def _parameters(groups: Groups, group: Group, options: ScoreOptions) -> NDArray[np.float64]:
    """The parameters of each unit in a row, shape (width, number); chosen as for magnitudes.

    Where units hold differently many, rows are filled with zeros.
    """
    produced: list[NDArray[np.float64]] = []
    consumed: list[NDArray[np.float64]] = []
    for span in _owned(groups.graph, group.parameters):
        values = numbers_of(groups.graph, span.tensor)
        if values is None:
            continue
        along = np.moveaxis(values, span.axis, 0).reshape(span.units.size, -1)
        here = np.flatnonzero(span.units >= 0)
        here = here[np.argsort(span.units[here], kind="stable")]
        _, start, counts = np.unique(span.units[here], return_index=True, return_counts=True)
        rows = np.zeros((group.width, int(counts.max(initial=0)), along.shape[1]))
        rows[span.units[here], np.arange(here.size) - np.repeat(start, counts)] = along[here]
        (consumed if span.contracted else produced).append(rows.reshape(group.width, -1))
    chosen = produced + consumed if options.consumers or not any(r.any() for r in produced) else produced
    return np.concatenate(chosen, axis=1) if chosen else np.zeros((group.width, 1))


def _distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of the distances from each row to all rows."""
    squares = np.square(rows).sum(1)
    result = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        apart = squares[part, None] + squares - 2 * rows[part] @ rows.T
        result[part] = np.sqrt(np.maximum(apart, 0.0)).sum(1)
    return result


def _owned(graph: Graph, spans: tuple[Span, ...]) -> list[Span]:
    """Spans that count: one per tensor and axis, without the running statistics of batch normalisation."""
    chosen: dict[tuple[str, int], Span] = {}
    for span in spans:
        users = graph.users.get(span.tensor, [])
        if all(node.op == "BatchNormalization" and i >= 3 for node, i in users):
            continue
        chosen.setdefault((span.tensor, span.axis), span)
    return list(chosen.values())
