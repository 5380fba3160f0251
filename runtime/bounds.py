"""Bounds on what running a model that nobody vouches for may take: memory, and time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def memory(more: int) -> Iterator[None]:
    """Let this process have ``more`` bytes of address space than it has now; what asks for more fails.

    A model of a hundred bytes can ask for all the memory there is (ConstantOfShape, Expand, Tile). Does nothing where
    the system has no such limit (it is Linux's RLIMIT_AS); a lower limit that is in force stays.

    Args:
        more: bytes.
    """
    statm = Path("/proc/self/statm")
    if not statm.is_file():
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
