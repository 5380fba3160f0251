"""Concurrency: several threads run one model at a time, as a server does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime import clocks
from runtime.robust import Times
from runtime.runners import Runner
from runtime.sampling import Call

_SLICES = 4
"""Models take turns in slices, so that a noisy moment hits them alike."""


@dataclass(frozen=True)
class Stream:
    """Runs of one model side by side.

    Attributes:
        streams: number of threads that run it.
        rate: runs in a second, of all threads together.
        samples: wall time of each run, shape (runs,).
    """

    streams: int
    rate: float
    samples: Times


def run_streams(runners: Sequence[Runner], streams: int, seconds: float) -> list[Stream]:
    """Run each model in several threads at a time, for ``seconds`` in all; models take turns.

    Raises:
        RunError: a model fails when it is run side by side.
    """
    calls = [[runner.call() for _ in range(streams)] for runner in runners]
    for mine in calls:
        for call in mine:
            call()
    samples: list[list[float]] = [[] for _ in runners]
    spent = [0.0] * len(runners)
    for _ in range(_SLICES):
        for i, mine in enumerate(calls):
            slice_samples, elapsed = _slice(mine, seconds / _SLICES)
            samples[i] += slice_samples
            spent[i] += elapsed
    return [Stream(streams, len(s) / t, np.array(s)) for s, t in zip(samples, spent, strict=True)]


def _slice(calls: Sequence[Call], seconds: float) -> tuple[list[float], float]:
    """Wall time of each run of all threads, and of the whole."""
    ready = threading.Barrier(len(calls) + 1)
    taken: list[list[float]] = [[] for _ in calls]
    failures: list[BaseException] = []

    def work(call: Call, mine: list[float]) -> None:
        ready.wait()
        end = clocks.wall() + seconds
        try:
            while not mine or clocks.wall() < end:
                started = clocks.wall()
                call()
                mine.append(clocks.wall() - started)
        except Exception as error:  # raised again by the caller
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in zip(calls, taken, strict=True)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = clocks.wall()
    for thread in threads:
        thread.join()
    elapsed = clocks.wall() - started
    if failures:
        raise failures[0]
    return [s for mine in taken for s in mine], elapsed
