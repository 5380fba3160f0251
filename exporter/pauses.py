"""Pause Python's cyclic collector while very many objects are made that all stay: it would search them in vain."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause the collector, unless it is paused already. What nothing refers to is freed all the same.

    What was made meanwhile counts as old afterwards, or the next small collection would search all of it.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if not gc.get_freeze_count():  # what others froze stays so
                gc.freeze()  # both move lists from one generation to another, and look at nothing
                gc.unfreeze()
            gc.enable()
