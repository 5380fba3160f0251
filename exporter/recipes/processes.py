"""A command in a process of its own: its memory is given back, and it ends when its parent does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO

from runtime.fresh import own_environment

_PARENT = "SECATEUR_PARENT"
_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""
_LOOK = 0.2
"""Seconds between two looks at whether to stop."""
_GRACE = 5.0


def run_command(
    line: Sequence[str],
    quiet: bool,
    log: IO[bytes] | None = None,
    stop: Callable[[], bool] = lambda: False,
    threads: int = 0,
) -> int:
    """Run a command line of Secateur's.

    Args:
        line: the command and its arguments.
        quiet: what it prints is dropped; errors are not.
        log: takes all that it says, where it is given.
        stop: asked now and then whether to end it early.
        threads: for linear algebra, unless the environment says another number; 0 leaves that to the libraries.

    Returns:
        Its exit code; negative where a signal ended it.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "exporter", *line],
        env={**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **own_environment(), _PARENT: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=log if log is not None else subprocess.DEVNULL if quiet else None,
        stderr=subprocess.STDOUT if log is not None else None,
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK)
            if stop():
                process.terminate()
                return process.wait(_GRACE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def bind_to_parent() -> bool:
    """Have the system end this process when the one ends that ran it by ``run_command``, however that ends (Linux).

    Returns:
        False where it has ended already.
    """
    parent = os.environ.pop(_PARENT, "")
    return not parent.isdigit() or end_with(int(parent))


def end_with(parent: int) -> bool:
    """Have the system end this process when its parent ends, however that ends (Linux).

    Returns:
        False where it has ended already.
    """
    if not sys.platform.startswith("linux"):
        return True
    import ctypes

    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    return os.getppid() == parent
