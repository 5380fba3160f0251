"""Make the next ones while one is used: arrays, on threads, as numpy lets others run while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Made = TypeVar("Made")

TWO = 2
"""Threads that keep the processors busy beside what uses what they make, and as many things as fit into memory."""
MANY = 8
"""Things that keep the threads busy though they differ in size, where what is made of them is small."""


def made_ahead(items: Sequence[T], make: Callable[[T], Made], ahead: int = TWO) -> Iterator[tuple[T, Made]]:
    """Items and what is made of them, in order; so many more exist, or are being made, while one is used.

    Args:
        items: to make something of.
        make: how; called in ``TWO`` threads at most.
        ahead: how many.
    """
    if not ahead:
        yield from ((item, make(item)) for item in items)
        return
    with ThreadPoolExecutor(min(ahead, TWO)) as makers:
        coming = deque(makers.submit(make, item) for item in items[:ahead])
        for k, item in enumerate(items):
            made = coming.popleft().result()
            coming.extend(makers.submit(make, following) for following in items[k + ahead : k + ahead + 1])
            yield item, made
            del made
