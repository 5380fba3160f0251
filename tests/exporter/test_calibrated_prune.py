"""``prune --calib``: choose with calibration inputs, fit the layers that stay, and say what is left of the outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter import GoalError, ModelError, UsageError, load, prune
from exporter.calibration.data import calibration_of
from exporter.cli import main
from runtime.errors import BadRequest
from runtime.evaluation import evaluate
from runtime.samples import load_samples
from tests.exporter.files import run, write
from tests.onnx_builder import build, ints, node, weights

MODELS = Path(__file__).resolve().parents[2] / "models"
TRAIN, TEST = f"{MODELS / 'digits.npz'}:train", f"{MODELS / 'digits.npz'}:test"


def _top1(path):
    samples = load_samples(Path(TEST), [_input(path)], labels=("y",))
    return evaluate(path, samples, "top1").value


def _input(path):
    from exporter.normalise import input_specs

    return input_specs(load(path).model)[0]


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit"])
def test_half_the_work_within_a_point_and_a_half(name, tmp_path):
    """Issue 4 asks for one point; with 128 samples instead of 512 a half is allowed for."""
    dense, out = MODELS / f"{name}.onnx", tmp_path / "out.onnx"
    result = prune(dense, out, macs=0.5, calib=TRAIN, calib_samples=128)
    found = result.fidelity
    assert found is not None
    assert result.after.macs <= 0.5 * result.before.macs
    assert found.error < 0.2 * found.plain
    assert found.agreement is not None
    assert found.agreement > 0.9
    assert not found.synthetic
    assert _top1(dense) - _top1(out) < 0.015


def test_compensation_can_be_left_out(tmp_path):
    dense = MODELS / "digits_cnn.onnx"
    result = prune(dense, tmp_path / "out.onnx", macs=0.5, calib=TRAIN, calib_samples=48, compensate=False)
    found = result.fidelity
    assert found is not None
    assert found.error == found.plain > 0.05
    assert not found.refits


def test_the_same_twice(tmp_path):
    dense = MODELS / "digits_cnn.onnx"
    first, second = (tmp_path / f"{k}.onnx" for k in (1, 2))
    for out in (first, second):
        prune(dense, out, macs=0.6, calib=TRAIN, calib_samples=32)
    spec = _input(dense)
    feed = {spec.name: np.random.default_rng(0).standard_normal((2, *spec.shape[1:])).astype(np.float32)}
    for name, values in run(first.read_bytes(), feed).items():
        np.testing.assert_array_equal(values, run(second.read_bytes(), feed)[name])


@pytest.mark.parametrize("score", ["wanda", "flap", "energy", "fpgm", "lamp", "reconstruction"])
def test_scores(score, tmp_path):
    result = prune(
        MODELS / "digits_cnn.onnx", tmp_path / "o.onnx", ratio=0.3, align=1, score=score, calib=TRAIN, calib_samples=32
    )
    assert result.plan.options["score"] == score
    assert result.plan.options["scope"] == "local"
    assert result.fidelity is not None
    assert result.fidelity.error < result.fidelity.plain


def test_a_plan_is_fitted_too(tmp_path):
    dense = MODELS / "digits_cnn.onnx"
    plan = prune(dense, macs=0.6, dry_run=True).plan
    result = prune(dense, tmp_path / "out.onnx", plan=plan, calib=TRAIN, calib_samples=48)
    assert result.fidelity is not None
    assert result.fidelity.error < 0.5 * result.fidelity.plain


def test_an_input_that_shrinks_is_neither_tried_nor_fitted(tmp_path):
    """The samples do not fit the pruned model; the choice is made as if nothing were mended."""
    nodes = [node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "y")]
    model = build(nodes, {"x": ["N", 24]}, ["y"], weights(w1=(24, 24), w2=(24, 4)))
    feeds = [{"x": np.random.default_rng(k).standard_normal((8, 24)).astype(np.float32)} for k in range(16)]
    result = prune(
        write(model, tmp_path), tmp_path / "out.onnx", macs=0.5, align=1, io=["x:1"], keep=["w2"], calib=feeds
    )
    assert load(tmp_path / "out.onnx").shape("x")[1] < 24
    assert result.fidelity is None
    assert any("inputs or outputs of the model shrink" in w for w in result.warnings)


def test_without_compensation_nothing_is_tried(tmp_path):
    lines = []
    prune(MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", macs=0.5, calib=TRAIN, calib_samples=32,
          compensate=False, progress=lines.append)  # fmt: skip
    assert any("how the outputs react" in line for line in lines)
    assert not any("trying a plan" in line for line in lines)


def test_no_linear_layer(tmp_path):
    """Where no reader tells of a group, every group is cut alike, and the report says so."""
    nodes = [node("Mul", "x scale", "h"), node("Softplus", "h", "k"), node("ReduceSum", "k axes", "y", keepdims=1)]
    model = build(nodes, {"x": ["N", 1]}, ["y"], weights(scale=(1, 8)) | {"axes": np.array([1], np.int64)})
    feeds = [{"x": np.random.default_rng(k).standard_normal((4, 1)).astype(np.float32)} for k in range(16)]
    result = prune(write(model, tmp_path), tmp_path / "out.onnx", params=0.5, align=1, calib=feeds)
    assert any("no linear layer reads them" in w for w in result.warnings)
    assert result.after.parameters == 4


@pytest.mark.parametrize("macs", [0.95, 0.5])
def test_a_group_that_no_linear_layer_reads(macs, tmp_path):
    """It stays whole where the other is enough for the budget, and is cut alike where it is not."""
    nodes = [
        *[node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "p")],
        *[node("MatMul", "x v1", "k"), node("Relu", "k", "b"), node("Tanh", "v2", "t"), node("MatMul", "b t", "q")],
        node("Add", "p q", "y"),
    ]
    constants = weights(w1=(6, 16), w2=(16, 4), v1=(6, 64), v2=(64, 4))
    model = write(build(nodes, {"x": ["N", 6]}, ["y"], constants), tmp_path)
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    result = prune(model, tmp_path / "out.onnx", macs=macs, align=1, calib=[{"x": x}])
    assert result.after.macs <= macs * result.before.macs
    small = load(tmp_path / "out.onnx")
    widths = small.constants["w1"].dims[1], small.constants["v1"].dims[1]
    (said,) = (w for w in result.warnings if w.startswith("no linear layer reads 1 group, which "))
    if macs > 0.9:
        assert widths == (12, 64)
        assert "stays whole" in said
    else:
        assert widths[0] > 1  # the work is shared
        assert 30 <= widths[1] <= 33
        assert "is cut as by --scope local" in said


def test_whole_runs_are_held_out(tmp_path):
    """A file that takes eight samples at a time: a part of two would be left out, and nothing judged."""
    nodes = [node("Gemm", "x w1 b1", "h"), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    constants = weights(w1=(6, 24), b1=(24,), w2=(24, 4), b2=(4,))
    model = write(build(nodes, {"x": [8, 6]}, ["y"], constants), tmp_path)
    x = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)
    found = prune(model, tmp_path / "out.onnx", ratio=0.5, calib=[{"x": x}], calib_samples=16).fidelity
    assert found is not None
    assert found.samples == 8
    assert 0 < found.error < found.plain
    with pytest.raises(UsageError, match="at least 16 are needed, because the model takes 8 at a time"):
        prune(model, tmp_path / "out.onnx", ratio=0.5, calib=[{"x": x}], calib_samples=8)


@pytest.mark.parametrize("real", [True, False])
def test_a_run_longer_than_what_is_affordable(real, tmp_path, monkeypatch):
    """A file that takes 80 samples at a time: one run is looked at, however dear; of made-up ones there are enough."""
    monkeypatch.setattr("exporter.calibration.damage._SEEN", 1)
    nodes = [node("Gemm", "x w1 b1", "h"), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    constants = weights(w1=(6, 24), b1=(24,), w2=(24, 4), b2=(4,))
    model = write(build(nodes, {"x": [80, 6]}, ["y"], constants), tmp_path)
    x = np.random.default_rng(0).standard_normal((240, 6)).astype(np.float32)
    data = [{"x": x}] if real else "synthetic"
    found = prune(model, tmp_path / "out.onnx", macs=0.5, align=1, calib=data, calib_samples=240 if real else 16)
    assert found.fidelity.samples == 80
    assert 0 < found.fidelity.error < found.fidelity.plain


def test_a_batch_that_is_squeezed_away(tmp_path):
    """The file says that any batch will do, and runs with one sample alone."""
    nodes = [
        node("Gemm", "x w1 b1", "h"),
        node("Relu", "h", "a"),
        node("Gemm", "a w2 b2", "g"),
        node("Squeeze", "g axes", "y"),
    ]
    constants = weights(w1=(6, 24), b1=(24,), w2=(24, 4), b2=(4,)) | {"axes": np.array([0])}
    model = write(build(nodes, {"x": ["N", 6]}, ["y"], constants), tmp_path)
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    found = prune(model, tmp_path / "out.onnx", macs=0.5, align=1, calib=[{"x": x}])
    assert found.fidelity.samples == 8
    assert 0 < found.fidelity.error < found.fidelity.plain


def test_a_model_without_inputs_is_not_calibrated(tmp_path):
    nodes = [node("Gemm", "x w1 b1", "h"), node("Relu", "h", "a"), node("RandomNormalLike", "a", "n"),
             node("Add", "a n", "s"), node("Gemm", "s w2 b2", "y")]  # fmt: skip
    constants = weights(x=(2, 6), w1=(6, 8), b1=(8,), w2=(8, 4), b2=(4,))
    model = write(build(nodes, {}, ["y"], constants), tmp_path)
    with pytest.raises(UsageError, match="has no inputs"):
        prune(model, tmp_path / "out.onnx", ratio=0.5, calib="synthetic")


def test_inputs_that_are_no_numbers(tmp_path):
    """All of them: a sample here and there does no harm."""
    with np.load(MODELS / "digits.npz") as data:
        x = data["x_train"][:32].astype(np.float32)
    name = load(MODELS / "digits_cnn.onnx").inputs[0]
    few = x.copy()
    few[3] = np.nan
    assert len(calibration_of([{name: few}], load(MODELS / "digits_cnn.onnx")).fit)
    with pytest.raises(BadRequest, match=f"NaN in input '{name}'"):
        calibration_of([{name: np.full_like(x, np.nan)}], load(MODELS / "digits_cnn.onnx"))


def test_synthetic_is_said(tmp_path, capsys):
    command = ["prune", str(MODELS / "digits_cnn.onnx"), "-o", str(tmp_path / "out.onnx"), "-q", "--macs", "0.7"]
    report = tmp_path / "report.json"
    assert main([*command, "--calib", "synthetic", "--calib-samples", "32", "--json", str(report)]) == 0
    text = capsys.readouterr().out
    assert "accuracy is unmeasured" in text
    document = json.loads(report.read_text())
    assert document["fidelity"]["synthetic"]
    assert document["fidelity"]["error"] < document["fidelity"]["plain"]
    assert document["options"]["calib"] == "synthetic"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"macs": 0.5, "scope": "damage"}, "give --calib"),
        ({"macs": 0.5, "score": "wanda"}, "--calib"),
        ({"macs": 0.5, "compensate": False}, "need calibration inputs"),
        ({"ratio": 0.5, "scope": "damage", "calib": TRAIN}, "--macs or --params"),
        ({"macs": 0.5, "calib": TRAIN, "calib_samples": 8}, "at least 16"),
    ],
    ids=["scope", "score", "compensate", "ratio", "few"],
)
def test_errors(options, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        prune(MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()


def test_a_budget_that_calibration_cannot_reach_is_named(tmp_path):
    with pytest.raises(GoalError, match=r"--macs 0\.001 cannot be reached: with every group at its smallest width"):
        prune(MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", macs=0.001, calib=TRAIN, calib_samples=16)


def padded(tmp_path):
    """What it is padded by, mirrored, has to be shorter than the sequence; nothing in the file says so."""
    nodes = [node("Pad", "x pads", "p", mode="reflect"), node("Conv", "p a", "c"), node("Conv", "c b", "y")]
    constants = weights(a=(16, 4, 3), b=(4, 16, 3)) | {"pads": ints(0, 0, 100, 0, 0, 100)}
    onnx.save(build(nodes, {"x": ["N", 4, "T"]}, ["y"], constants), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_inputs_are_made_up_at_sizes_at_which_the_model_runs(tmp_path):
    result = prune(padded(tmp_path), tmp_path / "o.onnx", macs=0.5, align=1, calib="synthetic", calib_samples=32)
    assert 0 < result.fidelity.error < result.fidelity.plain


def test_what_does_not_run_on_its_inputs_is_told_what_helps(tmp_path):
    """A generator is used up by the first attempt."""
    short = ({"x": np.ones((1, 4, 16), np.float32)} for _ in range(32))
    with pytest.raises(ModelError, match=r"does not run on the calibration inputs: [\s\S]*Pad[\s\S]*\n.*--shape"):
        prune(padded(tmp_path), tmp_path / "o.onnx", macs=0.5, align=1, calib=short)


def test_a_model_that_answers_with_classes_is_judged_by_what_they_come_from(tmp_path):
    nodes = [node("MatMul", "x a", "h"), node("Relu", "h", "r"), node("MatMul", "r b", "z"), node("ArgMax", "z", "y")]
    made = build(nodes, {"x": ["N", 6]}, ["y"], weights(a=(6, 32), b=(32, 5)), kinds={"y": "i"})
    onnx.save(made, tmp_path / "m.onnx")
    result = prune(tmp_path / "m.onnx", tmp_path / "o.onnx", macs=0.5, align=1, calib="synthetic", calib_samples=64)
    assert 0 < result.fidelity.error < result.fidelity.plain


@pytest.mark.parametrize("macs", [0.001, 0.2])
def test_a_budget_of_several_rounds_is_named_as_it_was_given(macs, tmp_path):
    """Whichever round cannot do its part: what is left is a share of the original."""
    asked = {"macs": macs, "steps": 2, "min_width": 24, "calib": TRAIN, "calib_samples": 16}
    with pytest.raises(GoalError, match=rf"--macs {macs} cannot be reached: .* (0\.\d+) is left") as caught:
        prune(MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", **asked)
    assert 0.2 < float(str(caught.value).split(" is left")[0].split()[-1]) < 0.6
