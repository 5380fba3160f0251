"""Weights as numbers: what stands for zero in a constant, and how large its elements are, codes included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporter import halves
from exporter.graph import Graph
from exporter.sparsity.layers import Coding, Weight
from exporter.tensors import Array

Magnitudes = NDArray[np.float32]

_IN_ORDER = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
"""Types whose bits without the sign are in the order of the absolute values (IEEE 754)."""


@dataclass(frozen=True)
class Stored:
    """A weight as it is stored.

    Attributes:
        values: its elements, in one row.
        zero: what stands for zero: one value, or one for each element.
        scale: what a step of the codes is worth, likewise.
    """

    values: Array
    zero: Array
    scale: Array

    def magnitudes(self, part: slice = slice(None)) -> Magnitudes:
        """Absolute values of some of the elements; one that is not a number counts as infinite."""
        values = self.values[part]
        if self.plain:
            half = values.dtype == np.float16
            sizes = halves.magnitudes(values) if half else np.abs(values.astype(np.float32, copy=False))
        else:
            zero, scale = (x if x.size == 1 else x[part] for x in (self.zero, self.scale))
            sizes = np.abs((values.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32))
        if sizes.size and np.isnan(sizes.max()):
            sizes = np.where(np.isnan(sizes), np.float32(np.inf), sizes)
        return sizes

    def content(self, part: slice = slice(None)) -> tuple[int, float]:
        """How many of some of the elements do not stand for zero, and the sum of their ``magnitudes``."""
        if self.plain and self.values.dtype == np.float16:
            count, total = halves.content(self.values[part])
        else:
            count, total = self.nonzero(part), float(self.magnitudes(part).sum())
        return count, np.inf if np.isnan(total) else total

    def ranks(self, part: slice = slice(None)) -> NDArray[np.signedinteger] | Magnitudes:
        """Numbers in the order of the absolute values of some elements: their bits without the sign where these are in
        that order, which compare fastest, else ``magnitudes``."""
        values = self.values[part]
        if not self.plain or values.dtype not in _IN_ORDER:
            return self.magnitudes(part)
        kind = np.dtype(f"i{values.itemsize}")
        bits: NDArray[np.signedinteger] = values.view(kind) & np.iinfo(kind).max
        most = np.array(np.inf, values.dtype).view(kind)
        if bits.size and bits.max() > most:  # not numbers; looking is five times as fast as limiting
            np.minimum(bits, most, out=bits)
        return bits

    def stays(self, values: Array, part: slice = slice(None)) -> NDArray[np.bool_]:
        """Which of some elements, of this type and in the place of those in ``part``, do not stand for zero."""
        if not self.plain:
            zero = self.zero if self.zero.size == 1 else self.zero[part]
            return np.asarray(values != zero.astype(values.dtype))
        if values.itemsize == 2 and values.dtype in _IN_ORDER:  # compared as bits, without the sign
            return np.asarray((values.view(np.uint16) << 1) != 0)
        return np.asarray(values != 0)

    def nonzero(self, part: slice = slice(None)) -> int:
        """How many of some of the elements do not stand for zero."""
        values = self.values[part]
        if not self.plain:
            return int(np.count_nonzero(self.stays(values, part)))
        bits = values.view(f"u{values.dtype.itemsize}")
        return int(np.count_nonzero(bits << 1)) if "float" in values.dtype.name else int(np.count_nonzero(bits))

    @cached_property
    def plain(self) -> bool:
        """Whether these are numbers, not codes."""
        return self.zero.size == 1 and self.scale.size == 1 and not self.zero.item() and self.scale.item() == 1

    def where(self, keep: NDArray[np.bool_], new: Callable[[Array], Array] = np.empty_like) -> Array:
        """The elements, zero outside the mask, in an array that ``new`` makes like theirs; all are in one row."""
        result = new(self.values)
        self.put(keep, slice(None), result)
        return result

    def put(self, keep: NDArray[np.bool_], part: slice, result: Array) -> None:
        """Write some elements to their place in ``result``, zero outside the mask."""
        values = self.values[part]
        if self.plain:  # several times faster than np.where, and infinity times zero is no issue
            bits = np.dtype(f"u{values.dtype.itemsize}")
            np.multiply(values.view(bits), keep.view(np.uint8), out=result[part].view(bits))
            return
        zero = self.zero if self.zero.size == 1 else self.zero[part]
        result[part] = np.where(keep, values, zero.astype(values.dtype))


def stored_values(graph: Graph, weight: Weight) -> Stored:
    """Read a weight.

    Raises:
        ModelError: its data are missing or damaged.
    """
    values = np.asarray(graph.array(weight.name))  # without what mapped arrays do at every step
    coding = weight.coding
    zero: Array = np.zeros(1, np.float32)
    scale: Array = np.ones(1, np.float32)
    if coding is not None and coding.zero:
        zero = _spread(graph.array(coding.zero), values, coding)
    if coding is not None and coding.scale:
        scale = _spread(graph.array(coding.scale), values, coding)
    return Stored(values.reshape(-1), zero, scale)


def _spread(factor: Array, values: Array, coding: Coding) -> Array:
    """One value for all elements, or one for each, in one row."""
    if factor.size == 1:
        return factor.reshape(1)
    if coding.block:
        wide = np.repeat(factor, coding.block, axis=coding.axis)
        wide = np.take(wide, np.arange(values.shape[coding.axis]), axis=coding.axis)
    else:
        shape = [1] * values.ndim
        shape[coding.axis] = -1
        wide = factor.reshape(shape)
    return np.broadcast_to(wide, values.shape).reshape(-1)
