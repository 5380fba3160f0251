"""A command in a process of its own: where what runs a model ends that, there is somebody left to say so."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable

from exporter.recipes.processes import end_with
from runtime.errors import RunError

_PATIENCE, _PAUSE = 1.0, 0.02
"""Seconds that a child has to end after an interrupt that it may have had as well; between two looks at it."""


def run_apart(run: Callable[[], int], by: str) -> int:
    """Run a command in a child, where the system can fork; returns its exit code.

    Args:
        run: the command.
        by: what may end the child's process.

    Raises:
        RunError: a signal ended it.
    """
    if not hasattr(os, "fork"):
        return run()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if not child:
        return run() if end_with(parent) else 1
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    code = None
    while code is None:
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except KeyboardInterrupt:  # from a terminal the child has it too, and says so
            code = _ended(child, _PATIENCE)
            if code is None:
                os.kill(child, signal.SIGINT)
    if code >= 0:
        return code
    if code == -signal.SIGTERM:
        return 128 + signal.SIGTERM
    if code == -signal.SIGKILL:
        raise RunError("the process was killed, most likely for want of memory. Nothing was written.")
    raise RunError(
        f"{by} ended the process ({signal.Signals(-code).name}). Nothing was written.\n"
        "It does so at files that are broken in ways it does not look for; python -m onnx.checker MODEL finds many. "
        "If the file is sound this is a defect of what runs it, or of a driver."
    )


def _ended(child: int, seconds: float) -> int | None:
    """The exit code of a child that ends by itself within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(KeyboardInterrupt):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(_PAUSE)
    return None
