"""What is read around a sample: clocks, how often the scheduler interfered, and what else the machine is doing."""

from __future__ import annotations

import os
import time
from pathlib import Path

wall = time.perf_counter
"""Seconds that pass."""
process_cpu = time.process_time
"""CPU seconds of this process, all its threads."""
thread_cpu = time.thread_time
"""CPU seconds of this thread. With one thread inside an operator that is all of a run."""

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_IDLE = (3, 4)
"""Places of the idle times in the first line of ``/proc/stat``: idle, and waiting for input."""
_COUNTED = 8
"""user, nice, system, idle, iowait, irq, softirq, steal; what follows is contained in user."""

try:
    import resource
except ImportError:  # Windows: the scheduler's interference is not seen there

    def switches() -> int:
        """How often the scheduler took the processor away from this process so far; not known here."""
        return 0

else:

    def switches() -> int:
        """How often the scheduler took the processor away from this process so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def machine_cpu() -> float | None:
    """CPU seconds that all processors spent on anything so far, time stolen by the host included.

    None where the system does not say (anything but Linux). Its resolution is a hundredth of a second.
    """
    try:
        with _STAT.open(encoding="ascii") as file:
            fields = [int(f) for f in file.readline().split()[1 : 1 + _COUNTED]]
    except (OSError, ValueError):
        return None
    return sum(f for i, f in enumerate(fields) if i not in _IDLE) / _TICKS


def processors() -> int:
    """Number of processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
