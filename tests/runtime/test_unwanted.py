"""What ONNX Runtime's optimisation would change: a Relu before float8 is dropped, float weights are rounded."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from runtime.backends import SessionOptions, open_session
from runtime.backends.unwanted import unwanted_optimizers
from tests.onnx_builder import build, node, weights


def model(kind=TensorProto.FLOAT8E4M3FN):
    nodes = [
        node("Relu", "x", "r"), node("QuantizeLinear", "r scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "y"),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 6]) for name in "xy"]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.125]),
        helper.make_tensor("zero", kind, [], b"\0", raw=True),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "float8", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_what_is_below_zero_stays_out(tmp_path):
    onnx.save(model(), tmp_path / "m.onnx")
    x = np.array([[-4.0, -0.5, 0.0, 0.5, 4.0, 20.0]], np.float32)
    for source in (tmp_path / "m.onnx", (tmp_path / "m.onnx").read_bytes()):
        for level in ("off", "basic", "extended", "all"):
            got = open_session(source, options=SessionOptions(level=level)).run({"x": x})["y"]
            assert np.array_equal(got, np.maximum(x, 0)), level


def harmful_optimizers(model):
    return unwanted_optimizers(model, SessionOptions())


def test_only_where_it_harms(tmp_path):
    assert harmful_optimizers(model().SerializeToString())
    assert not harmful_optimizers(model(TensorProto.UINT8).SerializeToString())
    assert not harmful_optimizers(build([node("Relu", "x", "y")], {"x": [1]}, ["y"]).SerializeToString())
    assert not harmful_optimizers(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    assert not harmful_optimizers(tmp_path / "empty.onnx")
    assert not harmful_optimizers(b"QuantizeLinear, and then no model")


def test_float_weights_between_quantized_tensors_are_rounded_only_where_that_is_wanted():
    """By one scale for all, which makes nothing of small ones."""
    constants = weights(w=(6, 6, 1, 1)) | {
        "scale": np.float32(0.02), "fine": np.float32(0.002), "zero": np.uint8(128),
    }  # fmt: skip
    constants["w"][:3] *= 1e-2
    nodes = [
        node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero", "d"),
        node("Conv", "d w", "c"), node("QuantizeLinear", "c fine zero", "p"),
        node("DequantizeLinear", "p fine zero", "y"),
    ]  # fmt: skip
    made = build(nodes, {"x": [1, 6, 4, 4]}, ["y"], constants).SerializeToString()
    x = np.random.default_rng(0).standard_normal((1, 6, 4, 4)).astype(np.float32)
    want = open_session(made, options=SessionOptions(optimize=False)).run({"x": x})["y"]
    for level in ("basic", "extended", "all"):
        rounded, kept = (
            open_session(made, options=SessionOptions(level=level, rounding=rounding)).run({"x": x})["y"][:, :3]
            for rounding in (True, False)
        )
        assert np.abs(kept - want[:, :3]).max() < 0.003  # a step
        assert np.abs(rounded - want[:, :3]).max() > 0.005
