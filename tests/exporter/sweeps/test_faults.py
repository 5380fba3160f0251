"""However a sweep ends, nothing of it runs on, what was done is kept, and the next one goes on; two never collide."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from exporter.errors import UsageError
from exporter.sweeps.store import NAME, Outcome, opened
from exporter.sweeps.turns import Stopped, turn
from tests.exporter.trained import files

ROOT = Path(__file__).parents[3]
SWEEP = """\
models: [model.onnx]
folder: out
budgets: [0.5]
methods: {cut: [prune: {macs: $budget, align: 1}]}
devices: {}
eval: {data: data.npz, metric: top1}
"""


def commands_in(place):
    """Processes of ours that work in a folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = "-m\0exporter\0" in (folder / "cmdline").read_text()
            if ours and (folder / "cwd").readlink().is_relative_to(place):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def heed_interrupts():
    """In a child, before it starts: what a shell runs in the background is told to ignore them, and passes that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def jobs_done():
    with opened(Path("out"), reading=True) as store:
        return store._base.execute("SELECT kind, name, at FROM jobs WHERE code = 0").fetchall()


def nothing_runs(place):
    until = time.monotonic() + 60
    while commands_in(place) and time.monotonic() < until:
        time.sleep(0.05)
    return not commands_in(place)


ONLY_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with a parent")


@ONLY_LINUX
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed(how, place):
    files(place, 100, "y")
    Path("sweep.yaml").write_text(SWEEP)
    line = [sys.executable, "-m", "exporter", "sweep", "sweep.yaml", "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(line, env=environment, preexec_fn=heed_interrupts, **pipes)  # noqa: PLW1509
    log = Path("out/model/cut-0.5/make.log")  # of the second job; the first judges the model
    while not (log.exists() and log.stat().st_size and jobs_done()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == (130 if how == signal.SIGINT else -9)
    assert ("what was done is kept in out" in said) == (how == signal.SIGINT)
    assert nothing_runs(place)
    known = jobs_done()
    assert [job[:2] for job in known] == [("eval", "model")]
    if how == signal.SIGINT:
        return
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    with opened(Path("out")) as store:
        assert known[0] in store._base.execute("SELECT kind, name, at FROM jobs").fetchall()  # it was not done again
    assert "cut" in done.stdout


def found():
    """What a sweep came to: of each of its models accuracy, cost and content."""
    rows = [(r["budget"], r["accuracy"], r["macs"]) for r in json.loads(Path("found.json").read_text())["rows"]]
    return rows, {str(m): m.read_bytes() for m in Path("out").rglob("*.onnx")}


@ONLY_LINUX
@pytest.mark.slow
def test_killed_often(place):
    """24 kills at random moments, or SECATEUR_KILLS: what was done stays done, and the end is the same."""
    times, rng = int(os.environ.get("SECATEUR_KILLS", "24")), random.Random(0)
    files(place, 100, "y")
    Path("sweep.yaml").write_text(SWEEP.replace("[0.5]", "[0.7, 0.5]"))
    before = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
    line = [sys.executable, "-m", "exporter", "sweep", "sweep.yaml", "--jobs", "2", "--json", "found.json"]
    quiet = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.DEVNULL}
    killed = kept = 0

    def ends():
        done = subprocess.run(line, check=False, stderr=subprocess.PIPE, text=True, timeout=300, **quiet)
        assert done.returncode == 0, done.stderr
        return found()

    started = time.monotonic()
    want = ends()
    seconds = time.monotonic() - started
    while killed < times:
        shutil.rmtree("out")
        Path("found.json").unlink()
        known = set()
        for _ in range(4):
            process = subprocess.Popen(line, stderr=subprocess.DEVNULL, **quiet)
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, seconds))
            process.kill()
            killed += process.wait(60) == -signal.SIGKILL
            assert nothing_runs(place)
            for left in place.rglob(".*.tmp"):
                os.utime(left, (0, 0))  # it was not made just now
            assert {name: Path(name).read_bytes() for name in before} == before
            assert not Path("found.json").exists() or found() == want
            if Path("out", NAME).exists():
                assert known <= set(jobs_done()), "what was done is not done again"
                known = set(jobs_done())
        kept += len(known)
        assert ends() == want
        assert known <= set(jobs_done())
        assert not list(place.rglob(".*.tmp"))
    assert kept


def test_two_sweeps_in_one_folder(place):
    with opened(place), pytest.raises(UsageError, match="another sweep is working"), opened(place):
        pass
    with opened(place) as first, opened(place, reading=True) as second:
        first.keep("k", "eval", "n", Outcome({"value": 1.5}, 2.0, "m"))
        assert second.find("k") == Outcome({"value": 1.5}, 2.0, "m")
        assert second.find("k", {"m"}) is not None
        assert second.find("k", {"another machine"}) is None
        first.keep("k", "eval", "n", Outcome({}, 2.0, "m", 1, "why"))
        assert second.find("k").code == 1


def test_turns(place):
    """Whoever measures waits for others, and others that come later wait for it."""
    events: list[str] = []
    release = threading.Event()

    def measure():
        with turn(True, lambda: False):
            events.append("alone")
            release.wait(20)
            events.append("done")

    def work():
        with turn(False, lambda: False):
            events.append("beside")

    with turn(False, lambda: False), turn(False, lambda: False):  # these share
        alone = threading.Thread(target=measure)
        alone.start()
        time.sleep(0.3)
        later = threading.Thread(target=work)
        later.start()
        time.sleep(0.3)
        assert events == []
    until = time.monotonic() + 60
    while not events and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    assert events == ["alone"]
    with pytest.raises(Stopped), turn(False, lambda: True):
        pass
    release.set()
    alone.join()
    later.join()
    assert events == ["alone", "done", "beside"]
