"""Bounds on what running a model that nobody vouches for may take: memory, and time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_LEAST = 1 << 30
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
"""Of the container, if this is one."""


def available() -> int | None:
    """Bytes of memory that are free for this process, swap included, 1 GB at least; None where nothing says it."""
    if not _MEMORY.is_file():
        return None
    known = {name: int(rest.split()[0]) << 10 for name, rest in _numbers(_MEMORY, ":")}
    free = known.get("MemAvailable", 0) + known.get("SwapFree", 0)
    with contextlib.suppress(OSError, ValueError):  # no such limit
        most, used = (int((_GROUP / f"memory.{which}").read_text()) for which in ("max", "current"))
        cache = {name: int(rest) for name, rest in _numbers(_GROUP / "memory.stat", " ")}.get("inactive_file", 0)
        free = min(free, most - used + cache)
    return max(free, _LEAST)


def _numbers(file: Path, mark: str) -> Iterator[tuple[str, str]]:
    for line in file.read_text().splitlines():
        name, found, rest = line.partition(mark)
        if found:
            yield name, rest


@contextlib.contextmanager
def memory(more: int | None) -> Iterator[None]:
    """Let this process have ``more`` bytes of address space than it has now; what asks for more fails.

    A model of a hundred bytes can ask for all the memory there is (ConstantOfShape, Expand, Tile). Does nothing where
    the system has no such limit (it is Linux's RLIMIT_AS); a lower limit that is in force stays.

    Args:
        more: bytes; None sets no limit.
    """
    statm = Path("/proc/self/statm")
    if more is None or not statm.is_file():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(statm.read_text().split()[0]) * resource.getpagesize() + more
    if soft != resource.RLIM_INFINITY and soft <= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
