"""From calibration inputs to a damage curve for every group: what its readers see, and how well they do without it."""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

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
    columns,
    constants_of,
    grouped_outputs_at,
    inputs_at,
    matrix,
    places,
)
from exporter.calibration.readings import (
    Reading,
    by_reader,
    check_memory,
    columns_of,
    last_places,
    readings,
    thinned,
)
from exporter.calibration.runner import Runner
from exporter.calibration.store import Shelf
from exporter.calibration.threads import threads_for
from exporter.graph import Graph
from exporter.groups import Groups
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
    members: Mapping[int, Sequence[Reading]],
    runner: Runner,
    step: Callable[[str], None],
    *,
    narrow: bool = False,
    known: Collection[int] = (),
) -> Iterator[Seen]:
    """The readers of some groups in the order of the graph, each as soon as the runner has reached it.

    Args:
        members: the readers, by number of the group.
        runner: at the start of the dense graph.
        step: called with a line before each reader.
        narrow: see wide kernels through few directions.
        known: groups whose readers are run, so that others see what they would see, but need not be looked at.
    """
    readers = by_reader(members)
    last = last_places(readers)
    for i, (place, read) in enumerate(readers.items(), 1):
        reader = next(iter(read.values())).reader
        step(Count("measuring what the layers read", i - 1, len(readers)))
        runner.advance([reader.source, reader.result])
        wanted = {n: reading for n, reading in read.items() if n not in known}
        if not wanted:
            continue
        gone = frozenset(n for n in wanted if last[n] == place)
        yield _seen(runner, reader, wanted, gone, narrow)  # no name here holds what is seen while others work with it


def _seen(runner: Runner, reader: Reader, members: Mapping[int, Reading], last: frozenset[int], narrow: bool) -> Seen:
    """What a reader shows that the runner has reached; arguments as for ``readers_of`` and ``Seen``."""
    weights = matrix(reader, runner.graph.array(reader.weight))
    layout = next(iter(members.values())).layout
    directions = find_directions(weights, layout) if narrow else None
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


@dataclass(frozen=True)
class Evidence:
    """What calibration inputs say of a group.

    Attributes:
        readers: the linear layers that read it, in the order of the graph; some of them, where they are too many.
        others: layers that read it too.
        curve: the order in which its units go, and the damage to ``readers``.
        levels: some widths between, falling, each with
            the weights and biases that ``readers`` have there; zero for the units that went.
    """

    readers: tuple[Reader, ...]
    others: tuple[Reading, ...]
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

    Raises:
        ModelError: what the readers of a group see does not fit into memory.
    """
    journal = journal or Journal()
    found = readings(groups, numbers)
    members = {n: thinned(each, groups.graph) for n, each in found.items()}
    others = {n: tuple(r for r in each if not any(r is m for m in members[n])) for n, each in found.items()}
    places = by_reader(members)
    last = last_places(places)
    order = [n for place, read in places.items() for n in read if last[n] == place]
    result: dict[int, Evidence] = {}
    shelf = Shelf()
    for n in order:
        readers = tuple(reading.reader for reading in members[n])
        known = evidence_in(journal.known(_name(n)) or {}, readers, groups.graph, groups.groups[n].width)
        if known is not None:
            curve, levels = known
            result[n] = Evidence(readers, others[n], curve, shelved(levels, shelf, n))
    if len(result) == len(order):
        return result
    check_memory(groups, {n: each for n, each in members.items() if n not in result})
    layers: dict[int, list[_Read]] = {}
    seconds: dict[int, float] = {}
    started = time.perf_counter()
    for seen in readers_of(members, runner, step, narrow=True, known=frozenset(result)):
        reader, directions, weights, told, done = seen.reader, seen.directions, seen.weights, seen.units, seen.last
        centred, judge, damping = _about_means(seen)
        del seen  # the sums are as large again
        with threads_for(weights.shape[1]):
            for n, units in told.items():
                layer = Layer(centred, units, damping, weights, judge, groups.groups[n].width)
                layers.setdefault(n, []).append((reader, directions, layer))
            del centred, weights, layer
            for n in [n for n in order if n in done]:
                result[n] = _evidence(groups, n, layers.pop(n), others[n])
        now = time.perf_counter()
        for n in told:
            seconds[n] = seconds.get(n, 0.0) + (now - started) / len(told)
        started = now
        for n in done:
            journal.keep(_name(n), arrays_of(result[n].curve, result[n].levels), seconds[n])
            result[n] = replace(result[n], levels=shelved(result[n].levels, shelf, n))
    return {n: result[n] for n in order}


def completed(
    found: Mapping[int, Evidence], groups: Groups, runner: Runner, step: Callable[[str], None]
) -> dict[int, Evidence]:
    """The same with the weights of all layers that read a group, of which some gave the order.

    The others are fitted to it one after another, so that one at a time is in memory.

    Args:
        found: by number of the group.
        groups: the analysis.
        runner: at the start of the dense graph.
        step: called with a line before each reader.
    """
    others, shelf = {n: known.others for n, known in found.items() if known.others}, Shelf()
    for read in readers_of(others, runner, step, narrow=True):
        with threads_for(read.weights.shape[1]):
            for n in read.units:
                for width, weights in _at_levels(read, n, found[n], groups.graph):
                    shelf.part(f"{n} {width} ", weights)
        del read  # the next one is as large
    result = dict(found)
    for n in others:
        both = [(w, cast(_Weights, have), cast(_Weights, shelf.under(f"{n} {w} "))) for w, have in found[n].levels]
        result[n] = replace(found[n], levels=tuple((w, ChainMap(have, more)) for w, have, more in both))
    return result


def _at_levels(seen: Seen, number: int, known: Evidence, graph: Graph) -> Iterator[tuple[int, dict[str, Array]]]:
    """The widths of a group's evidence, and the weights that a reader has there which did not give the order."""
    centred, judge, damping = _about_means(seen)
    order, gone = known.curve.order, 0
    layer = Layer(centred, seen.units[number], damping, seen.weights, judge, len(order))
    for width, _ in known.levels:
        layer.remove(order[gone : len(order) - width].tolist())
        gone = len(order) - width
        yield width, _constants(seen.reader, graph, seen.directions, layer)


def _name(number: int) -> str:
    return f"evidence of group {number}"


_Read = tuple[Reader, Directions | None, Layer]
_Weights = MutableMapping[str, Array]


def _about_means(seen: Seen) -> tuple[Centred, Centred | None, float]:
    """The moments of a reader, those that judge it, and its damping."""
    intercept = seen.reader.bias is not None
    judge = seen.judge.centred(intercept) if seen.judge is not None else None
    damping = DAMPING + UNCERTAIN * seen.weights.shape[1] / max(seen.moments.rows, 1)
    return seen.moments.centred(intercept), judge, damping


def _evidence(groups: Groups, number: int, read: list[_Read], others: tuple[Reading, ...]) -> Evidence:
    """What its readers, which are many gigabytes and gone then, say of a group."""
    width, graph = groups.groups[number].width, groups.graph
    readers, directions, layers = (list(each) for each in zip(*read, strict=True))
    read.clear()
    levels: list[tuple[int, Mapping[str, Array]]] = []

    def look(level: int, layers: Sequence[Layer]) -> None:
        weights: dict[str, Array] = {}
        for reader, few, layer in zip(readers, directions, layers, strict=True):
            weights |= _constants(reader, graph, few, layer)
        levels.append((level, weights))

    pauses = sorted({max(1, width // share) for share in LEVELS if width > 1}, reverse=True)
    curve = eliminate(layers, width, pauses, look)
    return Evidence(tuple(readers), others, curve, tuple(levels))


def _constants(reader: Reader, graph: Graph, directions: Directions | None, layer: Layer) -> dict[str, Array]:
    """The weights and the bias that a layer has now."""
    whole = layer.whole() if directions is None else directions.back(layer.whole())
    return constants_of(reader, graph, whole, layer.bias())
