"""Run work in a process of its own: bounded in time, measured, its memory returned and a crash contained.

``call("module:function", seconds, ...)`` runs a function of this folder in a child and hands back what it returned;
``run([...], seconds)`` runs any command. Both report the CPU time, wall time and peak memory of the child. The parent
should import nothing heavy: on Linux a child's peak memory starts at its parent's.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
THREADS = "2"
"""Threads any tool may use inside one operator."""

_POLL_SECONDS = 0.02
_ERROR_LENGTH = 300


@dataclass(frozen=True)
class Usage:
    """What a child process took.

    Attributes:
        wall: seconds from start to end.
        cpu: user and system seconds, of the child and of what it waited for.
        peak: largest resident memory, in bytes.
        status: exit status; negative: the signal that ended it.
        timed_out: whether it was ended at its time limit.
        output: the end of what it printed.
    """

    wall: float
    cpu: float
    peak: int
    status: int
    timed_out: bool
    output: str


@dataclass(frozen=True)
class Outcome:
    """What a function in a child returned, or one line saying why it did not."""

    value: dict[str, Any]
    error: str
    usage: Usage


def run(command: Sequence[str], seconds: float, **variables: str) -> Usage:
    """Run a command to its end, or end it after ``seconds``, with more variables in its environment."""
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment() | variables,
        )
        timed_out = False
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if not timed_out and time.perf_counter() - started > seconds:
                    timed_out = True
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
        text = log.read().decode(errors="replace")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(wall, usage.ru_utime + usage.ru_stime, peak, process.returncode, timed_out, text)


def command_for(function: str, result: Path, arguments: dict[str, Any]) -> list[str]:
    """The command that runs ``module:function`` of this folder and writes what it returns to ``result``."""
    return [sys.executable, str(Path(__file__).resolve()), function, str(result), json.dumps(arguments)]


def call(function: str, seconds: float, /, **arguments: Any) -> Outcome:
    """Run ``module:function(**arguments)`` in a child.

    Args:
        function: where it is, in this folder; it returns something JSON can hold.
        seconds: time limit.
        **arguments: what JSON can hold.

    Returns:
        What it returned or why it did not, and what it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        usage = run(command_for(function, result, arguments), seconds)
        if usage.timed_out:
            return Outcome({}, f"time limit of {seconds:.0f} s", usage)
        if not result.is_file():
            tail = usage.output.strip().splitlines()[-1:] or [""]
            return Outcome({}, shorten(f"process ended with status {usage.status}: {tail[0]}"), usage)
        document = json.loads(result.read_text(encoding="utf-8"))
    return Outcome(document.get("value", {}), document.get("error", ""), usage)


def shorten(text: str, length: int = _ERROR_LENGTH) -> str:
    """The text on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def first_line(error: BaseException) -> str:
    """One line for an exception, or for what one of another's code goes back to: its type and the start of its text."""
    while error.__cause__ is not None and not type(error).__module__.startswith(("exporter", "runtime")):
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return shorten(f"{type(error).__name__}: {lines[0]}")


def modules_after(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a function and list the modules it imported, in order. To be called in a child."""
    _resolve(function)(**arguments)
    own = {p.stem for p in HERE.glob("*.py")}
    names = [n for n, m in list(sys.modules.items()) if getattr(m, "__spec__", None) is not None]
    return {"modules": [n for n in names if n not in own and n != "__main__"]}


def import_all(modules: list[str]) -> dict[str, Any]:
    """Import modules and nothing else. To be called in a child."""
    if "torchvision" in modules:
        _resolve("zoo:load_torchvision")()  # may need help
    failed = []
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:  # a module that exists only after a call
            failed.append(name)
    return {"failed": failed}


def _resolve(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def threads_limited(number: str) -> dict[str, str]:
    """Variables that let a tool use so many threads inside one operator."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), number)


def _environment() -> dict[str, str]:
    return {**os.environ, **threads_limited(THREADS), "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}


def _main() -> None:
    function, result, arguments = sys.argv[1:]
    sys.path.append(sys.path.pop(0))  # installed packages first: a file here may be called as one of them
    try:
        document = {"value": _resolve(function)(**json.loads(arguments))}
    except Exception as error:
        import traceback

        traceback.print_exc()
        document = {"error": first_line(error)}
    Path(result).write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    _main()
