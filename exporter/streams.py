"""A large file written and hashed at once, past the system's cache where it lets us.

New pages of the cache cost more time than what is written to them, and push out what is still to be read. Blocks take
turns: while one is filled, those before it are hashed and go to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 22
"""Bytes; a multiple of what any disk takes at once."""
_TURNS = 4


class HashedStream:
    """Writes bytes in order, and knows their SHA-256 at the end.

    Attributes:
        written: bytes so far.
    """

    def __init__(self, file: FileIO) -> None:
        """Args:
        file: empty; all of it is written when the block of this object ends.
        """
        self.written = 0
        self._file, self._digest = file, hashlib.sha256()
        self._blocks = [np.frombuffer(mmap.mmap(-1, _BLOCK), np.uint8) for _ in range(_TURNS)]  # they begin on a page
        self._busy: list[list[Future[None]]] = [[] for _ in range(_TURNS)]
        self._hasher, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._direct = _past_the_cache(file, True)

    def __enter__(self) -> HashedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._let_go(self.written % _BLOCK)
                for turn in range(_TURNS):
                    self._wait(turn)
        finally:
            self._hasher.shutdown(cancel_futures=True)
            self._writer.shutdown(cancel_futures=True)

    def pad(self, count: int) -> None:
        """Write zeros."""
        self.write(np.zeros(count, np.uint8))

    def write(self, data: NDArray[np.uint8]) -> None:
        """Write bytes, shape (n,). They may be mapped from another file, and are not needed once this returns."""
        while data.size:
            turn, start = self.written // _BLOCK % _TURNS, self.written % _BLOCK
            if start == 0:
                self._wait(turn)
            part = data[: _BLOCK - start]
            self._blocks[turn][start : start + part.size] = part
            self.written += part.size
            data = data[part.size :]
            if self.written % _BLOCK == 0:
                self._let_go(_BLOCK)

    def hexdigest(self) -> str:
        """SHA-256 of the file, once all is written."""
        return self._digest.hexdigest()

    def _let_go(self, size: int) -> None:
        """Hash and write what was filled last."""
        if size:
            turn = (self.written - 1) // _BLOCK % _TURNS
            block = self._blocks[turn][:size].data
            self._busy[turn] = [self._hasher.submit(self._digest.update, block), self._writer.submit(self._put, block)]

    def _wait(self, turn: int) -> None:
        for each in self._busy[turn]:
            each.result()
        self._busy[turn] = []

    def _put(self, block: memoryview) -> None:
        if self._direct and len(block) % mmap.PAGESIZE:
            self._direct = _past_the_cache(self._file, False)
        while len(block):
            try:
                block = block[os.write(self._file.fileno(), block) :]
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._direct = _past_the_cache(self._file, False)  # it wants other sizes, or ended amid a block


def _past_the_cache(file: FileIO, on: bool) -> bool:
    """Let writes go to the disk directly, or no longer; returns whether they do."""
    flag = getattr(os, "O_DIRECT", 0)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        flags = fcntl.fcntl(file.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, flags | flag if on else flags & ~flag)
        return on and bool(flag)
    return False
