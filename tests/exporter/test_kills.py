"""kill -9 at random moments of whole commands: what they read is untouched, what they write is old or new.

Commands run in forks of one process that has imported everything, so that 200 of them take minutes and not an hour.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.exporter.files import write_outside
from tests.exporter.forking import start_forking
from tests.exporter.trained import classifier, drawn

FORKS = """
import importlib, json, os, pkgutil, sys
import exporter, runtime
import onnxruntime, torch
for package in (exporter, runtime):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from exporter.cli import main
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 70
        try:
            code = main(request)
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

RECIPE = """\
model: given/model.onnx
eval: {{data: given/data.npz, metric: top1}}
steps:
  - prune: {{macs: {share}, align: 1, calib: given/data.npz, calib-samples: 200}}
  - tune: {{data: given/data.npz, labels: label, epochs: 3}}
  - sparsify: {{pattern: "2:4", calib: given/data.npz, calib-samples: 200}}
"""

TUNE = "tune given/model.onnx -o made/out.onnx --data given/data.npz --labels label --checkpoint made/run.pt --epochs"


@dataclass(frozen=True)
class Case:
    """A command to kill.

    Attributes:
        old: the command line that makes what is there before, if anything is.
        new: the one that is killed.
        writes: the model it writes.
        progress: what keeps its work, to be forgotten once it has ended.
        resumed: what its report says when it went on; empty where it does not say.
        times: how often it is killed.
    """

    old: str
    new: str
    writes: str = "made/out.onnx"
    progress: tuple[str, ...] = ("cache",)
    resumed: str = ""
    times: int = 50


CASES = {
    "prune": Case(
        "prune given/model.onnx -o made/out.onnx --macs 0.7 --align 1 --save-plan made/plan.json",
        "prune given/model.onnx -o made/out.onnx --macs 0.4 --align 1 --save-plan made/plan.json",
    ),
    "sparsify": Case(
        "sparsify given/model.onnx -o made/out.onnx --pattern 1:4", "sparsify given/model.onnx -o made/out.onnx"
    ),
    "calibrate": Case(
        "prune given/model.onnx -o made/out.onnx --macs 0.7 --align 1",
        "prune given/model.onnx -o made/out.onnx --macs 0.4 --align 1 --calib given/data.npz --calib-samples 300",
    ),
    "tune": Case(f"{TUNE} 1", f"{TUNE} 25", progress=("made/run.pt",), resumed="went on from step", times=40),
    "run": Case(
        "",
        "run recipe.yaml",
        writes="recipe/03-sparsify.onnx",
        progress=("recipe", "cache"),
        resumed="done before",
        times=20,
    ),
}


class Forks:
    """The process that runs commands, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("made", "cache", "tmp"):
            (folder / name).mkdir()
        self.process = start_forking(FORKS, folder, XDG_CACHE_HOME=folder / "cache", TMPDIR=folder / "tmp")

    def run(self, line: str, kill_after: float | None = None) -> int:
        """The exit code of a command, killed after so many seconds or not at all."""
        self.process.stdin.write(json.dumps(line.split()) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None and not select.select([self.process.stdout], [], [], kill_after)[0]:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline())

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    made = Forks(folder)
    try:
        yield made
    finally:
        made.process.stdin.close()
        made.process.wait(60)
        made.process.stdout.close()


def given(folder: Path) -> dict[str, bytes]:
    """The model, with its weights outside, and data; what they hold."""
    (folder / "given").mkdir()
    write_outside(classifier(), folder / "given")
    x, y = drawn(400, 1)
    np.savez(folder / "given" / "data.npz", x=x, label=y)
    (folder / "recipe.yaml").write_text(RECIPE.format(share=0.5))
    return {p.name: p.read_bytes() for p in (folder / "given").iterdir()}


def state(path: Path) -> str:
    """What a reader finds at the place of a model, external data included; empty where nothing is."""
    if not path.exists():
        return ""
    onnx.checker.check_model(str(path))
    return hashlib.sha256(onnx.load(path).SerializeToString(deterministic=True)).hexdigest()


def plans(folder: Path) -> str:
    path = folder / "made" / "plan.json"
    return path.read_text() if path.exists() else ""


def temporary(folder: Path) -> list[str]:
    """Whatever looks like a temporary file, and all that Secateur left in the system's temporary folder."""
    others = (".ses", "torchinductor_")  # ONNX Runtime's and torch's
    left = [p for p in folder.rglob(".*") if p.suffix in (".tmp", ".journal")]
    left += [p for p in (folder / "tmp").iterdir() if not p.name.startswith(others)]
    return [str(p.relative_to(folder)) for p in left]


def forget(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def aged(folder: Path) -> None:
    """Nothing that is there was made just now."""
    for path in folder.rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)


def mark(folder: Path) -> None:
    """Change the mode of what the cache holds: an entry that is made anew has another."""
    for path in (folder / "cache").rglob("*.npz"):
        path.chmod(0o600)


def marked(folder: Path) -> bool:
    return any(p.stat().st_mode & 0o777 == 0o600 and p.stat().st_mtime > 0 for p in (folder / "cache").rglob("*.npz"))


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "made").iterdir() if p.suffix != ".pt")


def kills(name: str, times: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Kill a command so many times, and let it end after about every fourth kill; what was found, counted."""
    case, before, rng = CASES[name], given(folder), random.Random(seed)
    out = folder / case.writes
    count = dict.fromkeys(("killed", "found old", "found new", "left temporary files", "then ended", "went on"), 0)
    with forks(folder) as place:

        def ends(line: str) -> tuple[str, str]:
            assert place.run(line) == 0, place.log()
            return state(out), plans(folder)

        old = ends(case.old) if case.old else ("", "")
        forget(folder, case.progress)
        started = time.monotonic()
        new = ends(case.new)
        seconds = time.monotonic() - started
        assert old != new
        files = listed(folder)
        while count["killed"] < times:
            aged(folder)
            late = rng.random() < 0.5  # about when it writes
            started = time.monotonic()
            code = place.run(case.new, seconds * (rng.uniform(0.7, 1.1) if late else rng.uniform(0.0, 1.0)))
            if code == 0:  # the machine has less to do than before
                seconds = min(seconds, time.monotonic() - started)
            assert code in (-signal.SIGKILL, 0), place.log()
            assert {p.name: p.read_bytes() for p in (folder / "given").iterdir()} == before
            assert state(out) in ((old[0], new[0]) if code else (new[0],))
            assert plans(folder) in (old[1], new[1])
            if code:
                count["killed"] += 1
                count["found old" if state(out) == old[0] else "found new"] += 1
                count["left temporary files"] += bool(temporary(folder))
                if state(out) == old[0] and rng.random() < 0.75:
                    continue
            aged(folder)
            mark(folder)
            assert ends(case.new) == new
            count["then ended"] += 1
            count["went on"] += case.resumed in place.log() if case.resumed else marked(folder)
            assert "cannot be used" not in place.log()
            assert temporary(folder) == []
            assert listed(folder) == files
            forget(folder, case.progress)
            if case.old:
                assert ends(case.old) == old
                forget(folder, case.progress)
    print(f"{name}, {seconds:.1f} s: {count}")  # noqa: T201 - the figures, with pytest -s
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_often(name, tmp_path):
    """210 kills; SECATEUR_KILLS is another number for each command."""
    pytest.importorskip("torch")
    times = int(os.environ.get("SECATEUR_KILLS", CASES[name].times))
    count = kills(name, times, tmp_path)
    assert count["killed"] == times
    assert count["found old"] or not CASES[name].old
    assert count["went on"] or name in ("prune", "sparsify")
