"""``secateur sweep``: what is wrong is told first, jobs are done once, failures stay with a model, the front holds."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from exporter.cli import main
from exporter.sweeps.results import Row, marked
from tests.exporter.trained import files

SWEEP = """\
models: [model.onnx]
folder: out
budgets: [0.7, 0.5]
methods:
  cut:
    - prune: {macs: $budget, align: 1}
  weights:
    - quantize: {precision: int8-weight, calib: data.npz, seconds: 0}
devices:
  here: {threads: 1, seconds: 0.05, no-outputs: true}
eval: {data: data.npz, metric: top1}
"""


@pytest.fixture
def place(place, monkeypatch):
    files(place, 100, "y")
    ran = []

    def command(line, quiet, log, stop, threads):
        ran.append(line[0])
        with Path(log.name).open("a") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return main(list(line))

    monkeypatch.setattr("exporter.sweeps.jobs.run_command", command)
    return ran


def sweep(text=SWEEP, *options):
    Path("sweep.yaml").write_text(text)
    return main(["sweep", "sweep.yaml", "-q", "--json", "found.json", *options])


def rows():
    return {(r["method"], r["budget"], r["device"]): r for r in json.loads(Path("found.json").read_text())["rows"]}


def test_every_job_is_done_once(place, capsys):
    assert sweep(SWEEP, "--plot", "front.svg", "--report", "front.html") == 0
    assert sorted(place) == ["compare"] * 3 + ["eval"] * 4 + ["prune"] * 2 + ["quantize"]
    assert place[-3:] == ["compare"] * 3, "what measures comes last, alone"
    found = rows()
    assert set(found) == {(m, b, "here") for m, b in ((None, None), ("cut", "0.7"), ("cut", "0.5"), ("weights", None))}
    first, cut = found[None, None, "here"], found["cut", "0.5", "here"]
    assert first["accuracy"]["value"] > 0.9
    assert cut["macs"] <= 0.5 * first["macs"]
    assert found["weights", None, "here"]["macs"] == first["macs"]
    assert cut["latency_s"] == pytest.approx(first["latency_s"] * cut["latency_ratio"]["value"])
    assert any(r["pareto"] for r in found.values())
    said = capsys.readouterr().out
    assert "times as long" in said
    assert ("*" in said) == any(r["pareto"] for r in found.values())
    assert "against latency on here" in Path("front.svg").read_text()
    assert "out/model/cut-0.5/01-prune.onnx" in Path("front.html").read_text()

    del place[:]
    assert sweep() == 0
    assert rows() == found
    assert place == []
    assert sweep(SWEEP.replace("0.7, 0.5", "0.7, 0.5, 0.3")) == 0
    assert place == ["prune", "eval", "compare"]
    del place[:]
    Path("out/model/cut-0.5/01-prune.onnx").unlink()
    assert sweep() == 0
    assert place == ["prune"], "the same file again: what was found of it holds"
    del place[:]
    assert main(["sweep", "sweep.yaml", "--explain"]) == 0
    assert "secateur prune model.onnx -o out/model/cut-0.7/01-prune.onnx --macs=0.7" in capsys.readouterr().out
    assert place == []


def test_a_failure_is_of_one_model(place, capsys):
    text = SWEEP.replace("0.7, 0.5", "0.7, 0.0001").replace("  here:", "  other: {tag: rack}\n  here:")
    assert sweep(text) == 1
    found = rows()
    assert "here" in {d for _, _, d in found}
    assert "other" not in {d for _, _, d in found}
    failed = found["cut", "0.0001", "here"]
    assert failed["error"].startswith("exit code 1: ")
    assert "out/model/cut-0.0001/make.log" in failed["error"]
    assert failed["file"] is None
    assert found["cut", "0.7", "here"]["accuracy"]["value"] > 0.5
    assert "exit code 1: " in capsys.readouterr().out
    del place[:]
    assert sweep(text) == 1
    assert place == [], "the budget is out of reach the next time too"


def test_what_nobody_explained_is_tried_again(place, monkeypatch, capsys):
    text = SWEEP.replace("devices:\n  here: {threads: 1, seconds: 0.05, no-outputs: true}", "devices: {}")
    with monkeypatch.context() as patch:
        patch.setattr("exporter.sweeps.jobs.run_command", lambda *_: -9)
        assert sweep(text) == 1
    assert rows()["cut", "0.7", None]["error"].startswith("signal 9")
    assert sweep(text) == 0
    found = rows()
    assert sorted(place) == ["eval"] * 4 + ["prune"] * 2 + ["quantize"]
    assert found["cut", "0.7", None]["latency_s"] is None
    assert any(r["pareto"] for r in found.values()), "of accuracy and work, where nothing was timed"
    capsys.readouterr()


def test_variables_of_a_model(place, capsys):
    """Data of each model's own, texts around a variable, and a list."""
    text = SWEEP.replace("[model.onnx]", "{a: {file: model.onnx, data: data.npz, whole: ['w1*', 'w3*']}}")
    text = text.replace("eval: {data: data.npz", "eval: {data: $data").replace("macs: $budget", "macs: '${budget}0'")
    text = text.replace("align: 1", "align: 1, keep: $whole, save-plan: $folder/p.json")
    Path("sweep.yaml").write_text(text)
    assert main(["sweep", "sweep.yaml", "--explain"]) == 0
    said = capsys.readouterr().out
    for typed in ("--macs=0.50 ", "--keep=w1*' '--keep=w3*'", "--save-plan=out/a/cut-0.5/p.json", "--data=data.npz "):
        assert typed in said


WRONG = {
    "models: [model.onnx]": ("models: [gone.onnx]", "sweep.yaml:1: models: there is no file gone.onnx"),
    "[model.onnx]": ("[model.onnx, model.onnx]", "sweep.yaml:1: models: 'model' stands for two files"),
    "budgets: [0.7, 0.5]": ("budgets: 0.7", "sweep.yaml:3: 'budgets' is a list"),
    "[0.7, 0.5]": ("[0.7, 0.7]", "sweep.yaml:3: budgets: 0.7 stands here twice"),
    "macs: $budget": ("macs: 0.5", "sweep.yaml:3: budgets: no method has '$budget'"),
    "macs: ": ("mac: ", "sweep.yaml:6: step 1 (prune): there is no key 'mac'. Did you mean 'macs'?"),
    "$budget": ("$budged", "sweep.yaml:6: methods: cut: the model 'model' has no variable 'budged'"),
    "align: 1": ("save-plan: p.json", "would both write p.json; write $folder/p.json"),
    "prune: {macs: $budget, align: 1}": ("inspect: {}", "no method has '$budget'"),
    "    - quantize:": ("    - inspect: {}\n  x:\n    - quantize:", "methods: weights: no step of it makes a model"),
    "cut:": ("../cut:", "sweep.yaml:5: methods: '../cut' is no name"),
    "threads: 1": ("thread: 1", "sweep.yaml:10: devices: here: there is no key 'thread'. Did you mean 'threads'?"),
    "no-outputs: true": ("report: r.html", "sweep.yaml:10: devices: here: 'report' would be written again"),
    "metric: top1": ("metric: top1, json: x", "sweep.yaml:11: eval: 'json' is filled in for every model"),
    "eval:": ("judge:", "there is no key 'judge'"),
    "folder: out": ("folder: [out]", "sweep.yaml:2: 'folder' is a path"),
}


@pytest.mark.parametrize("old", WRONG)
def test_what_is_wrong(old, place, capsys):
    assert sweep(SWEEP.replace(old, WRONG[old][0], 1)) == 2
    said = capsys.readouterr().err
    assert WRONG[old][1] in said
    assert "Nothing was run." in said
    assert place == []


def test_a_store_of_something_else(place, capsys):
    Path("out").mkdir()
    Path("out/results.sqlite").write_text("no database, and long enough to be read as one" * 99)
    assert sweep() == 2
    assert "out/results.sqlite cannot be used as a store of results" in capsys.readouterr().err
    assert place == []


POINTS = {  # accuracy, latency, on the front
    "dominated": [(0.9, 1.0, True), (0.8, 2.0, False), (0.95, 2.0, True)],
    "equal points stand both": [(0.9, 1.0, True), (0.9, 1.0, True)],
    "as good and slower": [(0.9, 1.0, True), (0.9, 1.1, False)],
    "as fast and worse": [(0.9, 1.0, True), (0.8, 1.0, False)],
    "unknown": [(None, 1.0, False), (0.9, None, False), (0.5, 3.0, True)],
}


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("name", POINTS)
def test_front(name, better):
    def row(value, latency, task="t"):
        sign = 1 if better == "higher" else -1
        judged = None if value is None else {"metric": "m", "value": sign * value, "better": better}
        return Row("s", "m", "", "f", 1, 1, task, judged, latency, None, False, "")

    found = marked([*(row(a, t) for a, t, _ in POINTS[name]), row(9.9, 0.1, "another task")])
    assert [r.front for r in found] == [*(front for _, _, front in POINTS[name]), True]
