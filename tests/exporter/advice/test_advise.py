"""``secateur advise``: verdicts by kind of model and device, commands that run, JSON that fits its schema."""

from __future__ import annotations

import json
import shlex

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.schema_files import stored_schema
from tests.exporter.files import branch, choose
from tests.exporter.trained import classifier
from tests.onnx_builder import build, node, weights
from tests.schemas import conform


def mlp():
    nodes = [node("MatMul", "x a", "h"), node("Relu", "h", "r"), node("MatMul", "r b", "y")]
    return build(nodes, {"x": [1, 16]}, ["y"], weights(a=(16, 32), b=(32, 4)))


def embedding():
    nodes = [node("Gather", "t i", "e"), node("MatMul", "e b", "y")]
    return build(nodes, {"i": [1, 4]}, ["y"], weights(t=(500, 16), b=(16, 4)), kinds={"i": "i"})


def quantized():
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("MatMul", "d a", "y"),
    ]
    codes = {"s": np.float32(0.1), "z": np.int8(0)}
    return build(nodes, {"x": [1, 16]}, ["y"], {**weights(a=(16, 32)), **codes})


def advised(model, tmp_path, *options):
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["advise", str(tmp_path / "m.onnx"), "-q", "--json", str(tmp_path / "a.json"), *options]) == 0
    document = json.loads((tmp_path / "a.json").read_text())
    conform(document, stored_schema("advise"))
    return document, {a["what"]: a for a in document["advice"]}


def recurrent():
    return build(
        [node("LSTM", "x w r", "y", hidden_size=8)], {"x": [3, 1, 4]}, ["y"], weights(w=(1, 32, 4), r=(1, 32, 8))
    )


def branching():
    """One branch by a size, one by a switch inside of it, one by the data."""
    inner = choose(
        "fast", "i", branch("a", [node("Relu", "x", "a1")], "a1"), branch("b", [node("Tanh", "x", "b1")], "b1")
    )
    outer = choose(
        "long", "o", branch("c", [inner, node("Abs", "i", "c1")], "c1"), branch("d", [node("Neg", "x", "d1")], "d1")
    )
    data = choose(
        "high", "p", branch("e", [node("Relu", "o", "e1")], "e1"), branch("f", [node("Neg", "o", "f1")], "f1")
    )
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s one", "n"), node("Greater", "n ten", "long"), outer,
        node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m nought", "high"), data, node("MatMul", "p w", "y"),
    ]  # fmt: skip
    constants = {"one": np.int64(1), "ten": np.int64(10), "nought": np.float32(0)} | weights(w=(4, 3))
    inputs = {"x": ["N", "T", 4], "fast": [], "other": [1]}
    return build(nodes, inputs, ["y"], constants, kinds={"fast": "b", "other": "b"})


ROWS = [
    ("widths", mlp, "ort-cpu", "structured widths", "maybe", "--macs|--ratio"),
    ("no blocks", mlp, "ort-cpu", "layers", "no", "no residual block"),
    ("no sparse kernels", mlp, "ort-cpu", "2:4 sparsity", "no", "no sparse kernels"),
    ("fp32 on a CPU", mlp, "ort-cpu", "half precision", "no", "fp32"),
    ("fp16 on a GPU", mlp, "ort-cuda", "half precision", "try", "computes in fp16"),
    ("few parameters", mlp, "ort-cpu", "anything smaller", "maybe", "few"),
    ("tables", embedding, "ort-cpu", "tables of embeddings", "maybe", "looked up"),
    ("matrices", mlp, "ort-cpu", "quantize", "try|maybe", "compute on integers without data"),
    ("recurrent", recurrent, "ort-cpu", "quantize", "maybe", "can store weights in 8 bits"),
    ("recurrent on a GPU", recurrent, "ort-cuda", "quantize", "no", "no layer has a 32-bit weight"),
    ("quantized", quantized, "ort-cpu", "quantize", "no", "already"),
]


def test_branches_that_fixed_inputs_would_decide(tmp_path):
    _, found = advised(branching(), tmp_path, "--no-measure", "--shape", "x:1x12x4")
    advice = found["fixed inputs"]
    assert advice["verdict"] == "try"
    assert "sizes or values of x, fast decide 2 branches" in advice["reason"]
    assert advice["command"].endswith("m-fixed.onnx --fix x:1x12x4 --fix fast=VALUE")
    words = shlex.split(advice["command"].replace("VALUE", "true"))[1:]
    words[words.index("-o") + 1] = str(tmp_path / "f.onnx")
    assert main(words) == 0
    left = onnx.load(tmp_path / "f.onnx")
    assert [n.op_type for n in left.graph.node] == ["Relu", "Abs", "ReduceMax", "Greater", "If", "MatMul"]
    _, found = advised(left, tmp_path, "--no-measure")
    assert "fixed inputs" not in found  # what is left goes by the data


@pytest.mark.parametrize(("make", "device", "what", "verdict", "text"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_verdicts(tmp_path, make, device, what, verdict, text):
    document, found = advised(make(), tmp_path, "--no-measure", "--device", device)
    assert document["unmeasured"]
    assert found[what]["verdict"] in verdict.split("|")
    assert found[what]["basis"] == "computed"
    assert any(t in found[what]["reason"] for t in text.split("|"))
    order = [a["verdict"] for a in document["advice"]]
    assert order == sorted(order, key=("try", "maybe", "no").index)


def test_a_tiny_model_is_too_small(tmp_path):
    document, found = advised(mlp(), tmp_path, "--seconds", "0.2")
    assert found["anything smaller"]["verdict"] == "no"
    assert found["anything smaller"]["basis"] == "measured"
    assert found["structured widths"]["verdict"] == "no"
    assert sum(document["measured"]["bottlenecks"].values()) == pytest.approx(1, abs=0.01)


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    document, _ = advised(classifier(), tmp_path, "--no-measure")
    commands = [a["command"] for a in document["advice"] if a["verdict"] != "no" and a["command"]]
    assert commands
    for command in commands:
        if command.split()[1] not in ("lint", "profile"):  # these measure
            assert main([*shlex.split(command)[1:], "-q"]) == 0, command
    capsys.readouterr()


def test_unknown_device(tmp_path, capsys):
    onnx.save(mlp(), tmp_path / "m.onnx")
    assert main(["advise", str(tmp_path / "m.onnx"), "--device", "abacus"]) == 4
    assert "there is no backend 'abacus'" in capsys.readouterr().err
