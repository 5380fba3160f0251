"""``verify`` on models whose weights were changed after the cut: not proved, and told apart from wrong cuts."""

from __future__ import annotations

import re
import shlex

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter import Plan, load, prune, rewrite
from exporter.cli import main
from exporter.pruner import load_for
from exporter.refitted import changed_weights
from tests.exporter.trained import drawn, files
from tests.onnx_builder import build, node


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """A dense model, its data, and it pruned without any (``cut.onnx``, ``p.json``), in the folder we are in."""
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    prune("model.onnx", "cut.onnx", macs=0.5).plan.save("p.json")
    return tmp_path


def edited(name, change):
    """``edited.onnx``: the pruned model with one constant changed."""
    model = onnx.load("cut.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    onnx.save(model, "edited.onnx")


def verified(capsys, pruned, *plans):
    """Exit code of ``verify``, and what it said."""
    flags = [word for plan in plans for word in ("--plan", plan)]
    code = main(["verify", "model.onnx", pruned, *flags, "-q"])
    out, err = capsys.readouterr()
    return code, out + err


def test_fitted_with_calibration_inputs(cut, capsys):
    """The message names the reason, and each command it gives runs."""
    prune("model.onnx", "fitted.onnx", macs=0.5, calib="data.npz", calib_samples=64).plan.save("f.json")
    code, said = verified(capsys, "fitted.onnx", "f.json")
    assert code == 1
    assert re.search(r"fitted\.onnx is not proved: .* \d of 6 constants holds? other values", said)
    assert "made with --calib data.npz" in said
    assert "no defect" in said
    assert "report" not in said
    commands = [line.strip() for line in said.splitlines() if line.startswith("  secateur ")]
    assert [c.split()[1] for c in commands] == ["eval", "compare", "prune", "verify"]
    for line in commands:
        if " compare " not in line:  # it measures
            assert main([*shlex.split(line.replace("DATA", "data.npz"))[1:], "-q"]) == 0, line


def test_a_plan_replayed_with_calibration_inputs(cut, capsys):
    """The plan knows of no inputs, but the weights show it."""
    prune("model.onnx", "fitted.onnx", plan=Plan.load("p.json"), calib="data.npz", calib_samples=64)
    code, said = verified(capsys, "fitted.onnx", "p.json")
    assert code == 1
    assert "of 6 constants hold" in said
    assert "'prune --calib', 'tune' and 'sparsify' change weights" in said


def test_left_unfitted_is_proved(cut, capsys):
    prune("model.onnx", "chosen.onnx", macs=0.5, calib="data.npz", calib_samples=64, compensate=False).plan.save(
        "c.json"
    )
    assert verified(capsys, "chosen.onnx", "c.json")[0] == 0


def test_two_plans_are_replayed_in_order(cut, capsys):
    prune("cut.onnx", "twice.onnx", macs=0.7, calib="data.npz", calib_samples=64).plan.save("q.json")
    code, said = verified(capsys, "twice.onnx", "p.json", "q.json")
    assert code == 1
    assert "prune model.onnx -o cut.onnx --plan p.json\n  secateur prune cut.onnx -o cut.onnx --plan q.json" in said
    assert "verify model.onnx cut.onnx --plan p.json --plan q.json" in said


@pytest.mark.parametrize("name", ["w1", "b2", "w3"])
def test_each_constant_counts(name, cut):
    edited(name, lambda v: v + np.float32(0.5))
    plan = Plan.load("p.json")
    graph = load_for(plan, "model.onnx")
    assert changed_weights(load("edited.onnx"), graph, plan) == (name,)
    assert changed_weights(load("cut.onnx"), graph, plan) == ()


def test_another_number_of_units_is_not_explained(cut, capsys):
    """A model that is not what the plan leaves keeps the message of the proof."""
    prune("model.onnx", "other.onnx", macs=0.7)
    code, said = verified(capsys, "other.onnx", "p.json")
    assert code == 1
    assert "hold other values" not in said


def test_numbers_that_count_are_no_weights(tmp_path):
    """Another target of a Reshape is a defect, however much it looks like a value."""
    constants = {"w": drawn(8, 0)[0], "shape": np.array([0, 2, -1]), "flat": np.array([0, -1]), "v": drawn(8, 1)[0]}
    nodes = [
        node("MatMul", "x w", "h"), node("Reshape", "h shape", "r"), node("Relu", "r", "a"),
        node("Reshape", "a flat", "f"), node("MatMul", "f v", "y"),
    ]  # fmt: skip
    onnx.save(build(nodes, {"x": ["N", 8]}, ["y"], constants), tmp_path / "m.onnx")
    plan = prune(tmp_path / "m.onnx", tmp_path / "p.onnx", ratio=0.5, align=1).plan
    graph = load_for(plan, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "p.onnx")
    target = next(t for t in model.graph.initializer if t.name == "shape")
    target.CopyFrom(numpy_helper.from_array(np.array([0, -1, 1]), "shape"))
    onnx.save(model, tmp_path / "q.onnx")
    assert rewrite(graph, plan).constants["shape"].data_type == onnx.TensorProto.INT64
    assert changed_weights(load(tmp_path / "q.onnx"), graph, plan) == ()
