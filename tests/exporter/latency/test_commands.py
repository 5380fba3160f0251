"""The commands that measure: what they print, write and return."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.schema_files import stored_schema
from runtime import staircase as stairs_module
from runtime.robust import needed
from tests.onnx_builder import build, ints, node, weights
from tests.schemas import conform

MODELS = Path(__file__).parents[3] / "models"
CNN, VIT = MODELS / "digits_cnn.onnx", MODELS / "digits_vit.onnx"
BRIEF = ("--seconds", "0.1", "--threads", "1", "--shape", "image:2x1x8x8", "-q")


LONGER = ("--seconds", "1", *BRIEF[2:])


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """What is measured once is kept for this module, and not where the user keeps it."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path_factory.getbasetemp() / "latency-cache"))
    monkeypatch.setattr(stairs_module, "_SECONDS", 0.05)


@pytest.fixture
def run(capsys):
    """Run a command line; its exit code, what it printed, what it complained about."""

    def call(*arguments):
        code = main([str(a) for a in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture
def ok(run):
    def call(*arguments):
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    return call


@pytest.mark.timing
def test_bench_a_sweep(ok, tmp_path):
    args = ("bench", CNN, "--seconds", "0.1", "--threads", "1", "-q", "--batch", "1,99", "--streams", "2")
    out = ok(*args, "--json", tmp_path / "b.json", "--csv", tmp_path / "b.csv")
    assert out.splitlines()[2].split()[:3] == ["model", "batch", "median"]
    assert "inputs at batch 1: image 1x1x8x8" in out
    assert "digits_cnn.onnx at batch 99: 2 at a time make" in out
    report = json.loads((tmp_path / "b.json").read_text())
    few = [needed(99) > len(r["samples_s"]) for r in report["results"]]
    assert [f"needs {needed(99)}" in line for line in out.splitlines()[4:6]] == few
    assert [r["batch"] for r in report["results"]] == [1, 99]
    assert [r["shapes"]["image"] for r in report["results"]] == [[1, 1, 8, 8], [99, 1, 8, 8]]
    assert report["environment"]["packages"]["onnxruntime"]
    for r in report["results"]:
        assert r["median_low_s"] <= r["median_s"] <= r["median_high_s"]
        assert r["cold"]["load"] > 0 < r["cold"]["first"]
        assert r["cold"]["memory"] is None or 1e5 < r["cold"]["memory"] < 1e9
        assert r["streams"]["streams"] == 2
        assert len(r["streams"]["samples_s"]) >= 2
        assert r["samples_per_s"] == pytest.approx(r["batch"] * r["streams"]["runs_per_s"])
        assert len({len(r[k]) for r in report["results"] for k in ("samples_s", "switches", "thread_cpu_s")}) <= 2
    rows = list(csv.DictReader(io.StringIO((tmp_path / "b.csv").read_text())))
    assert len(rows) == sum(len(r["samples_s"]) for r in report["results"])
    assert float(rows[0]["wall_s"]) == pytest.approx(report["results"][0]["samples_s"][0])
    assert rows[-1]["batch"] == "99"


def test_bench_recorded_inputs(ok, run, tmp_path):
    np.savez(tmp_path / "in.npz", image=np.zeros((4, 1, 8, 8), np.float32))
    report = json.loads(
        ok("bench", CNN, "--seconds", "0.05", "--no-cold", "--inputs", tmp_path / "in.npz", "--json", "-")
    )
    assert report["results"][0]["shapes"]["image"] == [1, 1, 8, 8]
    assert report["results"][0]["cold"] is None
    code, _, err = run("bench", CNN, "--inputs", tmp_path / "none.npz")
    assert (code, "none.npz is not a readable .npz" in err) == (2, True)


@pytest.mark.timing
def test_bench_stops_early(ok):
    args = ("bench", CNN, "--threads", "1", "--no-cold", "-q", "--shape", "image:2x1x8x8", "--json", "-")
    loose = json.loads(ok(*args, "--seconds", "20", "--precision", "50%"))["results"][0]
    assert loose["settled"]
    assert len(loose["samples_s"]) >= 64
    assert not json.loads(ok(*args, "--seconds", "0.1", "--precision", "0"))["results"][0]["settled"]


@pytest.mark.timing
def test_compare(ok, run, tmp_path):
    out = ok("compare", CNN, VIT, *LONGER, "--layers", "3", "--json", tmp_path / "c.json")
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["clock"] == "cpu"
    assert report["verdict"] == "slower"
    assert report["ratio"]["low"] > 1
    assert "verdict: digits_vit.onnx is slower" in out
    assert "of the deviation" in out
    assert "more layers" in out
    assert report["goal"]["met"] is None
    assert run("compare", CNN, VIT, *LONGER, "--fail-if-slower", "2%")[0] == 1
    assert run("compare", CNN, VIT, *LONGER, "--min-speedup", "1.3")[0] == 1
    code, out, _ = run("compare", VIT, CNN, *LONGER, "--min-speedup", "1.1")
    assert code == 0
    assert "goal (at most 0.909 times as long): met" in out


@pytest.mark.timing
def test_models_of_one_name_are_told_apart(ok, tmp_path):
    """They may lie in two folders, or run with other threads."""
    shutil.copy(VIT, tmp_path / CNN.name)
    out = ok("compare", CNN, tmp_path / CNN.name, *BRIEF, "--no-outputs")
    assert "digits_cnn.onnx (B) takes" in out
    assert "as long as digits_cnn.onnx (A)" in out
    assert "verdict: digits_cnn.onnx (B) is slower" in out or "inconclusive" in out


@pytest.mark.timing
def test_an_open_question_has_its_exit_code(run, monkeypatch):
    import runtime.comparison
    from runtime.robust import Ratio

    monkeypatch.setattr(runtime.comparison, "ratio_of", lambda *_: Ratio(1.0, 0.9, 1.1))
    code, out, _ = run("compare", CNN, CNN, *BRIEF, "--fail-if-slower", "2%", "--no-outputs")
    assert code == 5
    assert "open, the interval holds it" in out
    assert run("compare", CNN, CNN, *BRIEF, "--no-outputs")[0] == 0


@pytest.mark.timing
def test_profile(ok, tmp_path):
    out = ok("profile", CNN, *BRIEF, "--top", "4", "--json", tmp_path / "p.json", "--trace", tmp_path / "t.json")
    assert "node_Conv_" in out
    assert "more kernels" in out
    assert "GFLOP/s" in out
    report = json.loads((tmp_path / "p.json").read_text())
    assert report["kernels_s"] == pytest.approx(sum(n["seconds"] for n in report["nodes"]))
    convs = [n for n in report["nodes"] if n["macs"]]
    assert all(n["flops_per_s"] == pytest.approx(2 * n["macs"] / n["seconds"]) for n in convs if n["seconds"])
    trace = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [e["name"] for e in trace] == [n["name"] for n in report["nodes"]]
    assert {"name", "ts", "dur", "ph", "pid", "tid"} <= trace[0].keys()


def test_backends(ok):
    out = ok("backends")
    assert out.splitlines()[2].startswith("ort-cpu")
    assert "pip install onnxruntime-openvino" in out or "ort-openvino" in out
    report = json.loads(ok("backends", "--json", "-"))
    assert {b["name"]: b["usable"] for b in report["backends"]}["ort-cpu"]


@pytest.mark.timing
def test_probe(ok):
    out = ok("probe", "-q")
    assert "widths to aim at are multiples of: Conv" in out
    report = json.loads(ok("probe", "-q", "--json", "-"))
    assert report["cached"]
    assert set(report["steps"]) == {"Conv", "depthwise Conv", "MatMul"}
    assert report["seconds"]["Conv"]["64"] > 0


@pytest.fixture
def odd(tmp_path):
    """A depthwise network of odd widths."""
    nodes = [
        node("Conv", "x a", "c"), node("Relu", "c", "d"), node("Conv", "d w", "e", group=125, pads=[1, 1, 1, 1]),
        node("Relu", "e", "f"), node("Conv", "f b", "y"),
    ]  # fmt: skip
    constants = weights(a=(125, 64, 1, 1), w=(125, 1, 3, 3), b=(64, 125, 1, 1))
    onnx.save(build(nodes, {"x": [1, 64, 40, 40]}, ["y"], constants), tmp_path / "odd.onnx")
    return tmp_path / "odd.onnx"


@pytest.mark.timing
def test_lint_and_align(odd, ok, run, tmp_path):
    """What lint finds, align mends."""
    assert "125 channels leave the blocked layout" in ok("lint", odd, "--seconds", "0.1", "-q")
    out = ok(
        "align", odd, "-o", tmp_path / "out.onnx", "--to", "8", "--seconds", "2", "-q", "--json", tmp_path / "r.json"
    )
    conform(json.loads((tmp_path / "r.json").read_text()), stored_schema("align"))
    assert "outputs are the same" in out
    assert "125" in out
    assert "128" in out
    assert "alignment" not in ok("lint", tmp_path / "out.onnx", "--seconds", "0.1", "-q")
    code, _, err = run("align", tmp_path / "out.onnx", "-o", tmp_path / "more.onnx", "--to", "8", "-q")
    assert (code, "aligned already" in err) == (1, True)


@pytest.fixture
def wide(tmp_path):
    """A network that takes a millisecond and more, nearly all of it in layers that can be cut."""
    nodes = [
        node("Conv", "image a", "b"), node("Relu", "b", "c"), node("Conv", "c d", "e", pads=[1, 1, 1, 1]),
        node("Relu", "e", "f"), node("Conv", "f g", "y"),
    ]  # fmt: skip
    constants = weights(a=(128, 8, 1, 1), d=(128, 128, 3, 3), g=(8, 128, 1, 1))
    onnx.save(build(nodes, {"image": ["N", 8, 24, 24]}, ["y"], constants), tmp_path / "wide.onnx")
    return tmp_path / "wide.onnx"


@pytest.mark.timing
def test_prune_to_a_latency(wide, ok, tmp_path, monkeypatch):
    from exporter.latency import budget

    monkeypatch.setattr(budget, "_PROFILE_SECONDS", 0.2)
    brief = budget.compare_models
    monkeypatch.setattr(budget, "compare_models", lambda *a, **k: brief(*a, **{**k, "seconds": 1.0}))
    monkeypatch.setattr(budget, "CLOSE", 0.15)
    out = ok(
        "prune", wide, "-o", tmp_path / "o.onnx", "--latency", "0.6x", "--shape", "image:1x8x24x24", "-q",
        "--save-plan", tmp_path / "p.json", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert "of the original's, by CPU time of one thread" in out
    document = json.loads((tmp_path / "r.json").read_text())
    conform(document, stored_schema("prune"))
    report = document["latency_budget"]
    assert report["share"] == 0.6
    assert 0.4 < report["measured"]["value"] < 0.75
    assert report["savings"]
    options = json.loads((tmp_path / "p.json").read_text())["options"]
    assert (options["latency"], options["device"], options["threads"]) == ("0.6x", "ort-cpu", 1)
    assert ok("prune", wide, "-o", tmp_path / "again.onnx", "--plan", tmp_path / "p.json", "-q")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()


@pytest.fixture
def hasty(monkeypatch):
    """A search that measures for a moment, and takes what comes near."""
    from exporter.latency import budget

    monkeypatch.setattr(budget, "_PROFILE_SECONDS", 0.2)
    monkeypatch.setattr(budget, "_COMPARE_SECONDS", 0.4)
    monkeypatch.setattr(budget, "CLOSE", 0.3)


@pytest.mark.timing
@pytest.mark.usefixtures("hasty")
def test_an_input_may_shrink(ok, tmp_path):
    """The result is measured at its own sizes, which are not those that were asked for."""
    nodes = [node("MatMul", "x a", "h"), node("Add", "h s", "t"), node("Relu", "t", "r"), node("MatMul", "r b", "y")]
    made = build(nodes, {"x": ["N", 64], "s": ["N", 512]}, ["y"], weights(a=(64, 512), b=(512, 64)))
    onnx.save(made, tmp_path / "m.onnx")
    asked = ("--io", "s:1", "--latency", "0.5x", "--shape", "s:64x512", "--shape", "x:64x64")
    assert "THE INTERFACE CHANGES" in ok("prune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *asked, "-q")


@pytest.mark.timing
@pytest.mark.usefixtures("hasty")
def test_sizes_at_which_the_model_runs_are_found(ok, tmp_path):
    """What it is padded by, mirrored, has to be shorter than the sequence; nothing in the file says so."""
    nodes = [node("Pad", "x pads", "p", mode="reflect"), node("Conv", "p a", "c"), node("Conv", "c b", "y")]
    constants = weights(a=(128, 32, 3), b=(32, 128, 3)) | {"pads": ints(0, 0, 100, 0, 0, 100)}
    onnx.save(build(nodes, {"x": ["N", 32, "T"]}, ["y"], constants), tmp_path / "m.onnx")
    assert "proved" in ok("prune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--latency", "0.5x", "-q")


REFUSED = {
    "bench: a fixed batch": ("bench {fixed} --batch 8", 2, "no dynamic batch axis"),
    "bench: no batch": (f"bench {CNN} --batch 0", 2, "--batch 0: must be at least 1"),
    "bench: no streams": (f"bench {CNN} --streams 0", 2, "--streams 0"),
    "bench: no such input": (f"bench {CNN} --shape imag:1x1x8x8", 2, "no such input; choose from image; did you mean"),
    "bench: precision": (f"bench {CNN} --precision 2", 2, "--precision 2"),
    "bench: level": (f"bench {CNN} --level most", 2, "--level most: choose from off, basic, extended, all"),
    "bench: no graph capture": (f"bench {CNN} --capture", 2, "ort-cpu cannot record its runs; ort-cuda"),
    "bench: no such provider": (f"bench {CNN} --backend ort-qnn", 4, "pip install onnxruntime-qnn"),
    "bench: two to stdout": (f"bench {CNN} --json - --csv -", 2, "both write to stdout"),
    "compare: no file": (f"compare {CNN} none.onnx", 2, "none.onnx: no such file"),
    "compare: clock": (f"compare {CNN} {CNN} --clock cpu", 2, "give --threads 1"),
    "profile: backend": (f"profile {CNN} --backend tpu", 2, "profiles come from ONNX Runtime"),
    "profile: two to stdout": (f"profile {CNN} --json - --trace -", 2, "both write to stdout"),
    "probe: backend": ("probe --backend tpu", 4, "there is no backend 'tpu'"),
    "lint: no file": ("lint none.onnx", 2, "none.onnx: no such file"),
    "align: folder": (f"align {CNN} -o .", 2, "it is a folder"),
    "align: to": (f"align {CNN} -o o.onnx --to 1", 2, "--to 1"),
    "prune: two budgets": (f"prune {CNN} -o o.onnx --latency 0.5x --macs 0.5", 2, "leave out --macs"),
    "prune: latency of a plan": (f"prune {CNN} -o o.onnx --latency 0.5x --plan p.json", 2, "leave out --plan"),
    "prune: layers": (f"prune {CNN} -o o.onnx --latency 0.5x --granularity layers,channels", 2, "or --calib synthetic"),
    "prune: dry": (f"prune {CNN} -o o.onnx --latency 0.5x --dry-run", 2, "leave out --dry-run"),
    "prune: nothing to fit to": (f"prune {CNN} -o o.onnx --latency .5x --no-compensate", 2, "give --calib"),
    "prune: no output": (f"prune {CNN} --latency 0.5x", 2, "-o OUT.onnx"),
    "prune: threads without": (f"prune {CNN} -o o.onnx --macs 0.5 --threads 2", 2, "give --latency too"),
    "prune: latency": (f"prune {CNN} -o o.onnx --latency 2x", 2, "must be below 1x"),
    "prune: device": (f"prune {CNN} -o o.onnx --latency .5x --device ort-cuda", 4, "onnxruntime-gpu[cuda,cudnn]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(build([node("Relu", "x", "y")], {"x": [2, 3]}, ["y"]), tmp_path / "fixed.onnx")
    line, code, text = REFUSED[name]
    got, out, err = run(*line.replace("{fixed}", "fixed.onnx").split())
    assert (got, out) == (code, ""), err
    assert text in err
    assert not (tmp_path / "o.onnx").exists()
