"""The journal of a calibration: killed anywhere, it goes on from there, to the same bytes as if it had not been."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from exporter import load
from exporter.calibration import journal
from exporter.calibration.cache import Cache
from exporter.calibration.journal import Journal, open_journal, remove
from tests.exporter.files import write
from tests.exporter.forking import start_forking
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
    journal.Journal.keep = keep
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
    "searched": {"max_drop": "20%", "calib_samples": 300, "metric": "cosine"},
    "blocks too": {"macs": 0.5, "granularity": ["layers", "neurons", "channels", "hidden"]},
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="commands run in forks")


def deep():
    """Five layers one after another, each with the next a pair that is fitted together, and a residual sum."""
    rng = np.random.default_rng(0)
    sizes = [8, 24, 20, 24, 20, 4]
    constants = {}
    for k, (inputs, outputs) in enumerate(pairwise(sizes)):
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
        self._known: dict[str, Told] = {}
        write(deep(), folder)
        rng = np.random.default_rng(1)
        np.savez(folder / "data.npz", x=rng.standard_normal((700, 8)).astype(np.float32))
        self.process = start_forking(FORKS, folder, XDG_CACHE_HOME=folder / "cache")

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

    def uninterrupted(self, way: str) -> Told:
        """What came of a run without an interruption and without anything in the cache."""
        if way not in self._known:
            self.forget()
            self._known[way] = self.whole(WAYS[way])
            assert not self._known[way].reused
            assert not self.entries(), "what is done is not needed any more"
        return self._known[way]

    def forget(self) -> None:
        shutil.rmtree(self.folder / "cache", ignore_errors=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("runs"))
    yield made
    made.process.stdin.close()
    made.process.wait(60)
    made.process.stdout.close()


def check(runs, way, moments):
    """Kill after some steps, given as shares of all; each step is computed once by the two runs together."""
    request, whole = WAYS[way], runs.uninterrupted(way)
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


@pytest.mark.parametrize(
    ("way", "moments"), [("once", [0.2, 0.95]), pytest.param("in two rounds", [0.9], marks=pytest.mark.slow)]
)
def test_a_killed_run_goes_on(way, moments, runs):
    check(runs, way, moments)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_killed_after_any_step_goes_on(way, runs):
    check(runs, way, np.linspace(0, 1, int(os.environ.get("SECATEUR_KILLS", "60"))))


@pytest.mark.slow
def test_a_run_killed_again_and_again_comes_to_its_end(runs):
    whole = runs.uninterrupted("once")
    runs.forget()
    for _ in range(4):
        assert runs.run(WAYS["once"], len(whole.kept) // 5) == -signal.SIGKILL
    again = runs.whole(WAYS["once"])
    assert again.made == whole.made
    assert len(again.kept) <= len(whole.kept) // 5 + 4


def test_damaged_steps_are_computed_again(runs):
    whole = runs.uninterrupted("once")
    runs.forget()
    assert runs.run(WAYS["once"], len(whole.kept)) == -signal.SIGKILL
    entries = runs.entries()
    good, cut, flipped, swapped, *_ = entries
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    data = flipped.read_bytes()
    middle = len(data) // 2
    flipped.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    shutil.copy(good, swapped)
    again = runs.whole(WAYS["once"])
    assert again.made == whole.made
    assert again.reused == len(entries) - 3
    assert len(again.kept) == 3


def test_another_question_has_a_journal_of_its_own(runs):
    whole = runs.uninterrupted("once")
    runs.forget()
    assert runs.run(WAYS["once"], len(whole.kept)) == -signal.SIGKILL
    left = runs.entries()
    assert runs.whole({"macs": 0.6}).made != whole.made
    kept = runs.entries()
    assert set(kept) < set(left), "trials of plans were of use to both, and have gone"
    again = runs.whole(WAYS["once"])
    assert again.made == whole.made
    assert again.reused == len(kept)


# -- the journal itself -----------------------------------------------------------------------------------------------

STEP = {"a": np.arange(5.0), "b c": np.ones((2, 3), np.float16)}


def opened(folder: Path, key: str = "k") -> Journal:
    return open_journal(Cache(folder), lambda: key)


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "journals").iterdir()}


def test_a_step_is_read_as_it_was_kept(tmp_path):
    opened(tmp_path).keep("one", STEP, 1.0)
    again = opened(tmp_path)
    found = again.known("one")
    assert found.keys() == STEP.keys()
    for name, values in STEP.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    assert again.known("two") is None
    assert opened(tmp_path, "other").known("one") is None
    assert (again.reused, again.cache.resumed) == (1, 1)
    assert again.remember("one", dict).keys() == STEP.keys()


def test_only_what_takes_longer_than_keeping_it_is_kept(tmp_path):
    large = {"a": np.zeros(1 << 20)}
    steps = opened(tmp_path)
    for name, values, seconds in (("quick", STEP, 0.05), ("long", STEP, 0.5), ("large", large, 0.5)):
        steps.keep(name, values, seconds)
    assert [name for name in ("quick", "long", "large") if opened(tmp_path).known(name)] == ["long"]
    assert steps.remember("quick", lambda: STEP) is STEP
    assert not opened(tmp_path).known("quick")


def test_without_a_cache_folder_nothing_is_kept_and_no_key_is_made():
    for cache in (None, Cache()):
        steps = open_journal(cache, lambda: pytest.fail("a key is the hash of a model"))
        steps.keep("one", STEP, 1.0)
        assert steps.known("one") is None


def test_what_this_run_kept_itself_is_not_called_resumed(tmp_path):
    cache = Cache(tmp_path)
    for _ in range(2):
        open_journal(cache, lambda: "k").keep("one", STEP, 1.0)
        assert open_journal(cache, lambda: "k").known("one")
    assert not cache.resumed
    remove(cache)
    assert not cache.journals
    assert not names(tmp_path)


def test_one_journal_can_go_alone(tmp_path):
    cache = Cache(tmp_path)
    for key in "ab":
        open_journal(cache, key.__str__).keep("one", STEP, 1.0)
    remove(cache, open_journal(cache, lambda: "a"))
    assert names(tmp_path) == {"b"}


def test_journals_that_nobody_took_up_go_after_a_week(tmp_path):
    for key in ("old", "resumed", "new"):
        opened(tmp_path, key).keep("one", STEP, 1.0)
    for key in ("old", "resumed"):
        os.utime(tmp_path / "journals" / key, (0, time.time() - 8 * 86400))
    opened(tmp_path, "resumed")
    opened(tmp_path, "another").keep("one", STEP, 1.0)
    assert names(tmp_path) == {"resumed", "new", "another"}


def test_journals_take_no_more_than_they_may(tmp_path, monkeypatch):
    for k, key in enumerate(("first", "second")):
        opened(tmp_path, key).keep("one", STEP, 1.0)
        os.utime(tmp_path / "journals" / key, (0, time.time() - 100 + k))
    size = next((tmp_path / "journals" / "first").iterdir()).stat().st_size
    monkeypatch.setattr(journal, "LARGEST", 2 * size + 10)
    steps = opened(tmp_path, "third")
    steps.keep("one", STEP, 1.0)
    assert names(tmp_path) == {"second", "third"}
    steps.keep("two", {"a": np.zeros(2 * size)}, 100.0)
    assert names(tmp_path) == {"third"}
    assert steps.known("one")
    assert steps.known("two") is None
    assert "will not go on from where it was" in steps.cache.notes[0]
    assert "no room" in steps.cache.notes[0]


@pytest.mark.parametrize("why", ["a full disk", "a file in the way"])
def test_a_journal_that_cannot_be_written_is_no_error(why, tmp_path, monkeypatch):
    if why == "a full disk":
        usage = shutil.disk_usage(tmp_path)._replace(free=journal._LEFT_FREE)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:
        (tmp_path / "journals").write_text("")
    steps = opened(tmp_path)
    for name in ("one", "two"):
        steps.keep(name, STEP, 1.0)
        assert steps.known(name) is None
    assert len(steps.cache.notes) == 1


def test_fits_of_other_shapes_are_no_fits(tmp_path):
    """A cache folder may be shared: what does not fit the graph is fitted anew."""
    from exporter.calibration.fit_journal import FitJournal, Fitted

    graph = load(write(deep(), tmp_path))
    fits = FitJournal(opened(tmp_path / "cache"), graph)
    good = {"w1": graph.array("w1"), "b1": graph.array("b1")}
    whole = Fitted(0.5, 0.25, None, good, {"w2": graph.array("w2")})
    fits.keep("w1", whole, 1.0)
    found = FitJournal(opened(tmp_path / "cache"), graph).known("w1")
    assert (found.before, found.after, found.damping) == (0.5, 0.25, None)
    assert (found.alone.keys(), found.together.keys()) == (good.keys(), {"w2"})
    for bad in ({"w1": good["w1"][1:]}, {"w1": good["w1"].astype(np.float16)}, {"nothing": good["w1"]}):
        fits.keep("w1", Fitted(0.5, 0.25, 0.1, bad, {}), 1.0)
        assert FitJournal(opened(tmp_path / "cache"), graph).known("w1") is None
