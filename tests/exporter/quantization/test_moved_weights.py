"""Weights that layers read from another side, or through something that changes nothing, are quantized like others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.cli import main
from runtime.backends import open_session
from tests.exporter.files import write
from tests.onnx_builder import build, ints, node, weights

X = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)


def split():
    """As torch's exporters write a projection to queries, keys and values: split, then turned."""
    nodes = [node("Split", "w", "p q r", axis=0, num_outputs=3), *(node("Transpose", a, a + "t") for a in "pqr"),
             *(node("MatMul", f"x {a}t", a + "x") for a in "pqr"), node("Add", "px qx", "s"),
             node("Mul", "s rx", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(24, 8)))


def split_and_read():
    """One part is read by something else too, which keeps the Split."""
    nodes = [node("Split", "w", "p q", axis=1, num_outputs=2), node("MatMul", "x p", "a"), node("Relu", "a", "b"),
             node("MatMul", "b v", "c"), node("MatMul", "c p", "d"), node("ReduceMean", "q", "e", keepdims=0),
             node("Add", "d e", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(8, 16), v=(8, 8)))


def shared():
    """As torch's older exporter writes layers that share a weight."""
    nodes = [node("Identity", "w", "i"), node("Identity", "i", "j"), node("MatMul", "x w", "a"), node("Relu", "a", "b"),
             node("MatMul", "b i", "c"), node("Relu", "c", "d"), node("MatMul", "d j", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(8, 8)))


def turned_by_each():
    nodes = [node("Transpose", "w", "i"), node("Transpose", "w", "j"), node("MatMul", "x i", "a"),
             node("Relu", "a", "b"),
             node("MatMul", "b j", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(8, 8)))


def reshaped():
    """As CNTK writes the layer behind a Flatten, in a file so old that constants are declared as inputs."""
    nodes = [node("Reshape", "w shape", "v"), node("MatMul", "x v", "y")]
    model = build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(2, 4, 6)) | {"shape": ints(8, 6)}, opset=8)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    return model


CASES = {"split": (split, [24 * 8 // 3] * 3), "split and read": (split_and_read, [64, 64]), "shared": (shared, [64]),
         "turned by each": (turned_by_each, [64]), "reshaped": (reshaped, [48])}  # fmt: skip


@pytest.mark.parametrize("precision", ["int8", "int8-weight"])
@pytest.mark.parametrize("name", CASES)
def test_they_are_quantized(name, precision, tmp_path):
    """Each once, whoever reads it."""
    make, sizes = CASES[name]
    if name == "split and read" and precision == "int8-weight":
        sizes = sizes[:1]  # a part of what others read would be there twice, for nothing
    path, out = write(make(), tmp_path), tmp_path / "out.onnx"
    np.savez(tmp_path / "x.npz", x=X)
    line = ["quantize", str(path), "-o", str(out), "--precision", precision, "--calib", str(tmp_path / "x.npz")]
    assert main([*line, "--seconds", "0", "-q"]) == 0
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    stored = [np.prod(t.dims) for t in onnx.load(out).graph.initializer if t.data_type in kinds and len(t.dims) == 2]
    assert stored == sizes
    want, got = (open_session(file).run({"x": X})["y"] for file in (path, out))
    assert 0 < np.square(got - want).mean() < 0.02 * want.var()
