"""Whoever measures on a machine does so alone: other jobs share it, in this sweep or another, and wait meanwhile.

Two file locks make it fair. Whoever wants a turn passes a gate first; who wants the machine alone keeps the gate shut
from then on, so that others cannot go on entering before it. The system releases both however a process ends.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_LOOK = 0.1
"""Seconds between two tries."""


class Stopped(Exception):
    """The sweep ends before it was this job's turn."""


@contextlib.contextmanager
def turn(alone: bool, stop: Callable[[], bool]) -> Iterator[None]:
    """Wait for a turn on this machine, and hold it.

    Args:
        alone: whether no other job of a sweep of this user may run meanwhile.
        stop: asked now and then whether to wait no longer.

    Raises:
        Stopped: it said so.
    """
    with _file("gate") as gate, _file("machine") as machine:
        _take(gate, alone, stop)
        _take(machine, alone, stop)
        if not alone:
            _release(gate)
        yield


@contextlib.contextmanager
def _file(name: str) -> Iterator[int]:
    user = os.getuid() if hasattr(os, "getuid") else ""
    path = Path(tempfile.gettempdir(), f"secateur-{user}-{name}.lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _take(handle: int, alone: bool, stop: Callable[[], bool]) -> None:
    try:
        import fcntl
    except ImportError:
        return  # Windows: jobs of one sweep still take turns, those of two do not
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    while True:
        if stop():
            raise Stopped
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK)


def _release(handle: int) -> None:
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)
