"""Weights of recurrent layers in 8 bits: smaller, close to the layer in float, whatever else is quantized."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.quantization.processor import saturates
from exporter.quantization.quantizer import quantize
from runtime.backends import open_session
from tests.exporter.files import run, write
from tests.onnx_builder import build, ints, node, weights

INPUTS, UNITS = 12, 16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
X = np.random.default_rng(0).standard_normal((40, 7, 2, INPUTS)).astype(np.float32)


def network(op, directions=2, shared=False):
    """Two recurrent layers, with weights of their own or not, and a layer behind them."""
    rows = GATES[op] * UNITS
    shapes = {"w": (directions, rows, INPUTS), "r": (directions, rows, UNITS), "v": (directions * UNITS, INPUTS)}
    constants = weights(**shapes, out=(INPUTS, 5), **({} if shared else {"r2": shapes["r"]}))
    for name in ("r", "r2"):
        if name in constants:
            constants[name] *= np.geomspace(0.01, 1, rows, dtype=np.float32)[None, :, None]  # rows of very unlike sizes
    how = {"hidden_size": UNITS, "direction": "bidirectional" if directions == 2 else "forward"}
    nodes = [node("Squeeze", "x none", "s"), node(op, "s w r", "a", **how),
             node("Transpose", "a", "t", perm=[0, 2, 1, 3]), node("Reshape", "t to", "u"), node("MatMul", "u v", "n"),
             node("Tanh", "n", "m"), node(op, f"m w {'r' if shared else 'r2'}", "b", **how),
             node("ReduceMean", "b axes", "c", keepdims=0), node("MatMul", "c back", "d"),
             node("MatMul", "d out", "y")]  # fmt: skip
    constants |= weights(back=(UNITS, INPUTS)) | {"none": np.array([0]), "axes": np.array([1])}
    constants["to"] = np.array([7, 2, directions * UNITS])
    return build(nodes, {"x": [1, 7, 2, INPUTS]}, ["y"], constants)


def quantized(path, tmp_path, *options):
    out = tmp_path / "out.onnx"
    np.savez(tmp_path / "x.npz", x=X[:, None])
    calib = ["--calib", str(tmp_path / "x.npz")] if "int8" in options else []
    assert main(["quantize", str(path), "-o", str(out), "--seconds", "0", "-q", *options, *calib]) == 0
    return out


def kinds(path):
    """Element types of the constants of three axes, by name."""
    tensors = onnx.load(path).graph.initializer
    return {t.name.removesuffix("_quantized"): t.data_type for t in tensors if len(t.dims) == 3}


def error(path, out):
    want, got = (np.stack([open_session(file).run({"x": x[None]})["y"] for x in X]) for file in (path, out))
    return np.square(got - want).mean() / want.var()


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("precision", ["int8-weight", "int8"])
def test_weights_become_integers(op, directions, precision, tmp_path):
    path = write(network(op, directions), tmp_path)
    out = quantized(path, tmp_path, "--precision", precision)
    assert kinds(out) == dict.fromkeys(("w", "r", "r2"), onnx.TensorProto.INT8)
    coarser = 4 if precision == "int8" and saturates() else 1  # 7 bits, squared, for the layers between
    assert 0 < error(path, out) < 2e-3 * coarser
    assert out.stat().st_size < path.stat().st_size


def test_eight_bits_where_others_have_four(tmp_path):
    path = write(network("LSTM"), tmp_path)
    out = quantized(path, tmp_path, "--precision", "int4-weight")
    assert kinds(out) == dict.fromkeys(("w", "r", "r2"), onnx.TensorProto.INT8)


@pytest.mark.parametrize(("keep", "floats"), [("a", {"w", "r"}), ("b", {"w", "r2"}), ("out", set())])
def test_what_is_kept_has_its_floats(keep, floats, tmp_path):
    """A weight that both layers read is there twice then."""
    path = write(network("GRU"), tmp_path)
    out = quantized(path, tmp_path, "--precision", "int8-weight", "--keep", keep)
    held = [(t.name, t.data_type) for t in onnx.load(out).graph.initializer if len(t.dims) == 3]
    assert {name for name, kind in held if kind == onnx.TensorProto.FLOAT} == floats
    assert len(held) == 3 + bool(floats)


def test_shared_weights_are_stored_once(tmp_path):
    path = write(network("LSTM", shared=True), tmp_path)
    out = quantized(path, tmp_path, "--precision", "int8-weight")
    assert kinds(out) == {"w": onnx.TensorProto.INT8, "r": onnx.TensorProto.INT8}
    assert len([n for n in onnx.load(out).graph.node if n.op_type == "DequantizeLinear"]) == 5
    assert 0 < error(path, out) < 2e-3


def test_tensorrt_keeps_them_in_float(tmp_path):
    path = write(network("LSTM"), tmp_path)
    out = quantized(path, tmp_path, "--precision", "int8-weight", "--profile", "tensorrt")
    assert set(kinds(out).values()) == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["int8-weight", "int8-dynamic"])
def test_gates_that_the_file_puts_in_order(tmp_path, precision):
    """torch has them in another order than ONNX; exporters that keep the parameter reorder it in nodes."""
    made = weights(w=(32, 6), r=(32, 8), v=(8, 3))
    nodes = []
    for name in "wr":
        nodes += [
            node("Slice", f"{name} zero eight zero", f"{name}1"), node("Slice", f"{name} eight all zero", f"{name}2"),
            node("Concat", f"{name}2 {name}1", f"{name}3", axis=0), node("Unsqueeze", f"{name}3 zero", f"{name}4"),
        ]  # fmt: skip
    nodes += [node("LSTM", "x w4 r4", "h", hidden_size=8), node("Squeeze", "h one", "s"), node("MatMul", "s v", "y")]
    constants = made | {"zero": ints(0), "eight": ints(8), "all": ints(32), "one": ints(1)}
    onnx.save(build(nodes, {"x": [5, 2, 6]}, ["y"], constants), tmp_path / "m.onnx")
    found = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", precision=precision)
    assert found.quantized == ("node_h", "node_y")
    model = onnx.load(tmp_path / "q.onnx")
    assert {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8} >= {"w_quantized"}
    x = np.random.default_rng(0).standard_normal((5, 2, 6)).astype(np.float32)
    want, got = (run(tmp_path / name, {"x": x})["y"] for name in ("m.onnx", "q.onnx"))
    assert np.abs(want - got).max() < 0.1 * want.std()
