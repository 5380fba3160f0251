"""A command in a process of its own: where TensorRT ends that at a broken file, there is somebody left to say so."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from runtime.errors import RunError

_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def run_apart(run: Callable[[], int]) -> int:
    """Run a command in a child, where the system can fork; returns its exit code.

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
        _end_with(parent)
        return run()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # the child has it too, and says so
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            break
    if code >= 0:
        return code
    if code == -signal.SIGTERM:
        return 128 + signal.SIGTERM
    if code == -signal.SIGKILL:
        raise RunError("the process was killed, most likely for want of memory. Nothing was written.")
    raise RunError(
        f"TensorRT ended the process ({signal.Signals(-code).name}). Nothing was written.\n"
        "It does so at files that are broken in ways it does not look for; python -m onnx.checker MODEL finds many. "
        "If the file is sound this is a defect of TensorRT or its driver."
    )


def _end_with(parent: int) -> None:
    """Let this process be killed when its parent is; Linux alone can."""
    with contextlib.suppress(AttributeError, OSError):
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it was quicker
            os.kill(os.getpid(), signal.SIGKILL)
