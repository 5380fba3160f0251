"""Weights that a part of a large model is fed: in 32 bits, in memory that is used again, filled by several threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from exporter import tensors
from exporter.ahead import TWO
from exporter.halves import numbers
from exporter.tensors import Array

NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

_AT_ONCE = 1 << 21
"""Elements a thread fills at a time: with fewer, threads wait for the interpreter."""


class Room:
    """Memory for the weights of one excerpt after another: new memory costs more time than what is done in it."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.float32)

    def divided(self, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        """Arrays of some shapes side by side; what was in those before is gone."""
        ends = list(accumulate(map(math.prod, shapes), initial=0))
        if ends[-1] > self._numbers.size:
            self._numbers = np.empty(ends[-1], np.float32)
        return [self._numbers[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)]


def in_room(
    weights: Mapping[str, TensorProto],
    folder: Path,
    room: Room,
    hidden: Mapping[str, Sequence[NDArray[np.bool_]]] | None = None,
) -> dict[str, Array]:
    """Values of weights, those of 16 bits in 32.

    Args:
        weights: of floating-point numbers, with one axis at least.
        folder: where their external data lies.
        room: where the values are; those that were there before are gone.
        hidden: what is set to zero, by name: where it is, of shapes that broadcast to the weight's.
    """
    double = {n for n, t in weights.items() if t.data_type == TensorProto.DOUBLE}
    single = [n for n in weights if n not in double]
    places: dict[str, Array] = dict(zip(single, room.divided([tuple(weights[n].dims) for n in single]), strict=True))
    places |= {n: np.empty(weights[n].dims) for n in double}
    fillings = [f for n, t in weights.items() for f in _fillings(t, folder, (hidden or {}).get(n, ()), places[n])]
    with ThreadPoolExecutor(TWO) as makers:
        for filled in [makers.submit(each) for each in fillings]:
            filled.result()
    return places


def _fillings(
    tensor: TensorProto, folder: Path, hidden: Sequence[NDArray[np.bool_]], place: Array
) -> list[Callable[[], None]]:
    """What fills a place with a weight, some rows each."""
    rows = tensors.rows_of(tensor, folder)
    bits = place.view(f"i{place.itemsize}")
    stay = [np.broadcast_to(np.where(h, 0, -1).astype(bits.dtype), place.shape) for h in hidden]

    def fill(start: int, stop: int) -> None:
        values, here = rows(start, stop), place[start:stop]
        if tensor.data_type in NARROW:
            numbers(values, here.view(np.float32))
        else:
            here[:] = values
        for each in stay:
            bits[start:stop] &= each[start:stop]  # many times as fast as a copy of what is hidden

    return [partial(fill, start, stop) for start, stop in tensors.row_ranges(tensor.dims, _AT_ONCE)]
