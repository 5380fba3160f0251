"""Take samples of several calls in turn, so that a noisy moment hits them alike, until enough is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime import clocks
from runtime.robust import Times

Call = Callable[[], float | None]
"""Runs a model once; the seconds it took on a clock of its device, where that has one."""

WARM_UPS = 2
MIN_SAMPLES = 8
MAX_SAMPLES = 20_000
_FIRST_LOOK = 64
_LOOK_AGAIN = 1.3
_SETTLED_SECONDS = 0.25
"""Sampling never stops early before this: a short model would be judged by a single moment."""
_SHORT_SECONDS = 2e-4
_LOAD_SECONDS = 0.2
"""How often the machine's load is read. Its counters have a resolution of 10 ms."""


@dataclass(frozen=True)
class Samples:
    """What was read around each run; every array has the shape (calls, samples).

    Attributes:
        wall: wall seconds.
        cpu: CPU seconds of the process, all threads.
        thread: CPU seconds of the calling thread.
        switches: how often the scheduler took the processor away.
        others: how many processors other work kept busy in that moment, time stolen by the host included; NaN where
            the system does not say.
        device: seconds on the device's own clock; NaN where it has none.
        settled: whether sampling ended because enough was known, not because time was up.
    """

    wall: Times
    cpu: Times
    thread: Times
    switches: NDArray[np.int64]
    others: Times
    device: Times
    settled: bool


Row = tuple[float, float, float, int, float]


def take(
    calls: Sequence[Call],
    seconds: float,
    enough: Callable[[Times, Times], bool] | None = None,
    warm_ups: int = WARM_UPS,
    least: int = MIN_SAMPLES,
    tick: Callable[[int], None] | None = None,
) -> Samples:
    """Run calls in turn.

    Args:
        calls: what to sample. Every other round goes backwards, so that no model always runs in another's wake.
        seconds: time limit for all of them together, after warm-up; at least ``least`` samples of each are taken.
        enough: asked now and then with the wall and thread CPU seconds so far, each (calls, samples), whether they do.
        warm_ups: runs of each call before sampling.
        least: fewest samples.
        tick: called between samples with their number, when the machine's load is read as well.
    """
    short = []
    for call in calls:
        last = _SHORT_SECONDS
        for _ in range(warm_ups):
            began = clocks.wall()
            call()
            last = clocks.wall() - began
        short.append(last < _SHORT_SECONDS)
    rows: list[list[Row]] = []
    load = _Load()
    started = clocks.wall()
    end, earliest, look, settled = started + seconds, started + _SETTLED_SECONDS, _FIRST_LOOK, False
    forwards, backwards = range(len(calls)), range(len(calls) - 1, -1, -1)
    while len(rows) < MAX_SAMPLES:
        now = clocks.wall()
        if len(rows) >= least and now >= end:
            break
        if enough is not None and len(rows) >= look and now >= earliest:
            table = np.array(rows, np.float64)
            settled = enough(table[:, :, 0].T, table[:, :, 2].T)
            if settled:
                break
            look = int(len(rows) * _LOOK_AGAIN)
        row: list[Row] = [(0.0, 0.0, 0.0, 0, 0.0)] * len(calls)
        for i in forwards if len(rows) % 2 == 0 else backwards:
            row[i] = _twice(calls[i]) if short[i] else _once(calls[i])
        rows.append(row)
        if load.after(len(rows)) and tick is not None:
            tick(len(rows))
    load.after(len(rows), last=True)
    table = np.array(rows, np.float64)
    others = np.broadcast_to(load.others(len(rows)), (len(calls), len(rows)))
    wall, cpu, thread, switched, device = (table[:, :, k].T for k in range(5))
    return Samples(wall, cpu, thread, switched.astype(np.int64), others, device, settled)


def best_clock(taken: Samples, single: bool) -> Times:
    """The times that say most of a model: the device's own, CPU time where one thread does all the work, or wall time.

    Args:
        taken: the samples.
        single: whether the calling thread does all the work.
    """
    if (taken.device > 0).all():
        return taken.device
    return taken.thread if single and (taken.thread > 0).all() else taken.wall


def _once(call: Call) -> Row:
    """One run: wall, CPU of the process, CPU of the thread, switches, seconds on the device."""
    wall, thread, process = clocks.wall, clocks.thread_cpu, clocks.process_cpu
    before = clocks.switches()
    cpu, own = process(), thread()
    started = wall()
    device = call()
    elapsed = wall() - started
    own, cpu = thread() - own, process() - cpu
    return elapsed, cpu, own, clocks.switches() - before, float("nan") if device is None else device


def _twice(call: Call) -> Row:
    """A short run after another: reading CPU time enters the kernel, and what runs right after that is two microseconds
    slower. Wall time is that of the second run, CPU time the mean of both."""
    wall = clocks.wall
    before, cpu, own = clocks.switches(), clocks.process_cpu(), clocks.thread_cpu()
    call()
    started = wall()
    device = call()
    elapsed = wall() - started
    own, cpu = clocks.thread_cpu() - own, clocks.process_cpu() - cpu
    return elapsed, cpu / 2, own / 2, clocks.switches() - before, float("nan") if device is None else device


class _Load:
    """How many processors other processes used, over stretches of the samples."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, float]] = []
        self._mark(0)

    def _mark(self, count: int) -> None:
        self._count, self._time = count, clocks.wall()
        self._machine, self._own = clocks.machine_cpu(), clocks.process_cpu()

    def after(self, count: int, last: bool = False) -> bool:
        """Close a stretch if it is long enough, and say so. The last one joins the one before where it is not."""
        elapsed = clocks.wall() - self._time
        if count == self._count or (elapsed < _LOAD_SECONDS and not (last and not self._stretches)):
            return False
        machine, own, first = self._machine, self._own, self._count
        self._mark(count)
        if machine is None or self._machine is None or elapsed <= 0:
            used = float("nan")
        else:
            used = max((self._machine - machine - (self._own - own)) / elapsed, 0.0)
        self._stretches.append((count - first, used))
        return True

    def others(self, count: int) -> Times:
        """Of every sample, shape (count,)."""
        values = [np.full(n, used) for n, used in self._stretches]
        known = np.concatenate(values) if values else np.full(0, np.nan)
        return np.concatenate([known, np.full(count - known.size, known[-1] if known.size else np.nan)])
