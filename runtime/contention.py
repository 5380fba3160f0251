"""Signs that something else used the machine during a measurement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.nouns import counted
from runtime.robust import Times, median_interval

_PREEMPTED = 0.1
_OTHERS = 0.25
_WAITING = 1.1
_DRIFT = 0.05
_THIRDS = 3
_FEWEST = 24


@dataclass(frozen=True)
class Flag:
    """One sign of contention: a short name for programs, a sentence for people."""

    kind: str
    text: str


def find_contention(
    wall: Times, thread: Times, switched: NDArray[np.bool_], others: Times, threads: int, processors: int
) -> tuple[Flag, ...]:
    """Look for signs that a measurement was disturbed.

    Args:
        wall, thread: wall seconds and CPU seconds of the calling thread, shape (samples,).
        switched: whether the scheduler took the processor away during a sample.
        others: how many processors other work kept busy; NaN where that is not known.
        threads: threads inside one operator; 1 means that all work is done in the calling thread.
        processors: how many this process may use.
    """
    flags = []
    share = float(switched.mean())
    if share > _PREEMPTED:
        flags.append(
            Flag("preempted", f"the scheduler took the processor away during {100 * share:.0f} % of the samples")
        )
    known = others[np.isfinite(others)]
    used = float(known.mean()) if known.size else 0.0
    if used > _OTHERS:
        flags.append(Flag("busy", f"other work kept {used:.1f} of {counted(processors, 'processor')} busy"))
    waited = float(np.median(wall / np.maximum(thread, 1e-9))) if threads == 1 and thread.any() else 1.0
    if waited > _WAITING:
        flags.append(Flag("waiting", f"wall time is {waited:.2f} times CPU time: the run had to wait"))
    if wall.size >= _FEWEST:
        early, *_, late = np.array_split(wall, _THIRDS)
        moved = float(np.median(late) / np.median(early))
        (low, high), (first, last) = median_interval(early), median_interval(late)
        if abs(moved - 1) > _DRIFT and (first > high or last < low):
            flags.append(Flag("drift", f"the last third took {moved:.2f} times as long as the first"))
    return tuple(flags)
