"""The journal of a calibration: killed anywhere, it goes on from there, to the same bytes as if it had not been."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from exporter import load
from exporter.calibration import journal
from exporter.calibration.cache import Cache
from exporter.calibration.compensation import compensate
from exporter.calibration.journal import Journal, open_journal, remove
from tests.exporter.files import write
from tests.onnx_builder import build, node

FORKS = """
import json, os, signal, sys
import numpy, onnxruntime
from exporter import prune
from exporter.calibration import (
    accuracy, compensation, damage, data, fidelity, fit_journal, joint, journal, predictions, trial
)
journal.SHARE = float("inf")  # however little it took
keep = journal.Journal.keep

def run(request):
    last, kept = request.pop("last"), []

    def kill_after(self, name, *rest):
        keep(self, name, *rest)
        if self.key:
            kept.append(name)
            if len(kept) == last:
                os.kill(os.getpid(), signal.SIGKILL)

    journal.Journal.keep = kill_after
    result = prune("model.onnx", "out.onnx", calib="data.npz", cache=True, align=1, **request)
    result.plan.save("plan.json")
    with open("told.json", "w") as file:
        json.dump({"kept": kept, "warnings": result.warnings}, file)

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 70
        try:
            run(json.loads(line))
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

WAYS = {
    "once": {"macs": 0.5},
    "in two rounds": {"macs": 0.5, "steps": 2},
    "searched": {"max_drop": "5%", "calib_samples": 300},
    "a plan": {"plan": True},
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="commands run in forks")


def deep():
    """Five layers one after another, each with the next a pair that is fitted together, and a residual sum."""
    rng = np.random.default_rng(0)
    sizes = [8, 24, 20, 24, 20, 4]
    constants = {}
    for k, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        constants[f"w{k}"] = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        constants[f"b{k}"] = (0.3 * rng.standard_normal(outputs)).astype(np.float32)
    nodes = [
        node("Gemm", "x w0 b0", "h0"), node("Relu", "h0", "a0"), node("Gemm", "a0 w1 b1", "h1"),
        node("Relu", "h1", "a1"), node("Gemm", "a1 w2 b2", "h2"), node("Relu", "h2", "a2"),
        node("Gemm", "a2 w3 b3", "h3"), node("Add", "h3 a1", "s"), node("Relu", "s", "a3"),
        node("Gemm", "a3 w4 b4", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 8]}, ["y"], constants)


@dataclass(frozen=True)
class Told:
    """What a run that came to its end did.

    Attributes:
        made: the model and the plan, byte for byte.
        kept: the steps that it computed.
        reused: how many of an earlier run it took.
    """

    made: tuple[bytes, bytes]
    kept: list[str]
    reused: int


class Runs:
    """Runs of ``prune`` in forks of a process that has imported everything, in a folder with a model and data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journals = folder, folder / "cache" / "secateur" / "journals"
        write(deep(), folder)
        rng = np.random.default_rng(1)
        np.savez(folder / "data.npz", x=rng.standard_normal((700, 8)).astype(np.float32))
        places = {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[3])}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FORKS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, **places, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def run(self, request: dict[str, object], last: int = 0) -> int:
        """The exit code of a run, which is killed after so many steps, or never."""
        self.process.stdin.write(json.dumps({**request, "last": last}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def whole(self, request: dict[str, object]) -> Told:
        """A run that is not killed."""
        assert self.run(request) == 0
        told = json.loads((self.folder / "told.json").read_text())
        made = tuple((self.folder / name).read_bytes() for name in ("out.onnx", "plan.json"))
        for name in ("out.onnx", "plan.json", "told.json"):
            (self.folder / name).unlink()
        counts = [re.search(r"interrupted: (\d+) of its steps", line) for line in told["warnings"]]
        return Told(made, told["kept"], sum(int(found[1]) for found in counts if found))

    def entries(self) -> list[Path]:
        return sorted(self.journals.rglob("*.npz"))

    def forget(self) -> None:
        shutil.rmtree(self.folder / "cache", ignore_errors=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("runs"))
    yield made
    made.process.stdin.close()
    made.process.wait(60)
    made.process.stdout.close()


def check(runs, request, moments):
    """Kill after some steps, given as shares of all; each step is computed once by the two runs together."""
    runs.forget()
    whole = runs.whole(request)
    assert not whole.reused
    assert not runs.entries(), "what is done is not needed any more"
    count = len(whole.kept)
    for last in sorted({max(1, min(count, round(share * count))) for share in moments}):
        runs.forget()
        assert runs.run(request, last) == -signal.SIGKILL
        assert not (runs.folder / "out.onnx").exists()
        again = runs.whole(request)
        assert again.made == whole.made
        assert [*whole.kept[:last], *again.kept] == whole.kept
        # predictions that are complete went from the journal to the cache
        assert again.reused or whole.kept[last - 1].startswith("reactions")
        assert not runs.entries()


@pytest.mark.parametrize("way", ["once", "in two rounds"])
def test_a_killed_run_goes_on(way, runs):
    check(runs, WAYS[way], [0.2, 0.6, 1.0] if way == "once" else [0.9])
