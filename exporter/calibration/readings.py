"""Which linear layers read a group, and how many of them can be looked at together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.directions import Layout, directions_for
from exporter.calibration.readers import Reader, channel_of_column, columns, find_readers, positions
from exporter.errors import ModelError
from exporter.graph import Graph
from exporter.groups import Groups
from exporter.slots import Fixed
from runtime import bounds
from runtime.nouns import counted

_TOGETHER = 1 << 30
"""Bytes that the readers of a group hold which are looked at together, at least: twice as many where rows are few."""

_HELD, _WORKING = 2, 5
"""How often what ``least_bytes`` says is held of every reader, and is needed besides while one of them is taken apart.
"""


@dataclass(frozen=True)
class Reading:
    """A reader of a group.

    Attributes:
        reader: the reader.
        units: unit of the group at each position of the axis it contracts, -1 for none; shape (size,).
        layout: of the reader's columns.
    """

    reader: Reader
    units: NDArray[np.int64]
    layout: Layout


def readings(groups: Groups, numbers: Sequence[int]) -> dict[int, list[Reading]]:
    """For each of some groups the readers that contract over it and let it go."""
    found: dict[int, list[Reading]] = {n: [] for n in numbers}
    for reader in find_readers(groups.graph):
        through = _group_numbers(groups, reader.result, reader.channel_axis)
        axis = _axis(groups, reader.source, reader.axis)
        if axis is None:
            continue
        group, unit = groups.units(axis)
        here = sorted(set(np.unique(group).tolist()) & found.keys() - through)
        units = [np.where(group == n, unit, -1).max(1) for n in here]
        layout = layout_of(reader, groups.graph, units) if here else Layout()
        for n, own in zip(here, units, strict=True):
            found[n].append(Reading(reader, own, layout))
    return found


def layout_of(reader: Reader, graph: Graph, units: Sequence[NDArray[np.int64]]) -> Layout:
    """How the columns of a reader lie, of which units are given for each group that it reads.

    Positions that were flattened before a dense layer show in the units: each has a column for every one of them.
    """
    if reader.spatial:
        return Layout(positions(reader, graph))
    _, channel, counts = np.unique(np.stack(units), axis=1, return_inverse=True, return_counts=True)
    if counts[0] == 1 or (counts != counts[0]).any() or (np.max(units, 0) < 0).any():
        return Layout()
    order = np.argsort(channel.reshape(-1), kind="stable").reshape(len(counts), -1)
    return Layout(int(counts[0]), order.T.reshape(-1))


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
    """Unit of every column of the reader's matrices, which may be along few directions; -1: none; shape [groups, K]."""
    units, layout = reading.units, reading.layout
    if layout.order is not None and count < units.size:
        channels = units.size // layout.positions
        return np.tile(units[layout.order[:channels]], count // channels)[None]
    return np.asarray(units[channel_of_column(reading.reader, units.size, count)])


def by_reader(members: Mapping[int, Sequence[Reading]]) -> dict[int, dict[int, Reading]]:
    """Readings by the place of the reader in the graph, in this order, and by the number of the group."""
    found: dict[int, dict[int, Reading]] = {}
    for n, known in members.items():
        for reading in known:
            found.setdefault(reading.reader.node.index, {})[n] = reading
    return dict(sorted(found.items()))


def last_places(readers: Mapping[int, Mapping[int, Reading]]) -> dict[int, int]:
    """By number of a group the place of its last reader."""
    return {n: place for place, members in readers.items() for n in members}


def least_bytes(reading: Reading, graph: Graph) -> int:
    """Memory that a reader holds at least while its columns are judged: second moments of what it sees, and weights, in
    64 bits."""
    reader, layout = reading.reader, reading.layout
    dims = graph.constants[reader.weight].dims
    whole = columns(reader, dims)
    seen = whole // layout.positions * directions_for(whole, layout)
    return 8 * int(reader.groups * seen * seen + seen * (math.prod(dims) // max(whole, 1)))


def thinned(members: Sequence[Reading], graph: Graph) -> list[Reading]:
    """As many readers of a group as can be looked at together: the first, the last, and others evenly between them.

    A residual stream is read by every layer; some of them tell its order as well. All are taken where some would leave
    a unit out.
    """
    needed = sum(least_bytes(reading, graph) for reading in members)
    count = max(2, len(members) * _TOGETHER // max(needed, 1))
    if count >= len(members):
        return list(members)
    chosen = [members[k * (len(members) - 1) // (count - 1)] for k in range(count)]
    return chosen if _units(chosen) == _units(members) else list(members)


def check_memory(groups: Groups, members: Mapping[int, Sequence[Reading]]) -> None:
    """Refuse readers, by number of the group, that cannot be looked at together: the units of a group go in an order
    that suits them all.

    Raises:
        ModelError: what they see does not fit into the memory that is free.
    """
    free = bounds.available()
    for n, known in members.items():
        each = [least_bytes(reading, groups.graph) for reading in known]
        needed = _HELD * sum(each) + _WORKING * max(each, default=0)
        if free is not None and needed > free:
            name = groups.groups[n].name
            raise ModelError(
                f"what {counted(len(known), 'layer')} {'see' if len(known) > 1 else 'sees'} of group '{name}' takes "
                f"{needed / 1e9:.1f} GB at once; {free / 1e9:.1f} GB are free.\nLeave the group whole (--keep "
                f"'{name}'), cut only what lies inside blocks (--granularity neurons,heads), or choose without inputs "
                "(no --calib)."
            )


def _units(members: Sequence[Reading]) -> set[int]:
    return set(np.unique(np.concatenate([reading.units for reading in members])).tolist()) - {-1}
