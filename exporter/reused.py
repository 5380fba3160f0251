"""Memory that is used again: new memory costs more time than what is written to it."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np

from exporter.tensors import Array

_KEPT = 4
_LEAST = 1 << 20
"""Bytes; the system keeps smaller pieces at hand itself."""


class Reused:
    """Arrays whose memory goes to the next one when nobody refers to them, or to views of them, any more."""

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque(maxlen=_KEPT)

    def empty_like(self, values: Array) -> Array:
        """An array of the same shape and type, whatever is in it."""
        if values.nbytes < _LEAST:
            return np.empty_like(values)
        memory = self._taken(values.nbytes)
        whole = np.frombuffer(memory, np.uint8, values.nbytes)  # of all views this is what they refer to
        weakref.finalize(whole, self._free.append, memory).atexit = False
        return whole.view(values.dtype).reshape(values.shape)

    def _taken(self, size: int) -> memoryview:
        for _ in range(len(self._free)):
            try:
                memory = self._free.pop()
            except IndexError:  # another thread took it
                break
            if memory.nbytes >= size:
                return memory
        return np.empty(size, np.uint8).data
