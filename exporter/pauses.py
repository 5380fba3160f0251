"""Pause Python's cyclic collector while very many objects are made that all stay: it would search them in vain."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 100_000
"""Objects; a search of fewer takes less than it takes to count what others froze."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause the collector, unless it is paused already. What nothing refers to is freed all the same.

    Where that was much, it counts as old afterwards, or the next small collection would search all of it.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if gc.get_count()[0] > _MANY and not gc.get_freeze_count():  # what others froze stays so
                gc.freeze()  # both move lists from one generation to another, and look at nothing
                gc.unfreeze()
            gc.enable()
