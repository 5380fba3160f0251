"""Jobs in processes on this machine: some at a time, those that measure alone, and none that outlives the sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from exporter.sweeps.driver import Workers
from exporter.sweeps.jobs import Job, here, perform
from exporter.sweeps.store import Outcome
from runtime.clocks import processors

_EACH = 4
"""Processors for each job, unless there is a better reason."""


def usual_jobs() -> int:
    """How many jobs run at a time where nobody says: each has memory for a model of its own, and uses threads."""
    return max(1, processors() // _EACH)


@contextlib.contextmanager
def local_workers(count: int, tags: Collection[str], fresh: bool) -> Iterator[Workers]:
    """Workers on this machine; at the end nothing of theirs runs on, however that comes.

    Args:
        count: most jobs at a time.
        tags: what this machine has.
        fresh: do steps again that have been done.
    """
    stop = Event()
    threads = max(1, processors() // count) if count > 1 else 0
    pool = ThreadPoolExecutor(count)

    def start(job: Job) -> Future[Outcome]:
        return pool.submit(perform, job, fresh, stop.is_set, threads)

    try:
        yield Workers(
            start,
            lambda tag: {here()} if not tag or tag in tags else set(),
            "say --tag NAME where this one has it",
            True,
        )
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
