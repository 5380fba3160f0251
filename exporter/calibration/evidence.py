"""From calibration inputs to a damage curve for every group: what its readers see, and how well they do without it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.directions import Directions, find_directions
from exporter.calibration.elimination import Curve, Layer, eliminate
from exporter.calibration.evidence_journal import Levels, arrays_of, evidence_in, shelved
from exporter.calibration.journal import Journal
from exporter.calibration.moments import Centred, Moments
from exporter.calibration.readers import (
    Matrix,
    Places,
    Reader,
    Rows,
    channel_of_column,
    columns,
    constants_of,
    find_readers,
    grouped_outputs_at,
    inputs_at,
    matrix,
    places,
    positions,
)
from exporter.calibration.runner import Runner
from exporter.calibration.store import Shelf
from exporter.calibration.threads import threads_for
from exporter.graph import Graph
from exporter.groups import Groups
from exporter.slots import Fixed
from exporter.tensors import Array
from runtime.steps import Count

DAMPING = 1e-3
UNCERTAIN = 0.02
"""What the damping grows by for every column there is to a row: few rows fit anything."""

_ROWS_PER_COLUMN = 12
_TELLING = 12
"""Rows for a column below which the error on those fitted says little of that on others: a sample's rows are alike."""

ENOUGH_TO_COMPARE, ENOUGH_TO_CHOOSE, ENOUGH_TO_FIT = 4096, 8192, 24_000
"""Rows taken for any reader, however few columns it has; fewer of them where it has more than a thousand."""

_MOST_ROWS, _MOST_VALUES = 16_384, 24_000_000
"""Rows taken for many columns, and values for few."""

_GATHERED = 4_000_000
"""Values of rows that are worth a product."""

LEVELS = (2, 8)
"""A group's readers are kept as they are at these parts of its width."""

HELD_OUT = 8
"""One of so many samples is held out."""


@dataclass(frozen=True)
class Reading:
    """A reader of a group.

    Attributes:
        reader: the reader.
        units: unit of the group at each position of the axis it contracts, -1 for none; shape (size,).
    """

    reader: Reader
    units: NDArray[np.int64]


def readings(groups: Groups, numbers: Sequence[int]) -> dict[int, list[Reading]]:
    """For each of some groups the readers that contract over it and let it go."""
    found: dict[int, list[Reading]] = {n: [] for n in numbers}
    for reader in find_readers(groups.graph):
        through = _group_numbers(groups, reader.result, reader.channel_axis)
        axis = _axis(groups, reader.source, reader.axis)
        if axis is None:
            continue
        group, unit = groups.units(axis)
        for n in set(np.unique(group).tolist()) & found.keys() - through:
            found[n].append(Reading(reader, np.where(group == n, unit, -1).max(1)))
    return found


def _axis(groups: Groups, tensor: str, axis: int) -> NDArray[np.int64] | None:
    axes = groups.analysis.axes.get((tensor,))
    if axes is None:
        return None
    found = axes[axis]
    return None if isinstance(found, Fixed) else found


def _group_numbers(groups: Groups, tensor: str, axis: int) -> set[int]:
    ids = _axis(groups, tensor, axis)
    return set() if ids is None else {int(n) for n in np.unique(groups.units(ids)[0]) if n >= 0}


def columns_of(reading: Reading, count: int) -> NDArray[np.int64]:
    """Unit of every column of the reader's matrices, -1 for none; shape [groups, K]."""
    return np.asarray(reading.units[channel_of_column(reading.reader, reading.units.size, count)])


@dataclass(frozen=True)
class Sample:
    """Rows of one batch.

    Attributes:
        x: what they see, shape [groups, rows, K].
        y: what the result should be there, shape [groups, rows, outputs].
        held: how many rows are held out, the last ones.
        at: their positions.
    """

    x: Rows
    y: Rows
    held: int
    at: Places

    def part(self, apart: bool) -> slice:
        """Where the rows are that are held out, or those to fit."""
        first = self.x.shape[1] - self.held
        return slice(first, None) if apart else slice(first)


def sampled(runner: Runner, reader: Reader, targets: Iterable[Array], enough: int = ENOUGH_TO_FIT) -> Iterator[Sample]:
    """Rows at positions drawn at random, the same in every call, batch by batch.

    Args:
        runner: holds the reader's source.
        reader: the reader.
        targets: what its result should be, batch by batch.
        enough: rows in all that are taken at least, if there are so many; more where there are many columns.
    """
    first = 0
    for b, (source, target) in enumerate(zip(runner.values(reader.source), targets, strict=True)):
        count = runner.counts[b]
        yield rows_at(runner.graph, reader, source, target, count / runner.rows, b, range(first, first + count), enough)
        first += count


def rows_at(
    graph: Graph,
    reader: Reader,
    source: Array,
    target: Array,
    share: float,
    batch: int,
    samples: range = range(1),
    enough: int = ENOUGH_TO_FIT,
) -> Sample:
    """Rows of one batch.

    Args:
        graph: the graph.
        reader: the reader.
        source: what it reads.
        target: what its result should be.
        share: of all rows that this batch brings.
        batch: its number, which decides the positions.
        samples: numbers of its samples; the leading axis of the target is theirs, or theirs and another's.
        enough: as for ``sampled``.
    """
    dims = graph.constants[reader.weight].dims
    rows = math.ceil(rows_for(columns(reader, dims), enough) * share)
    drawn = places(reader, target.shape, rows, np.random.default_rng(batch))
    number = samples.start + drawn[0] * len(samples) // max(len(target), 1)
    apart = number % HELD_OUT == HELD_OUT - 1
    order = np.argsort(apart, kind="stable")
    at = tuple(place[order] for place in drawn)
    x = inputs_at(reader, source, at, tuple(dims[2:]) if reader.spatial else (), target.shape[2:])
    y = grouped_outputs_at(reader, target, at)
    return Sample(x, y, int(apart.sum()), at)


def rows_for(width: int, enough: int) -> int:
    """Most rows taken for a reader of so many columns; ``enough`` as for ``sampled``."""
    per_column = _ROWS_PER_COLUMN if enough > ENOUGH_TO_CHOOSE else _ROWS_PER_COLUMN // 2
    return max(min(per_column * width, _MOST_ROWS), min(enough, _MOST_VALUES // width))


def moments_of(samples: Iterable[Sample]) -> tuple[Moments, Moments]:
    """Moments of rows: those to fit, and those of the held-out eighth of the samples.

    Rows are gathered until there are as many as columns, or ``_GATHERED`` values: adding a product up costs as much
    again as making it for as many rows as columns.
    """
    fit, held = Moments(), Moments()
    waiting: dict[bool, list[tuple[Rows, Rows]]] = {False: [], True: []}

    def add(apart: bool) -> None:
        if waiting[apart]:
            (held if apart else fit).add(*waiting[apart])
            waiting[apart].clear()

    for sample in samples:
        for apart, parts in waiting.items():
            parts.append((sample.x[:, sample.part(apart)], sample.y[:, sample.part(apart)]))
            rows = sum(x.shape[1] for x, _ in parts)
            if rows >= sample.x.shape[2] and rows * sample.x.shape[2] * sample.x.shape[0] >= _GATHERED:
                add(apart)
    for apart in waiting:
        add(apart)
    return fit, held


@dataclass(frozen=True)
class Seen:
    """One reader, and what the calibration inputs showed it.

    Attributes:
        reader: the reader.
        moments: of what it reads and gives.
        judge: of the held-out samples, which ``moments`` then leaves out, where there are few rows; else None.
        weights: its weights, shape [groups, K, outputs].
        units: by number of a group that it reads, the unit of each column, -1 for none; shape [groups, K].
        last: groups that no later reader reads.
        directions: what K counts, where it is not the columns of the kernel.
    """

    reader: Reader
    moments: Moments
    judge: Moments | None
    weights: Matrix
    units: dict[int, NDArray[np.int64]]
    last: frozenset[int]
    directions: Directions | None = None


def readers_of(
    groups: Groups,
    numbers: Sequence[int],
    runner: Runner,
    step: Callable[[str], None],
    *,
    narrow: bool = False,
    known: Collection[int] = (),
) -> Iterator[Seen]:
    """The readers of some groups in the order of the graph, each as soon as the runner has reached it.

    Args:
        groups: the analysis.
        numbers: of the groups.
        runner: at the start of the dense graph.
        step: called with a line before each reader.
        narrow: see wide kernels through few directions.
        known: groups whose readers are run, so that others see what they would see, but need not be looked at.
    """
    by_reader = _by_reader(groups, numbers)
    last = _last(by_reader)
    for i, (place, members) in enumerate(by_reader.items(), 1):
        reader = next(iter(members.values())).reader
        step(Count("measuring what the layers read", i - 1, len(by_reader)))
        runner.advance([reader.source, reader.result])
        wanted = {n: reading for n, reading in members.items() if n not in known}
        if not wanted:
            continue
        gone = frozenset(n for n in wanted if last[n] == place)
        yield _seen(runner, reader, wanted, gone, narrow)  # no name here holds what is seen while others work with it


def _seen(runner: Runner, reader: Reader, members: Mapping[int, Reading], last: frozenset[int], narrow: bool) -> Seen:
    """What a reader shows that the runner has reached; arguments as for ``readers_of`` and ``Seen``."""
    weights = matrix(reader, runner.graph.array(reader.weight))
    directions = find_directions(weights, positions(reader, runner.graph)) if narrow else None
    rows = sampled(runner, reader, runner.values(reader.result), ENOUGH_TO_CHOOSE)
    if directions is not None:
        rows = (replace(sample, x=directions.rows(sample.x)) for sample in rows)
        weights = directions.weights(weights)
    with threads_for(weights.shape[1]):
        fit, held = moments_of(rows)
    units = {n: columns_of(reading, weights.shape[1]) for n, reading in members.items()}
    apart = held.rows > 0 and fit.rows < _TELLING * weights.shape[1]
    moments, judge = (fit, held) if apart else (fit + held, None)
    return Seen(reader, moments, judge, weights, units, last, directions)


def _by_reader(groups: Groups, numbers: Sequence[int]) -> dict[int, dict[int, Reading]]:
    """Readings by the place of the reader in the graph, in this order, and by the number of the group."""
    found: dict[int, dict[int, Reading]] = {}
    for n, known in readings(groups, numbers).items():
        for reading in known:
            found.setdefault(reading.reader.node.index, {})[n] = reading
    return dict(sorted(found.items()))


def _last(by_reader: Mapping[int, Mapping[int, Reading]]) -> dict[int, int]:
    """By number of a group the place of its last reader."""
    return {n: place for place, members in by_reader.items() for n in members}


@dataclass(frozen=True)
class Evidence:
    """What calibration inputs say of a group.

    Attributes:
        readers: the linear layers that read it, in the order of the graph.
        curve: the order in which its units go, and the damage to its readers.
        levels: some widths between, falling, each with
            the weights and biases that the readers have there; zero for the units that went.
    """

    readers: tuple[Reader, ...]
    curve: Curve
    levels: Levels


def evidence(
    groups: Groups,
    numbers: Sequence[int],
    runner: Runner,
    step: Callable[[str], None],
    journal: Journal | None = None,
) -> dict[int, Evidence]:
    """Damage curves of the groups that readers tell of, by number, from one pass over the calibration inputs.

    Args:
        groups: the analysis.
        numbers: of the groups.
        runner: at the start of the dense graph.
        step: called with a line before each reader.
        journal: where they are kept, for the next run to go on if this one is killed.
    """
    journal = journal or Journal()
    by_reader = _by_reader(groups, numbers)
    last = _last(by_reader)
    order = [n for place, members in by_reader.items() for n in members if last[n] == place]
    result: dict[int, Evidence] = {}
    shelf = Shelf()
    for n in order:
        readers = tuple(members[n].reader for members in by_reader.values() if n in members)
        known = evidence_in(journal.known(_name(n)) or {}, readers, groups.graph, groups.groups[n].width)
        if known is not None:
            curve, levels = known
            result[n] = Evidence(readers, curve, shelved(levels, shelf, n))
    if len(result) == len(order):
        return result
    layers: dict[int, list[_Read]] = {}
    seconds: dict[int, float] = {}
    started = time.perf_counter()
    for seen in readers_of(groups, numbers, runner, step, narrow=True, known=frozenset(result)):
        reader, directions, weights, told, done = seen.reader, seen.directions, seen.weights, seen.units, seen.last
        centred, judge, damping = _about_means(seen)
        del seen  # the sums are as large again
        with threads_for(weights.shape[1]):
            for n, units in told.items():
                layer = Layer(centred, units, damping, weights, judge, groups.groups[n].width)
                layers.setdefault(n, []).append((reader, directions, layer))
            del centred, weights, layer
            for n in [n for n in order if n in done]:
                result[n] = _evidence(groups, n, layers.pop(n))
        now = time.perf_counter()
        for n in told:
            seconds[n] = seconds.get(n, 0.0) + (now - started) / len(told)
        started = now
        for n in done:
            journal.keep(_name(n), arrays_of(result[n].curve, result[n].levels), seconds[n])
            result[n] = replace(result[n], levels=shelved(result[n].levels, shelf, n))
    return {n: result[n] for n in order}


def _name(number: int) -> str:
    return f"evidence of group {number}"


_Read = tuple[Reader, Directions | None, Layer]


def _about_means(seen: Seen) -> tuple[Centred, Centred | None, float]:
    """The moments of a reader, those that judge it, and its damping."""
    intercept = seen.reader.bias is not None
    judge = seen.judge.centred(intercept) if seen.judge is not None else None
    damping = DAMPING + UNCERTAIN * seen.weights.shape[1] / max(seen.moments.rows, 1)
    return seen.moments.centred(intercept), judge, damping


def _evidence(groups: Groups, number: int, read: list[_Read]) -> Evidence:
    width = groups.groups[number].width
    graph = groups.graph
    readers = tuple(reader for reader, _, _ in read)
    directions = [few for _, few, _ in read]
    levels: list[tuple[int, Mapping[str, Array]]] = []

    def look(level: int, layers: Sequence[Layer]) -> None:
        weights: dict[str, Array] = {}
        for reader, few, layer in zip(readers, directions, layers, strict=True):
            whole = layer.whole() if few is None else few.back(layer.whole())
            weights |= constants_of(reader, graph, whole, layer.bias())
        levels.append((level, weights))

    pauses = sorted({max(1, width // share) for share in LEVELS if width > 1}, reverse=True)
    curve = eliminate([layer for *_, layer in read], width, pauses, look)
    return Evidence(readers, curve, tuple(levels))
