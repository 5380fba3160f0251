"""Channels that are made alike: the model computes the same, and is rounded better where some are much larger."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from exporter.calibration.data import Calibration
from exporter.cli import main
from exporter.quantization.layers import layers_of, name_nodes
from exporter.quantization.smoothing import smoothed
from runtime.backends import TensorSpec, open_session
from runtime.samples import samples_of
from tests.exporter.files import write
from tests.onnx_builder import build, node, weights

WIDTH = 12
X = np.random.default_rng(0).standard_normal((64, 5, WIDTH)).astype(np.float32)
LAST = [node("MatMul", "t w", "q"), node("MatMul", "t v", "k"), node("Mul", "q k", "y")]
"""Two products that read what is made alike."""

CASES = {
    "the gain of a norm": [node("Softmax", "x", "n"), node("Mul", "n g", "t")],
    "gain and bias": [node("Softmax", "x", "n"), node("Mul", "g n", "s"), node("Add", "s b", "t")],
    "LayerNormalization": [node("LayerNormalization", "x g b", "t")],
    "RMSNormalization": [node("RMSNormalization", "x g", "t")],
    "a layer and its bias": [node("MatMul", "x m", "h"), node("Add", "b h", "t")],
    "behind a Relu": [node("MatMul", "x m", "h"), node("Add", "h b", "s"), node("Relu", "s", "t")],
    "a gate": [node("Sigmoid", "x", "s"), node("MatMul", "x m", "h"), node("Mul", "s h", "t")],
    "Gemm": [node("Reshape", "x flat", "f"), node("Gemm", "f m b", "t")],
    "Gemm, turned": [node("Reshape", "x flat", "f"), node("Gemm", "f m b", "h", transB=1), node("LeakyRelu", "h", "t")],
}
LEFT = {
    "behind a function that bends": [node("MatMul", "x m", "h"), node("Tanh", "h", "t")],
    "an input": [node("Identity", "x", "t")],
    "of another axis": [node("LayerNormalization", "x all all", "t", axis=-2)],
    "a gain that others read": [node("Mul", "x g", "t"), node("Mul", "x g", "other")],
    "a sum of two layers": [node("MatMul", "x m", "h"), node("MatMul", "x m2", "h2"), node("Add", "h h2", "t")],
    "a layer whose result others read": [node("MatMul", "x m", "h"), node("Relu", "h", "t"), node("Neg", "h", "other")],
    "a number for each row": [node("MatMul", "x one", "h"), node("Add", "h b", "t")],
}


def network(nodes, outputs=("y",), last=LAST):
    shapes = {"w": (WIDTH, 8), "v": (WIDTH, 8), "m": (WIDTH, WIDTH), "m2": (WIDTH, WIDTH), "one": (WIDTH, 1)}
    shapes |= {"g": (WIDTH,), "b": (WIDTH,), "all": (5, WIDTH)}
    read = {name for n in (*nodes, *last) for name in n.input}
    constants = {k: v for k, v in (weights(**shapes) | {"flat": np.array([-1, WIDTH])}).items() if k in read}
    made = [o for n in nodes for o in n.output]
    outs = [*outputs, *(["other"] if "other" in made else [])]
    rms = any(n.op_type == "RMSNormalization" for n in nodes)
    model = build([*nodes, *last], {"x": ["N", 5, WIDTH]}, outs, constants, opset=23 if rms else 21)
    name_nodes(model)
    return model


def alike(model, x=X):
    """The model as it is scaled, whether or not that helps."""
    samples = samples_of({"x": x}, [TensorSpec("x", np.dtype("f4"), ("N", 5, WIDTH))])
    calibration = Calibration(samples, samples, 8, 8, "", False)
    errors = iter((3.0, 1.0, 2.0))
    return smoothed(model, layers_of(model), calibration, lambda *_: next(errors), lambda _: None)


@pytest.mark.parametrize("case", CASES)
def test_the_model_computes_the_same(case):
    model = network(CASES[case])
    made = alike(model)
    want, got = (open_session(m.SerializeToString()).run({"x": X})["y"] for m in (model, made.model))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    values = [{t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, made.model)]
    other = {name for name, value in values[0].items() if not np.array_equal(value, values[1][name])}
    assert other == made.changed >= {"w", "v"}
    assert len(other) > 2


def test_all_inputs_tell_how_large_channels_are():
    """What is tried rests on half of them, what is written does not."""
    x = X.copy()
    x[:32, :, 0] *= 50
    model = network(CASES["a layer and its bias"])
    first, last = (alike(model, some).model for some in (x, x[::-1].copy()))
    for one, other in zip(first.graph.initializer, last.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_divided_stays(case):
    model = network(LEFT[case])
    assert alike(model).model is model


def test_what_others_see_stays():
    gain = CASES["the gain of a norm"]
    for model in (
        network(gain, outputs=("y", "t")),
        network(gain, last=[*LAST[:2], node("Mul", "q k", "z"), node("ReduceSum", "t", "r"), node("Add", "z r", "y")]),
        network(gain, last=[*LAST[:2], node("MatMul", "n w", "z"), node("Mul", "q z", "p"), node("Mul", "p k", "y")]),
    ):
        assert alike(model).model is model


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_large_channels_cost_less(precision, tmp_path):
    """Two channels of twelve are fifty times as large as the others, as in trained transformers."""
    model = network(CASES["the gain of a norm"], last=[node("MatMul", "t w", "y")])
    tensors = {t.name: t for t in model.graph.initializer}
    for name in ("g", "w"):
        values = onnx.numpy_helper.to_array(tensors[name]).copy()
        values[:2] *= 50 if name == "g" else 1 / 50
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    path = write(model, tmp_path)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).standard_normal((400, 5, WIDTH)).astype(np.float32))
    told = {}
    for how in ("--seed=0", "--no-fit"):
        line = ["quantize", str(path), "-o", str(tmp_path / "o.onnx"), "--precision", precision, "--seconds", "0", "-q"]
        assert main([*line, "--calib", str(tmp_path / "d.npz"), "--json", str(tmp_path / "o.json"), how]) == 0
        told[how] = json.loads((tmp_path / "o.json").read_text())
    assert 0 < told["--seed=0"]["output_error"] < 0.2 * told["--no-fit"]["output_error"]
    assert any("made alike (SmoothQuant" in note for note in told["--seed=0"]["notes"])


def test_a_tied_layer_that_is_scaled_keeps_a_weight_of_its_own(tmp_path):
    """The last layer's weight is the table of the first; where it stays in float, the table must not take its place."""
    nodes = [node("Gather", "table ids", "e"), node("Softmax", "e", "n"), node("Mul", "n g", "t"),
             node("Transpose", "table", "turned"), node("MatMul", "t turned", "y")]  # fmt: skip
    constants = weights(table=(400, WIDTH), g=(WIDTH,))
    constants["g"][:2] *= 50
    constants["table"][:, :2] /= 50
    model = build(nodes, {"ids": ["N", 5]}, ["y"], constants, kinds={"ids": "i"})
    path = write(model, tmp_path)
    ids = np.random.default_rng(0).integers(0, 400, (200, 5))
    np.savez(tmp_path / "d.npz", ids=ids)
    out = tmp_path / "o.onnx"
    line = ["quantize", str(path), "-o", str(out), "--precision", "int8-dynamic", "--seconds", "0", "-q"]
    for extra, integers in (([], 1), (["--max-drop", "1e-5", "--metric", "cosine"], 0)):
        assert main([*line, "--calib", str(tmp_path / "d.npz"), *extra]) == 0
        assert [n.op_type for n in onnx.load(out).graph.node].count("MatMulInteger") == integers
        want, got = (open_session(p).run({"ids": ids})["y"] for p in (path, out))
        assert np.square(got - want).mean() < 1e-3 * want.var()
