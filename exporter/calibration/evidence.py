"""From calibration inputs to a damage curve for every group: what its readers see, and how well they do without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.elimination import Curve, Layer, eliminate
from exporter.calibration.moments import Moments
from exporter.calibration.readers import (
    Reader,
    Rows,
    channel_of_column,
    columns,
    find_readers,
    inputs_at,
    matrix,
    outputs_at,
    places,
    weight_of,
)
from exporter.calibration.runner import Runner
from exporter.graph import Graph
from exporter.groups import Groups
from exporter.slots import Fixed
from exporter.tensors import Array

DAMPING = 1e-3
UNCERTAIN = 0.02
"""What the damping grows by for every column there is to a row: few rows fit anything."""

_ROWS_PER_COLUMN = 12
_FEWEST_ROWS, _MOST_ROWS = 20_000, 24_576
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
        held: which rows are held out, shape (rows,).
    """

    x: Rows
    y: Rows
    held: NDArray[np.bool_]


def sampled(runner: Runner, reader: Reader, targets: Iterable[Array]) -> Iterator[Sample]:
    """Rows at positions drawn at random, the same in every call, batch by batch.

    Args:
        runner: holds the reader's source.
        reader: the reader.
        targets: what its result should be, batch by batch.
    """
    samples = math.ceil(runner.rows / max(runner.batches, 1))
    for b, (source, target) in enumerate(zip(runner.values(reader.source), targets, strict=True)):
        yield rows_at(runner.graph, reader, source, target, 1 / runner.batches, b, samples)


def rows_at(
    graph: Graph, reader: Reader, source: Array, target: Array, share: float, batch: int, samples: int = 1
) -> Sample:
    """Rows of one batch.

    Args:
        graph: the graph.
        reader: the reader.
        source: what it reads.
        target: what its result should be.
        share: of all rows that this batch brings.
        batch: its number, which decides the positions.
        samples: in a batch; the leading axis of the target is theirs, or theirs and another's.
    """
    dims = graph.constants[reader.weight].dims
    rows = int(np.clip(_ROWS_PER_COLUMN * columns(reader, dims), _FEWEST_ROWS, _MOST_ROWS))
    at = places(reader, target.shape, math.ceil(rows * share), np.random.default_rng(batch))
    x = inputs_at(reader, source, at, tuple(dims[2:]) if reader.spatial else (), target.shape[2:])
    y = outputs_at(reader, target, at)
    y = y.reshape(len(y), reader.groups, -1).transpose(1, 0, 2)
    number = batch * samples + at[0] * samples // max(len(target), 1)
    return Sample(x, y, number % HELD_OUT == HELD_OUT - 1)


def moments_of(runner: Runner, reader: Reader, targets: Iterable[Array]) -> tuple[Moments, Moments]:
    """Moments of a reader at positions drawn at random: those to fit, and the held-out eighth of the samples."""
    fit, held = Moments(), Moments()
    for sample in sampled(runner, reader, targets):
        fit.add(sample.x[:, ~sample.held], sample.y[:, ~sample.held])
        held.add(sample.x[:, sample.held], sample.y[:, sample.held])
    return fit, held


@dataclass(frozen=True)
class Evidence:
    """What calibration inputs say of a group.

    Attributes:
        curve: the order in which its units go, and the damage to its readers.
        level: a width between, and
        weights: the weights and biases that its readers have at that width; zero for the units that went.
    """

    curve: Curve
    level: int
    weights: dict[str, Array]


def evidence(
    groups: Groups, numbers: Sequence[int], runner: Runner, step: Callable[[str], None]
) -> dict[int, Evidence]:
    """Damage curves of the groups that readers tell of, by number, from one pass over the calibration inputs."""
    of_group = readings(groups, numbers)
    open_readings = {n: len(found) for n, found in of_group.items()}
    by_reader: dict[int, list[tuple[int, Reading]]] = {}
    for n, found in of_group.items():
        for reading in found:
            by_reader.setdefault(reading.reader.node.index, []).append((n, reading))
    layers: dict[int, list[tuple[Reader, Layer]]] = {}
    result: dict[int, Evidence] = {}
    for i, (_, members) in enumerate(sorted(by_reader.items()), 1):
        reader = members[0][1].reader
        step(f"measuring what the layers read, {i} of {len(by_reader)}")
        runner.advance([reader.source, reader.result])
        fit, held = moments_of(runner, reader, runner.values(reader.result))
        both = fit + held
        centred = both.centred(reader.bias is not None)
        present = matrix(reader, groups.graph.array(reader.weight))
        damping = DAMPING + UNCERTAIN * present.shape[1] / max(both.rows, 1)
        for n, reading in members:
            units = columns_of(reading, present.shape[1])
            layers.setdefault(n, []).append((reader, Layer(centred, units, damping, present)))
            open_readings[n] -= 1
            if not open_readings[n]:
                result[n] = _evidence(groups, n, layers.pop(n))
    return result


def _evidence(groups: Groups, number: int, layers: list[tuple[Reader, Layer]]) -> Evidence:
    width = groups.groups[number].width
    weights: dict[str, Array] = {}
    graph = groups.graph

    def look() -> None:
        for reader, layer in layers:
            weights[reader.weight] = weight_of(reader, layer.weights, graph.array(reader.weight))
            if reader.bias is not None:
                like = graph.array(reader.bias)
                weights[reader.bias] = layer.bias().reshape(like.shape).astype(like.dtype)

    curve = eliminate([layer for _, layer in layers], width, max(1, width // 2), look)
    return Evidence(curve, max(1, width // 2), weights)
