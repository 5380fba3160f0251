"""Commands that run a model, from a shell: what ends TensorRT or ONNX Runtime is told, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 60
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")


def start(body, arguments=("build", "model.onnx", "-o", "out.engine"), **options):
    """A shell's command, whose work is some lines instead."""
    lines = [
        "import os, signal, sys, time",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",  # a shell's background jobs do not hear it
        f"import exporter.commands.{arguments[0]} as command",
        "def run(options):",
        *(f"    {line}" for line in body.splitlines()),
        "command.run = run",
        "from exporter.cli import main",
        f"sys.argv = ['secateur', *{arguments}]",
        "sys.exit(main())",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("return 0", 0, ""),
        ("return 5", 5, ""),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 3, "TensorRT ended the process (SIGSEGV)"),
        ("os.abort()", 3, "TensorRT ended the process (SIGABRT)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 3, "want of memory"),
        ("from runtime.errors import BadRequest\nraise BadRequest('no such thing')", 2, "no such thing"),
    ],
)
def test_what_became_of_it_is_told(body, code, text):
    with start(body) as process:
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == code
    assert said.count("secateur:") == (1 if text else 0)
    assert text in said


@pytest.mark.parametrize("name", ["bench", "compare", "profile", "lint"])
def test_what_measures_tells_it_too(name):
    models = ("model.onnx", "other.onnx") if name == "compare" else ("model.onnx",)
    with start("os.kill(os.getpid(), signal.SIGSEGV)", (name, *models)) as process:
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 3
    assert "secateur: ONNX Runtime, or what --backend names, ended the process (SIGSEGV)" in said


def gone(pid):
    """Whether a process has ended, within a while."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, where a parent's end can be followed")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_started_it(how):
    with start("print(os.getpid(), flush=True)\ntime.sleep(300)") as process:
        child = int(process.stdout.readline())
        assert child != process.pid
        os.kill(process.pid, how)
        assert process.wait(SECONDS) in (-how, 128 + how)
        assert gone(child)


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["from a terminal", "to the process alone"])
def test_an_interrupt_is_told_once(send):
    """Supervisors know one process, and send it to that."""
    with start("print('ready', flush=True)\ntime.sleep(300)", start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        send(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert said.count("interrupted") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("backends",), ("backends", "--json", "-")])
def test_a_full_disk_is_told(arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "exporter", *arguments], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False, timeout=SECONDS,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "secateur: the result cannot be written to stdout: No space left on device.\n"
