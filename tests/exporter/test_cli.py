"""The command line: every command and option does what its help says, and every mistake is told in one screen."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import exporter.one_round
import exporter.pruner
import runtime.latency
from exporter import Plan, __version__
from exporter.cli import main
from runtime.contention import Flag
from tests.onnx_builder import build, node, weights
from tests.rows.all import ROWS

ROOT = Path(__file__).parents[2]
SCREEN = 24


@dataclass(frozen=True)
class Told:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """No progress lines, however slow the machine is."""
    monkeypatch.setattr("exporter.commands.console.QUIET_SECONDS", float("inf"))


@pytest.fixture
def cli(capsys):
    """Run a command in this process."""

    def call(*arguments) -> Told:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code or 0
        out, err = capsys.readouterr()
        return Told(code, out, err)

    return call


@pytest.fixture
def ok(cli):
    """Run a command that must succeed."""

    def call(*arguments) -> Told:
        told = cli(*arguments)
        assert told.code == 0, told.err
        return told

    return call


def layer(op, inputs, outputs, name, **attributes):
    made = node(op, inputs, outputs, **attributes)
    made.name = f"/{name}/{op}"
    return made


def cnn(seed=0):
    """``image[N, 3, H, W]``: stem of 32, body of 64, neck of 48 channels, 10 classes."""
    shapes = {"stem": (32, 3, 3, 3), "body": (64, 32, 3, 3), "neck": (48, 64, 1, 1), "head": (10, 48)}
    constants = {f"{n}.weight": v for n, v in weights(seed, **shapes).items()}
    constants |= {f"{n}.bias": v for n, v in weights(seed + 1, stem=(32,), body=(64,), neck=(48,), head=(10,)).items()}
    nodes = [
        layer("Conv", "image stem.weight stem.bias", "s", "stem", pads=[1, 1, 1, 1]),
        layer("Relu", "s", "s1", "stem"),
        layer("Conv", "s1 body.weight body.bias", "b", "body", pads=[1, 1, 1, 1]),
        layer("Relu", "b", "b1", "body"),
        layer("Conv", "b1 neck.weight neck.bias", "n", "neck"),
        layer("GlobalAveragePool", "n", "p", "pool"),
        layer("Flatten", "p", "f", "flat"),
        layer("Gemm", "f head.weight head.bias", "scores", "head", transB=1),
    ]
    return build(nodes, {"image": ["N", 3, "H", "W"]}, ["scores"], constants)


def texts():
    """``ids[batch, seq]``: an embedding of 24, four heads of 6, a hidden layer of 32."""
    nodes = [
        layer("Gather", "words ids", "e", "embed"),
        *(layer("MatMul", f"e {t}.weight", t, t) for t in ("query", "key", "value")),
        *(layer("Reshape", f"{t} heads", f"{t}_4", t) for t in ("query", "key", "value")),
        layer("Transpose", "query_4", "q", "query", perm=[0, 2, 1, 3]),
        layer("Transpose", "key_4", "k", "key", perm=[0, 2, 3, 1]),
        layer("Transpose", "value_4", "v", "value", perm=[0, 2, 1, 3]),
        layer("MatMul", "q k", "scores", "attention"),
        layer("Softmax", "scores", "weights", "attention", axis=-1),
        layer("MatMul", "weights v", "o", "mix"),
        layer("Transpose", "o", "o_4", "mix", perm=[0, 2, 1, 3]),
        layer("Reshape", "o_4 flat", "o_2", "mix"),
        layer("MatMul", "o_2 output.weight", "a", "output"),
        layer("Add", "e a", "r", "residual"),
        layer("MatMul", "r up.weight", "u", "up"),
        layer("Relu", "u", "u1", "up"),
        layer("MatMul", "u1 down.weight", "y", "down"),
    ]
    shapes = dict.fromkeys(("query", "key", "value", "output"), (24, 24)) | {"up": (24, 32), "down": (32, 2)}
    constants = {f"{n}.weight": v for n, v in weights(**shapes).items()} | weights(3, words=(50, 24))
    constants |= {"heads": np.array([0, 0, 4, 6]), "flat": np.array([0, 0, 24])}
    return build(nodes, {"ids": ["batch", "seq"]}, ["y"], constants, kinds={"ids": "i"})


def conflicting():
    """Units that are large where they are made and small where they are read, and the other way round."""
    constants = weights(w1=(3, 8), w2=(8, 2))
    constants["w1"][:, :4] *= 10
    constants["w2"][4:] *= 100
    return build([node("MatMul", "x w1", "h"), node("MatMul", "h w2", "y")], {"x": ["N", 3]}, ["y"], constants)


def rigid():
    """Nothing in here can go."""
    return build([node("Softmax", "x", "s"), node("Mul", "s w", "y")], {"x": ["N", 5]}, ["y"], weights(w=(5,)))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of models nobody writes to."""
    folder = tmp_path_factory.mktemp("models")
    made = {"cnn": cnn(), "texts": texts(), "conflicting": conflicting(), "rigid": rigid(), "other": ROWS[0].model}
    for name, model in made.items():
        onnx.save(model, folder / f"{name}.onnx")
    (folder / "text.onnx").write_text("no model\n" * 99)
    (folder / "short.onnx").write_bytes((folder / "cnn.onnx").read_bytes()[:5000])
    return folder


SMALL = ("--shape", "image:2x3x8x8")
"""Images small enough for tests."""


@pytest.fixture
def pruned(models, ok, tmp_path):
    """Prune a model; gives back the JSON report and the file's path."""

    def call(*options, model="cnn", name="out.onnx"):
        shape = SMALL if model == "cnn" else ()
        budget = () if {"--macs", "--params", "--plan", "--ratio"} & set(options) else ("--ratio", "0.5")
        told = ok("prune", models / f"{model}.onnx", "-o", tmp_path / name, *shape, *budget, "--json", "-", *options)
        return told.json, tmp_path / name

    return call


def kept(report):
    return {g["name"]: len(g["keep"]) for g in report["groups"]}


def sizes(path):
    return {t.name: list(t.dims) for t in onnx.load(path).graph.initializer}


WIDTHS = {"stem": 32, "body": 64, "neck": 48}


# -- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_says_what_can_go_and_why_not(models, ok):
    told = ok("inspect", models / "cnn.onnx", *SMALL)
    assert told.err == ""
    lines = told.out.splitlines()
    assert lines[0].startswith("cnn.onnx: 23 k parameters, 1.43 M MACs, ")
    assert lines[0].endswith("8 nodes")
    assert lines[1] == "dynamic axes, sizes taken: N=2, H=8, W=8; MACs are counted for one sample"
    for name, width in WIDTHS.items():
        row = next(line.split() for line in lines if line.startswith(f"{name} "))
        assert row[1:3] == ["channels", str(width)]
        assert f"{name}.weight[0]," in row
    assert any(line.startswith("3 groups; ") for line in lines)
    reasons = told.out[told.out.index("frozen, by reason:") :]
    assert "graph output (output 'scores')\n    head.weight[0] (10), head.bias[0] (10)" in reasons
    assert "graph input (input 'image')\n    stem.weight[1] (3)" in reasons


def test_inspect_json(models, ok, tmp_path):
    told = ok("inspect", models / "cnn.onnx", *SMALL, "--json", "-")
    report = told.json
    assert report["version"] == 1
    assert {g["name"]: g["width"] for g in report["groups"]} == WIDTHS
    assert {g["kind"] for g in report["groups"]} == {"channels"}
    spans = {
        (s["tensor"], s["axis"]) for g in report["groups"] if g["name"] == "stem" for s in g["spans"] if s["constant"]
    }
    assert spans == {("stem.weight", 0), ("stem.bias", 0), ("body.weight", 1)}
    assert {(f["tensor"], f["axis"], f["reason"]) for f in report["frozen"]} >= {("head.weight", 0, "graph output")}
    assert all(f["reason"] and f["where"] and 0 < f["count"] <= f["size"] for f in report["frozen"])
    shapes = sizes(models / "cnn.onnx")
    total = sum(int(np.prod(d)) for d in shapes.values())
    assert report["totals"]["parameters"] == total
    assert report["totals"]["macs"] == 64 * (27 * 32 + 9 * 32 * 64 + 64 * 48) + 480  # of one image
    assert report["totals"]["file_bytes"] == (models / "cnn.onnx").stat().st_size
    assert report["prunable_parameters"] == total - 10  # all but the bias of the head
    assert report["model"]["shapes"] == {"image": [2, 3, 8, 8]}
    again = ok("inspect", models / "cnn.onnx", *SMALL, "--json", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert again.out.startswith("cnn.onnx: ")  # with a file, the text is printed too


def test_shape_scales_the_cost(models, ok):
    macs = [
        ok("inspect", models / "cnn.onnx", "--shape", f"image:{n}x3x{s}x{s}", "--json", "-").json["totals"]["macs"]
        - 480
        for n, s in ((1, 8), (5, 8), (1, 16))
    ]
    assert macs[1] == macs[0]  # of one image, whatever the batch
    assert macs[2] == 4 * macs[0]


def test_inspect_of_a_model_without_groups(models, ok):
    assert "no group of units can be removed" in ok("inspect", models / "rigid.onnx").out


# -- prune: budgets ---------------------------------------------------------------------------------------------


def test_prune_writes_a_smaller_model_that_runs(models, ok, tmp_path):
    out = tmp_path / "out.onnx"
    told = ok("prune", models / "cnn.onnx", "-o", out, "--ratio", "0.5", *SMALL)
    assert sizes(out) == {
        "stem.weight": [16, 3, 3, 3], "stem.bias": [16], "body.weight": [32, 16, 3, 3], "body.bias": [32],
        "neck.weight": [32, 32, 1, 1], "neck.bias": [32], "head.weight": [10, 32], "head.bias": [10],
    }  # fmt: skip
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 8, 8), (3, 3, 5, 9)):  # the axes stay dynamic
        (scores,) = session.run(None, {"image": np.ones(shape, np.float32)})
        assert scores.shape == (shape[0], 10)
    assert [f.name for f in tmp_path.iterdir()] == ["out.onnx"]
    assert "proved equal to the masked original" in told.out.splitlines()[-1]
    assert str(out) in told.out.splitlines()[-1]
    assert told.err == ""


def kept_of(path):
    return {n.removesuffix(".weight"): d[0] for n, d in sizes(path).items() if n.endswith(".weight")}


@pytest.mark.parametrize(("align", "multiple"), [("fp16", 8), ("int8", 32)])
def test_widths_tensor_cores_take(models, tmp_path, ok, align, multiple):
    """A group narrower than that keeps the power of two it is divisible by."""
    ok("prune", models / "cnn.onnx", "-o", tmp_path / "a.onnx", "--ratio", "0.3", "--align", align, *SMALL)
    ok("prune", models / "cnn.onnx", "-o", tmp_path / "b.onnx", "--ratio", "0.3", "--align", str(multiple), *SMALL)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_table_shows_what_was_kept(models, ok, tmp_path):
    told = ok("prune", models / "cnn.onnx", "-o", tmp_path / "out.onnx", "--ratio", "0.5", "--align", "1", *SMALL)
    lines = told.out.splitlines()
    for name, width in WIDTHS.items():
        assert next(line.split()[:4] for line in lines if line.startswith(f"{name} ")) == [
            name, "channels", str(width), str(width // 2),
        ]  # fmt: skip
    for row in ("parameters", "MACs", "file"):
        assert any(line.startswith(row) and line.endswith(" %") for line in lines)
    assert "frozen, by reason:" in told.out


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("align", ["1", "4", "auto"])
@pytest.mark.parametrize("left", ["0.8", "0.5", "0.2"])
@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_at_most_the_budget_is_left(budget, left, align, scope, pruned):
    option = {"macs": "--macs", "parameters": "--params"}[budget]
    report, path = pruned(option, left, "--align", align, "--scope", scope)
    share = report["after"][budget] / report["before"][budget]
    assert share <= float(left)
    assert share > float(left) * (0.85 if align != "auto" else 0.5)  # and not much less
    if budget == "parameters":
        assert report["after"]["parameters"] == sum(int(np.prod(d)) for d in sizes(path).values())
    assert report["after"]["file_bytes"] == path.stat().st_size


@pytest.mark.parametrize("ratio", ["0.1", "0.5", "0.75"])
def test_ratio_is_the_share_that_goes(ratio, pruned):
    report, _ = pruned("--ratio", ratio, "--align", "1")
    for name, width in WIDTHS.items():
        assert kept(report)[name] == pytest.approx(width * (1 - float(ratio)), abs=0.5)


def test_global_scope_cuts_where_units_matter_least(pruned, models):
    model = cnn()
    body = next(t for t in model.graph.initializer if t.name == "body.weight")
    values = numpy_helper.to_array(body).copy()
    values[::2] *= 0.01
    body.CopyFrom(numpy_helper.from_array(values, body.name))
    onnx.save(model, models / "uneven.onnx")
    shares = {}
    for scope in ("local", "global"):
        report, _ = pruned("--ratio", "0.25", "--align", "1", "--scope", scope, *SMALL, model="uneven")
        shares[scope] = {n: k / WIDTHS[n] for n, k in kept(report).items()}
    assert max(shares["local"].values()) - min(shares["local"].values()) < 0.05
    assert shares["global"]["body"] < 0.55 < 0.75 < shares["global"]["stem"]


# -- prune: choosing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("align", "step"), [("1", 1), ("3", 3), ("8", 8), ("auto", 16)])
def test_widths_are_multiples(align, step, pruned):
    report, _ = pruned("--ratio", "0.4", "--align", align)
    assert all(k % step == 0 for k in kept(report).values())
    assert kept(report) != WIDTHS


def test_min_width(pruned):
    assert min(kept(pruned("--ratio", "0.9", "--align", "1")[0]).values()) < 20
    assert min(kept(pruned("--ratio", "0.9", "--align", "1", "--min-width", "20")[0]).values()) == 20


KINDS = {"heads": 4, "head_dims": 6, "hidden": 24, "neurons": 32}


@pytest.mark.parametrize(
    "kinds", [["heads"], ["head_dims"], ["hidden"], ["neurons"], ["heads", "neurons"], list(KINDS)]
)
def test_granularity(kinds, pruned):
    report, _ = pruned("--align", "1", "--granularity", ", ".join(kinds), model="texts")
    cut = {g["kind"] for g in report["groups"] if len(g["keep"]) < g["width"]}
    assert cut == set(kinds)
    assert {g["kind"] for g in report["groups"]} == set(KINDS)


def test_by_default_one_factor_of_a_product_is_cut(pruned):
    report, _ = pruned("--align", "1", model="texts")
    cut = {g["kind"] for g in report["groups"] if len(g["keep"]) < g["width"]}
    assert cut == {"heads", "hidden", "neurons"}


@pytest.mark.parametrize("pattern", ["body", "body.weight", "/body/*", "*ody.bi*", "/body/Conv"])
def test_keep_and_only(pattern, pruned):
    """A group, a tensor or a node; the stem is read by the body's convolution, so a node of the body is of it too."""
    touched = {"stem", "body"} if "Conv" in pattern or pattern in ("body.weight", "/body/*") else {"body"}
    report, path = pruned("--align", "1", "--keep", pattern)
    assert {n for n, k in kept(report).items() if k == WIDTHS[n]} == touched
    assert sizes(path)["body.weight"][0] == 64
    report, path = pruned("--align", "1", "--only", pattern)
    assert {n for n, k in kept(report).items() if k < WIDTHS[n]} == touched
    assert sizes(path)["body.weight"][0] == 32


def test_keep_and_only_repeat_and_combine(pruned):
    report, _ = pruned("--align", "1", "--keep", "stem.bias", "--keep", "neck.bias")
    assert {n for n, k in kept(report).items() if k < WIDTHS[n]} == {"body"}
    report, _ = pruned("--align", "1", "--only", "stem", "--only", "neck", "--keep", "stem")
    assert {n for n, k in kept(report).items() if k < WIDTHS[n]} == {"neck"}


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_smallest_units_go(name, pruned, models):
    order = {"l1": lambda v: np.abs(v).sum(1), "l2": lambda v: np.sqrt((v**2).sum(1))}[name]
    graph = onnx.load(models / "cnn.onnx").graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    report, _ = pruned("--align", "1", "--score", name)
    stem = np.concatenate([constants["stem.weight"].reshape(32, -1), constants["stem.bias"][:, None]], 1)
    best = sorted(np.argsort(-order(stem), kind="stable")[:16].tolist())
    assert next(g["keep"] for g in report["groups"] if g["name"] == "stem") == best


def test_include_consumers_counts_what_reads_a_unit(pruned):
    plain, _ = pruned("--align", "1", model="conflicting")
    both, _ = pruned("--align", "1", "--include-consumers", model="conflicting")
    assert plain["groups"][0]["keep"] == [0, 1, 2, 3]
    assert both["groups"][0]["keep"] == [4, 5, 6, 7]


def test_random_scores_follow_the_seed(pruned):
    keeps = []
    for seed in ("1", "1", "2"):
        report, _ = pruned("--align", "1", "--score", "random", "--seed", seed)
        keeps.append([g["keep"] for g in report["groups"]])
    assert keeps[0] == keeps[1] != keeps[2]
    assert all(len(a) == len(b) for a, b in zip(keeps[0], keeps[2], strict=True))


# -- prune: plans, proof, report --------------------------------------------------------------------------------


def test_a_plan_is_replayed_exactly(pruned, tmp_path):
    first, one = pruned("--score", "random", "--seed", "3", "--save-plan", tmp_path / "plan.json", name="one.onnx")
    second, two = pruned("--plan", tmp_path / "plan.json", "--save-plan", tmp_path / "again.json", name="two.onnx")
    assert two.read_bytes() == one.read_bytes()
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert second["groups"] == first["groups"]
    assert second["options"] == first["options"]
    plan = Plan.load(tmp_path / "plan.json")
    assert {g.name: list(g.keep) for g in plan.groups} == {g["name"]: g["keep"] for g in first["groups"]}
    assert dict(plan.options) == {
        "ratio": 0.5, "score": "random", "consumers": False, "scope": "local", "align": "auto", "min_width": 1,
        "granularity": None, "keep": [], "only": [], "io": [], "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize("output", [True, False], ids=["with -o", "without -o"])
def test_a_dry_run_writes_nothing(output, models, ok, tmp_path):
    before = {f: f.read_bytes() for f in models.iterdir()}
    where = ("-o", tmp_path / "out.onnx") if output else ()
    told = ok("prune", models / "cnn.onnx", *where, "--ratio", "0.5", "--dry-run", *SMALL)
    assert not list(tmp_path.iterdir())
    assert {f: f.read_bytes() for f in models.iterdir()} == before
    assert "dry run: nothing was written" in told.out.splitlines()[-1]


def test_a_dry_run_predicts_the_cut(pruned):
    dry, path = pruned("--macs", "0.4", "--dry-run")
    assert not path.exists()
    assert dry["output"] is None
    assert dry["proof"] is None
    real, _ = pruned("--macs", "0.4")
    assert dry["groups"] == real["groups"]
    for measure in ("parameters", "macs"):
        assert dry["after"][measure] == real["after"][measure] < dry["before"][measure]


def test_a_dry_run_may_save_its_plan(pruned, tmp_path):
    pruned("--dry-run", "--save-plan", tmp_path / "plan.json")
    assert [f.name for f in tmp_path.iterdir()] == ["plan.json"]
    report, path = pruned("--plan", tmp_path / "plan.json")
    assert path.exists()
    assert report["proof"]["error"] < 1e-3


def test_without_a_proof_the_report_says_so(pruned, models, ok, tmp_path):
    report, path = pruned("--no-verify")
    assert report["proof"] is None
    assert path.exists()
    assert any("--no-verify" in w for w in report["warnings"])
    told = ok("prune", models / "cnn.onnx", "-o", path, "--ratio", "0.5", "--no-verify", *SMALL)
    assert "NOT proved" in told.out.splitlines()[-1]


def test_the_report_is_complete(pruned):
    report, path = pruned()
    assert report["version"] == 1
    assert report["output"] == str(path)
    assert [g["name"] for g in report["groups"]] == list(WIDTHS)
    for group in report["groups"]:
        assert group["width"] == WIDTHS[group["name"]]
        assert group["keep"] == sorted(set(group["keep"]))
        assert all(0 <= k < group["width"] for k in group["keep"])
    assert {f["reason"] for f in report["frozen"]} >= {"graph output", "graph input"}
    proof = report["proof"]
    assert 0 <= proof["error"] <= proof["tolerance"] == 1e-3
    assert proof["change"] > 0.01
    assert proof["runs"] == len(proof["shapes"]) == 3
    assert len({tuple(s["image"]) for s in proof["shapes"]}) == 2
    assert proof["inner"] > 3
    assert list(proof["outputs"]) == ["scores"]
    assert report["model"]["sha256"]
    assert report["seconds"] > 0


def test_the_report_may_go_to_a_file(models, ok, tmp_path):
    told = ok(
        "prune", models / "cnn.onnx", "-o", tmp_path / "out.onnx", "--ratio", "0.5", *SMALL,
        "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["version"] == 1
    assert "proved equal" in told.out


def test_recorded_inputs_are_proved_with(pruned, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", image=rng.standard_normal((4, 3, 6, 10)).astype(np.float32), label=np.arange(4))
    report, _ = pruned("--inputs", tmp_path / "data.npz")
    assert report["proof"]["runs"] == 4
    assert report["proof"]["shapes"] == [{"image": [1, 3, 6, 10]}] * 4


def test_a_model_may_be_replaced_from_python(models, tmp_path):
    """On a command line that is taken for a slip."""
    path = tmp_path / "model.onnx"
    shutil.copy(models / "cnn.onnx", path)
    for _ in range(2):
        before = path.stat().st_size
        exporter.prune(path, path, ratio=0.5, align=1, shapes={"image": (2, 3, 8, 8)})
        assert path.stat().st_size < before
    assert kept_of(path) == {"stem": 8, "body": 16, "neck": 12, "head": 10}


@pytest.fixture
def quick(monkeypatch):
    """Latency is measured for a moment only."""
    monkeypatch.setattr(runtime.latency, "bench", functools.partial(runtime.latency.bench, seconds=0.1))
    monkeypatch.setattr("exporter.commands.prune._PROFILE_SECONDS", 0.1)


@pytest.mark.usefixtures("quick")
def test_measure_times_both(pruned, models, ok, tmp_path):
    report, path = pruned("--measure")
    latency = report["latency"]
    assert latency["dense"]["model"] == "cnn.onnx"
    assert latency["pruned"]["model"] == "out.onnx"
    assert latency["dense"]["shapes"] == latency["pruned"]["shapes"] == {"image": [2, 3, 8, 8]}
    assert len(latency["dense"]["samples_s"]) == len(latency["pruned"]["samples_s"]) >= 8
    assert latency["ratio"]["low"] <= latency["ratio"]["value"] <= latency["ratio"]["high"]
    told = ok("prune", models / "cnn.onnx", "-o", path, "--ratio", "0.5", "--measure", *SMALL)
    assert any(line.startswith("latency ") and " .. " in line for line in told.out.splitlines())
    assert "why it is not faster still:" in told.out
    assert {s["name"] for s in report["savings"]} >= {"/stem/Conv", "/body/Conv"}


@pytest.mark.usefixtures("quick")
def test_a_loaded_machine_is_said_behind_what_was_measured_there(models, ok, monkeypatch, tmp_path):
    monkeypatch.setattr("runtime.latency.find_contention", lambda *_: (Flag("load", "other work kept it busy"),))
    arguments = ["prune", models / "cnn.onnx", "-o", tmp_path / "out.onnx", "--ratio", "0.5", *SMALL]
    assert ok(*arguments, "--measure").out.count("caution: other work kept it busy") == 1
    assert "caution" not in ok(*arguments).out


# -- verify -----------------------------------------------------------------------------------------------------


@pytest.fixture
def proved(models, ok, tmp_path):
    """(original, pruned, plan)."""
    paths = models / "cnn.onnx", tmp_path / "pruned.onnx", tmp_path / "plan.json"
    ok("prune", paths[0], "-o", paths[1], "--ratio", "0.5", "--save-plan", paths[2], *SMALL)
    return paths


def nudged(path, factor):
    """A copy of a model with one layer's weights scaled."""
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name == "body.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(model, path.with_name("nudged.onnx"))
    return path.with_name("nudged.onnx")


def test_verify_proves_a_pruned_file(proved, ok):
    original, cut, plan = proved
    told = ok("verify", original, cut, "--plan", plan)
    assert told.out.startswith(f"{cut}: proved equal to the masked original")
    report = ok("verify", original, cut, "--plan", plan, "--json", "-").json
    assert report["version"] == 1
    assert report["proof"]["error"] <= 1e-3 < report["proof"]["change"]


def test_verify_rejects_another_file(proved, cli, models):
    original, cut, plan = proved
    told = cli("verify", original, nudged(cut, 1.01), "--plan", plan)
    assert (told.code, told.out) == (1, "")
    assert "differs from the masked original, first at Conv '/body/Conv'" in told.err


def test_verify_rejects_a_file_with_other_inputs(proved, cli, models):
    original, _, plan = proved
    told = cli("verify", original, models / "other.onnx", "--plan", plan)
    assert (told.code, told.out) == (1, "")
    assert "does not take the inputs of the original (image 2x3x8x8)" in told.err
    assert "--shape" not in told.err  # verify has no such option


def test_verify_refuses_another_plan(proved, cli, ok, models, tmp_path):
    original, cut, _ = proved
    ok(
        "prune",
        models / "texts.onnx",
        "--ratio",
        "0.5",
        "--align",
        "1",
        "--dry-run",
        "--save-plan",
        tmp_path / "other.json",
    )
    told = cli("verify", original, cut, "--plan", tmp_path / "other.json")
    assert (told.code, told.out) == (2, "")
    assert "the plan was made for another model (texts.onnx)" in told.err


def test_tolerance(proved, ok, cli):
    original, cut, plan = proved
    wrong = nudged(cut, 1.01)
    assert cli("verify", original, wrong, "--plan", plan).code == 1
    report = ok("verify", original, wrong, "--plan", plan, "--tolerance", "0.5", "--json", "-").json
    assert report["proof"]["tolerance"] == 0.5
    assert 1e-3 < report["proof"]["error"] < 0.5


def test_verify_with_recorded_inputs(proved, ok, tmp_path):
    original, cut, plan = proved
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(0).random((2, 3, 9, 9), np.float32))
    report = ok("verify", original, cut, "--plan", plan, "--inputs", tmp_path / "data.npz", "--json", "-").json
    assert report["proof"]["shapes"] == [{"image": [1, 3, 9, 9]}] * 2


# -- bench ------------------------------------------------------------------------------------------------------

BRIEF = ("--seconds", "0.2", "--threads", "1")


def test_bench_one_model(models, ok):
    told = ok("bench", models / "cnn.onnx", *BRIEF, *SMALL)
    lines = told.out.splitlines()
    assert lines[0] == "ort-cpu, 1 thread, inputs: image 2x3x8x8"
    assert lines[2].split()[:2] == ["model", "median"]
    assert lines[4].startswith("cnn.onnx")
    assert "against the first" not in told.out


def test_bench_two_models(models, ok, tmp_path):
    told = ok("bench", models / "cnn.onnx", models / "texts.onnx", *BRIEF, "--seed", "5", "--json", "-")
    report = told.json
    assert report["version"] == 1
    assert [r["model"] for r in report["results"]] == ["cnn.onnx", "texts.onnx"]
    assert all(r["threads"] == 1 and r["backend"] == "ort-cpu" for r in report["results"])
    counts = {len(r[k]) for r in report["results"] for k in ("samples_s", "cpu_s", "switched")}
    assert len(counts) == 1  # sample i of all models belongs to one moment
    for result in report["results"]:
        samples = result["samples_s"]
        assert result["min_s"] == pytest.approx(min(samples), abs=1e-8)
        assert result["median_s"] == pytest.approx(np.median(samples), abs=1e-8)
        assert result["load_s"] > 0 < result["first_s"]
    (ratio,) = report["ratios_to_first"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] < 1  # sequences of 16 take less than images of 224 x 224
    told = ok("bench", models / "cnn.onnx", models / "cnn.onnx", *BRIEF, *SMALL, "--json", tmp_path / "bench.json")
    assert "against the first (95 % interval)" in told.out
    assert len(json.loads((tmp_path / "bench.json").read_text())["results"]) == 2


# -- the program ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [(), ("inspect",), ("sensitivity",), ("prune",), ("verify",), ("bench",), ("eval",), ("convert",)]
)
def test_help(command, ok):
    told = ok(*command, "--help")
    assert told.out.startswith("usage: secateur " + " ".join(command))
    assert "exit codes:" in told.out
    assert all(len(line) <= 200 for line in told.out.splitlines())


def test_version(ok):
    assert ok("--version").out == f"secateur {__version__}\n"


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT, **options
    )


@pytest.mark.parametrize("arguments", [("--help",), ("prune", "--help"), ("--version",), ("nonsense",)])
def test_help_answers_without_heavy_imports(arguments):
    done = run("-X", "importtime", "-m", "exporter", *arguments)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported
    assert not imported & {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "torch", "google"}


def test_python_m_exporter_is_the_command(models):
    done = run("-m", "exporter", "inspect", "-q", models / "rigid.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rigid.onnx: ")
    done = run("-m", "exporter", "inspect", "-q", models / "text.onnx")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("secateur: ")


def test_a_reader_that_goes_away_is_no_error(models):
    command = [sys.executable, "-m", "exporter", "inspect", "-q", str(models / "cnn.onnx")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as done:
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 0


def test_an_interrupt_is_told_in_a_line(models, cli, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter.one_round, "rewrite", interrupt)
    told = cli("prune", models / "cnn.onnx", "-o", tmp_path / "out.onnx", "--ratio", "0.5", *SMALL)
    assert (told.code, told.out) == (130, "")
    assert told.err == "secateur: interrupted; nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_progress_goes_to_stderr_and_can_be_silenced(models, cli, tmp_path, monkeypatch):
    monkeypatch.setattr("exporter.commands.console.QUIET_SECONDS", -1.0)
    arguments = ("prune", models / "cnn.onnx", "-o", tmp_path / "out.onnx", "--ratio", "0.5", *SMALL)
    told = cli(*arguments)
    assert "rewriting the graph" in told.err
    assert "rewriting" not in told.out
    assert cli(*arguments, "--quiet").err == ""
    assert cli(*arguments, "-q").err == ""


# -- wrong use --------------------------------------------------------------------------------------------------


PRUNE = "prune {cnn} -o {out}"
HALF = f"{PRUNE} --ratio 0.5 --shape image:2x3x8x8"

WRONG = {
    "no command": ("", 2, "COMMAND"),
    "an unknown command": ("shrink {cnn}", 2, "there is no 'shrink'; choose from"),
    "an unknown option": (f"{HALF} --fast", 2, "--fast"),
    "no model": ("inspect", 2, "MODEL"),
    "inspect: no such file": ("inspect {folder}/none.onnx", 2, "none.onnx: no such file"),
    "inspect: a folder": ("inspect {folder}", 2, "is a folder; name the model file in it"),
    "inspect: a slip of the pen": ("inspect {cnn}x", 2, "cnn.onnxx: no such file. Did you mean .*cnn.onnx\\?"),
    "inspect: a folder that is not there": ("inspect {folder}/no/m.onnx", 2, "There is no folder .*/no either"),
    "inspect: arrays": ("inspect {data}", 3, "is a zip archive, as torch and numpy write them.*secateur convert"),
    "inspect: not a model": ("inspect {text}", 3, "is not an ONNX file|holds no ONNX graph"),
    "inspect: truncated": ("inspect {short}", 3, "is truncated \\(5,000 bytes read\\)"),
    "inspect: json into no folder": ("inspect {rigid} --json {folder}/no/r.json", 2, "cannot be written"),
    "no budget": (PRUNE, 2, "exactly one budget: --ratio, --macs or --params"),
    "two budgets": (f"{HALF} --macs 0.5", 2, "give exactly one budget, not --ratio and --macs"),
    "a ratio of 0": (f"{PRUNE} --ratio 0", 2, "--ratio 0: the share of units to remove must be between 0 and 1"),
    "a ratio of 1": (f"{PRUNE} --ratio 1", 2, "--ratio 1: "),
    "a ratio in percent": (f"{PRUNE} --ratio 50", 2, "--ratio 50: .* 50 % is 0.5"),
    "a negative ratio": (f"{PRUNE} --ratio -0.1", 2, "--ratio"),
    "no number": (f"{PRUNE} --ratio half", 2, "argument --ratio: invalid float value: 'half'"),
    "not a number": (f"{PRUNE} --ratio nan", 2, "--ratio nan: "),
    "macs of 0": (f"{PRUNE} --macs 0", 2, "--macs 0: the share that may be left must be between 0 and 1"),
    "params of 1.5": (f"{PRUNE} --params 1.5", 2, "--params 1.5: "),
    "out of reach": (f"{PRUNE} --macs 0.0001", 1, "--macs 0.0001 cannot be reached.*\nLower --align or --min-width"),
    "no output": ("prune {cnn} --ratio 0.5", 2, "-o OUT.onnx, or try --dry-run"),
    "output in no folder": ("prune {cnn} --ratio 0.5 -o {folder}/no/out.onnx", 2, "there is no folder .*/no"),
    "output is the model": ("prune {cnn} --ratio 0.5 -o {cnn}", 2, "-o .*cnn.onnx is the model itself"),
    "output is the data": ("prune {cnn} --ratio 0.5 -o {data} --calib {data}", 2, "-o .* is the file of --calib"),
    "a report that is no page": (f"{HALF} --report {{folder}}/r.pdf", 2, "a report is HTML; call it .*r.html"),
    "output is a folder": ("prune {cnn} --ratio 0.5 -o {folder}", 2, "is a folder; name a file"),
    "no such model": ("prune {folder}/none.onnx -o {out} --ratio 0.5", 2, "none.onnx: no such file"),
    "not a model": ("prune {text} -o {out} --ratio 0.5", 3, "is not an ONNX file|holds no ONNX graph"),
    "nothing to prune": ("prune {rigid} -o {out} --ratio 0.5", 3, "nothing in this model can be pruned"),
    "an unknown score": (f"{HALF} --score best", 2, "no score 'best'. Choose from: l1, l2, fpgm, lamp, random"),
    "an unknown scope": (f"{HALF} --scope wide", 2, "there is no 'wide'; choose from local, global, damage"),
    "align of 0": (f"{HALF} --align 0", 2, "--align 0: choose auto, sparse or a whole number of at least 1"),
    "align of a word": (f"{HALF} --align odd", 2, "--align odd: choose auto, sparse, fp16"),
    "align of a fraction": (f"{HALF} --align 1.5", 2, "--align 1.5: choose auto"),
    "min width of 0": (f"{HALF} --min-width 0", 2, "--min-width 0: must be at least 1"),
    "an unknown kind": (f"{HALF} --granularity filters", 2, "--granularity filters: choose from channels, neurons"),
    "nearly a kind": (f"{HALF} --granularity neuron", 2, "tokens; did you mean neurons?"),
    "an empty kind": (f"{HALF} --granularity channels,", 2, "--granularity .*choose from"),
    "a kind that is not here": (f"{HALF} --granularity heads", 3, "--granularity leaves no group.* of kind channels"),
    "keep matches nothing": (f"{HALF} --keep stm", 2, "--keep 'stm' matches no node or tensor.*\nList"),
    "keep matches what stays": (f"{HALF} --keep head.bias", 2, "--keep 'head.bias' matches nothing that can be pruned"),
    "only matches nothing": (f"{HALF} --only stm", 2, "--only 'stm' matches no node or tensor"),
    "everything is kept": (f"{HALF} --keep *", 3, "--keep leaves no group to prune"),
    "a plan and a budget": (f"{HALF} --plan {{plan}}", 2, "--plan already says what to keep"),
    "no such plan": (f"{PRUNE} --plan {{folder}}/none.json", 2, "none.json cannot be read"),
    "not a plan": (f"{PRUNE} --plan {{text}}", 2, "is not JSON"),
    "a plan for another model": ("prune {texts} -o {out} --plan {plan}", 2, "made for another model \\(cnn.onnx\\)"),
    "a shape without a name": (f"{HALF} --shape 1x3x8x8", 2, "--shape 1x3x8x8: expected NAME:1x3x224x224"),
    "a shape without sizes": (f"{HALF} --shape image:", 2, "--shape image: 0 axes given, the model declares image"),
    "a shape with a zero": (f"{HALF} --shape image:0x3x8x8", 2, "sizes of at least 1"),
    "a shape with a letter": (f"{HALF} --shape image:Nx3x8x8", 2, "expected NAME:1x3x224x224"),
    "a shape of no input": (f"{HALF} --shape picture:1x3x8x8", 2, "no such input. Inputs: image"),
    "a shape of too few axes": (f"{HALF} --shape image:3x8x8", 2, "3 axes given, .* declares image\\[N, 3, H, W\\]"),
    "a shape against a fixed size": (f"{HALF} --shape image:1x4x8x8", 2, "axis 1 is fixed to 3"),
    "no recorded inputs": (f"{HALF} --inputs {{folder}}/none.npz", 2, "none.npz is not a readable .npz"),
    "recorded inputs of another kind": (f"{HALF} --inputs {{text}}", 2, "is not a readable .npz"),
    "recorded inputs by another name": (f"{HALF} --inputs {{data}}", 2, "lacks image; it holds picture"),
    "save the plan into no folder": (f"{HALF} --save-plan {{folder}}/no/p.json", 2, "cannot be written: .* no folder"),
    "json into no folder": (f"{HALF} --json {{folder}}/no/r.json", 2, "cannot be written: there is no folder .*/no"),
    "verify without a plan": ("verify {cnn} {cnn}", 2, "--plan"),
    "verify: no such file": ("verify {cnn} {folder}/none.onnx --plan {plan}", 2, "none.onnx: no such file"),
    "verify: not a model": ("verify {cnn} {text} --plan {plan}", 3, "is not an ONNX file|holds no ONNX graph"),
    "verify: the original twice": ("verify {cnn} {cnn} --plan {plan}", 1, "differs from the masked original"),
    "verify: a negative tolerance": ("verify {cnn} {cut} --plan {plan} --tolerance -1", 2, "--tolerance"),
    "verify: a tolerance of nan": ("verify {cnn} {cut} --plan {plan} --tolerance nan", 2, "--tolerance"),
    "verify: an infinite tolerance": ("verify {cnn} {cut} --plan {plan} --tolerance inf", 2, "--tolerance"),
    "bench without a model": ("bench", 2, "MODEL"),
    "bench: no such file": ("bench {folder}/none.onnx", 2, "none.onnx: no such file"),
    "bench: not a model": ("bench {text}", 3, "refuses the model"),
    "bench: no such backend": ("bench {cnn} --backend tpu", 4, "there is no backend 'tpu'. Available: .*ort-cpu"),
    "bench: no time": ("bench {cnn} --seconds 0", 2, "--seconds 0: must be a finite number above zero"),
    "bench: no number of seconds": ("bench {cnn} --shape image:1x3x8x8 --seconds nan", 2, "--seconds nan"),
    "bench: negative threads": ("bench {cnn} --shape image:1x3x8x8 --threads -2 --seconds 0.1", 2, "--threads -2"),
    "bench: a shape of no input": ("bench {cnn} --shape picture:1x3", 2, "--shape picture: .*no such input"),
    "bench: json into no folder": ("bench {rigid} --seconds 0.05 --json {folder}/no/r.json", 2, "cannot be written"),
}  # fmt: skip
"""Arguments, exit code, and a piece of the message."""


@pytest.fixture(scope="module")
def places(models):
    """What the table's placeholders stand for; ``out`` does not exist."""
    folder = models / "wrong"
    folder.mkdir()
    names = {n: models / f"{n}.onnx" for n in ("cnn", "texts", "rigid", "text", "short")}
    names |= {"folder": folder, "out": folder / "out.onnx", "plan": models / "plan.json", "data": models / "data.npz"}
    names["cut"] = models / "cut.onnx"
    np.savez(names["data"], picture=np.zeros((1, 3, 8, 8), np.float32))
    arguments = ["prune", names["cnn"], "-o", names["cut"], "--ratio", "0.5", *SMALL, "--save-plan", names["plan"]]
    assert main([*map(str, arguments), "--json", str(models / "cut.json")]) == 0
    return names


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(name, places, cli):
    arguments, code, text = WRONG[name]
    told = cli(*(a.format(**places) for a in arguments.split()))
    written = list(places["folder"].iterdir())
    for file in written:
        file.unlink()
    assert told.code == code, told.err
    assert re.search(text, told.err), told.err
    assert told.out == ""
    assert not written
    assert len(told.err.splitlines()) <= SCREEN
    assert "Traceback" not in told.err
    assert told.err.startswith(("secateur: ", "secateur "))
