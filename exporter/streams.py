"""A file written and hashed at once: the digest of one block is taken while the next is written."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 24
_AHEAD = 1 << 28
"""Bytes written before the disk is asked to take them, so that it works while the next ones are made."""


class HashedStream:
    """Writes blocks in order, and knows their SHA-256 at the end.

    Attributes:
        written: bytes so far, padding included.
    """

    def __init__(self, file: FileIO) -> None:
        self.written = 0
        self._file, self._digest = file, hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)
        self._flusher = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._flushes: list[Future[None]] = []
        self._unflushed = 0

    def __enter__(self) -> HashedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.shutdown()
        self._flusher.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for flush in self._flushes:
                flush.result()  # an error of the disk is told to one call only

    def pad(self, count: int) -> None:
        """Write zeros; they are not part of the digest."""
        self._write_all(memoryview(bytes(count)))

    def write(self, data: NDArray[np.uint8]) -> None:
        """Write bytes, shape (n,). They may be mapped from another file, and are not changed before this returns."""
        for start in range(0, data.size, _BLOCK):
            block = data[start : start + _BLOCK]
            self._wait()
            self._pending = self._hasher.submit(self._digest.update, block.data)
            self._write_all(block.data)
        self._wait()

    def hexdigest(self) -> str:
        """SHA-256 of what was written."""
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write_all(self, part: memoryview) -> None:
        while len(part):
            done = os.write(self._file.fileno(), part)
            self.written += done
            self._unflushed += done
            part = part[done:]
        if self._unflushed >= _AHEAD:
            self._unflushed = 0
            self._flushes.append(self._flusher.submit(os.fsync, self._file.fileno()))
