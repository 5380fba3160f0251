"""What calibration inputs say of a group, as arrays that a journal keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.elimination import Curve
from exporter.calibration.readers import Reader
from exporter.calibration.store import Shelf
from exporter.graph import Graph
from exporter.tensors import Array

Levels = tuple[tuple[int, Mapping[str, Array]], ...]
"""Widths, and the weights and biases that the readers have there, by name."""

_ORDER, _DAMAGE, _WIDTHS = "order", "damage", "widths"


def arrays_of(curve: Curve, levels: Levels) -> dict[str, NDArray[Any]]:
    """The parts of ``Evidence`` by name; weights are preceded by the number of their level."""
    found: dict[str, NDArray[Any]] = {_ORDER: curve.order, _DAMAGE: curve.damage}
    found[_WIDTHS] = np.array([width for width, _ in levels], np.int64)
    for k, (_, weights) in enumerate(levels):
        found |= {f"{k} {name}": values for name, values in weights.items()}
    return found


def evidence_in(
    found: Mapping[str, NDArray[Any]], readers: Sequence[Reader], graph: Graph, width: int
) -> tuple[Curve, Levels] | None:
    """What ``arrays_of`` was given; None where the arrays are not of such a group.

    Args:
        found: the arrays.
        readers: the layers that read the group.
        graph: the dense graph.
        width: of the group.
    """
    if not {_ORDER, _DAMAGE, _WIDTHS} <= found.keys():
        return None
    order, damage = found[_ORDER], found[_DAMAGE]
    if order.shape != (width,) or damage.shape != (width,) or not np.array_equal(np.sort(order), np.arange(width)):
        return None
    names = {name for reader in readers for name in (reader.weight, reader.bias) if name}
    levels = []
    for k, count in enumerate(found[_WIDTHS].tolist()):
        mark = f"{k} "
        weights = {name.removeprefix(mark): values for name, values in found.items() if name.startswith(mark)}
        if not weights.keys() <= names or any(not _fits(values, graph, name) for name, values in weights.items()):
            return None
        levels.append((int(count), weights))
    return Curve(order.astype(np.int64), damage.astype(np.float64)), tuple(levels)


def shelved(levels: Levels, shelf: Shelf, number: int) -> Levels:
    """The same, with the weights on a shelf.

    Args:
        levels: of a group.
        shelf: where they go.
        number: of the group.
    """
    return tuple((width, shelf.part(f"{number} {width} ", weights)) for width, weights in levels)


def _fits(values: Array, graph: Graph, name: str) -> bool:
    return values.shape == tuple(graph.constants[name].dims)
