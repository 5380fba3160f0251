"""Products of 16 bits with weights that are fed in 32: the numbers ONNX Runtime gets, and no weight taken that others
read."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.calibration.single_products import products_in_single

WEIGHT = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float16)
BIAS = np.random.default_rng(1).standard_normal(24).astype(np.float16)
X = np.random.default_rng(2).standard_normal((5, 16)).astype(np.float16)

CASES = {
    "MatMul": [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "Gemm": [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
    "Gemm without a bias": [helper.make_node("Gemm", ["x", "w", ""], ["y"])],
    "two products": [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["g"]),
        helper.make_node("Add", ["h", "g"], ["y"]),
    ],
}
LEFT = {
    "the weight is the first operand": [helper.make_node("MatMul", ["w", "x"], ["y"])],
    "somebody else reads it": [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["h", "s"], ["y"]),
    ],
    "another domain": [helper.make_node("MatMul", ["x", "w"], ["y"], domain="mine")],
}


def made(nodes, weight=WEIGHT):
    constants = {"w": weight, "b": BIAS.astype(weight.dtype)}
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    read = {n for node in nodes for n in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [None, 16])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(v, n) for n, v in constants.items() if n in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


@pytest.mark.parametrize("nodes", CASES.values(), ids=CASES)
def test_the_same_numbers(nodes):
    model = made(nodes)
    want = run(model, {"x": X})
    taken = products_in_single(model, 1)
    assert list(taken) == ["w"]
    assert np.array_equal(numpy_helper.to_array(taken["w"]), WEIGHT)
    assert "w" not in {t.name for t in model.graph.initializer}
    assert {v.name: v.type.tensor_type.elem_type for v in model.graph.input}["w"] == TensorProto.FLOAT
    assert np.allclose(run(model, {"x": X, "w": WEIGHT.astype(np.float32)}), want, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("nodes", LEFT.values(), ids=LEFT)
def test_what_is_left_as_it_is(nodes):
    model = made(nodes)
    before = model.SerializeToString()
    assert products_in_single(model, 1) == {}
    assert onnx.ModelProto.FromString(before) == model


def test_small_weights_and_other_types_stay():
    for weight, least in ((WEIGHT, WEIGHT.nbytes + 1), (WEIGHT.astype(np.float32), 1)):
        model = made(CASES["MatMul"], weight)
        before = model.SerializeToString()
        assert products_in_single(model, least) == {}
        assert onnx.ModelProto.FromString(before) == model
