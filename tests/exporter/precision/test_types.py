"""Types where shape inference gives up: a branch that does not fit the sizes at hand, and all behind it."""

from __future__ import annotations

import numpy as np
import onnx

from exporter.model_file import from_model, load
from exporter.precision.converting import convert_precision
from exporter.precision.types import types_of
from runtime.backends import open_session
from tests.exporter.files import write
from tests.onnx_builder import build, ints, node, weights

F32, I64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def squeezing():
    """One branch takes an axis off that is not one long, as exporters write it; nobody takes that branch."""
    branches = [
        onnx.helper.make_graph(inner, "branch", [], [onnx.ValueInfoProto(name=result)])
        for inner, result in (
            ([node("Squeeze", "h last", "s")], "s"), ([node("Identity", "h", "e")], "e"),
        )
    ]  # fmt: skip
    nodes = [
        node("MatMul", "x a", "h"), node("Not", "flag", "no"),
        node("If", "no", "i", then_branch=branches[0], else_branch=branches[1]), node("Relu", "i", "r"),
        node("ArgMax", "r", "at"), node("Greater", "r r", "more"), node("MatMul", "r b", "y"),
    ]  # fmt: skip
    constants = weights(a=(4, 6), b=(6, 3)) | {"last": ints(1)}
    return build(nodes, {"x": ["N", "T", 4], "flag": []}, ["y", "at", "more"], constants,
                 kinds={"flag": "b", "at": "i", "more": "b"})  # fmt: skip


def test_schemas_tell_what_inference_does_not():
    graph = from_model(squeezing())
    assert {"s", "i", "r"} & graph.inferred.dtype.keys() == set()
    kinds = types_of(graph)
    names = {n for n in graph.producer if n}
    assert {n: kinds.get(n) for n in names - {"at", "no", "more"}} == dict.fromkeys(names - {"at", "no", "more"}, F32)
    assert (kinds["at"], kinds["no"], kinds["more"]) == (I64, BOOL, BOOL)


def test_such_a_model_is_converted(tmp_path):
    path = write(squeezing(), tmp_path)
    convert_precision(path, tmp_path / "half.onnx", "fp16", keep_io=True)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32), "flag": np.array(True)}
    want, got = (open_session(p).run(feed)["y"] for p in (path, tmp_path / "half.onnx"))
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    weights_now = load(tmp_path / "half.onnx").constants
    assert onnx.TensorProto.FLOAT16 in {t.data_type for t in weights_now.values()}
