"""Recurrent layers with the batch first: ONNX Runtime does not run them, the reference implementation does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from exporter import find_groups, rewrite
from exporter.edits import complete
from exporter.masked import masked_original
from exporter.model_file import from_model
from tests.onnx_builder import weights

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def batch_first(op):
    """``x[2, 5, 4]``, six hidden units, the last states read by a linear layer."""
    g = GATES[op]
    arrays = weights(w=(1, g * 6, 4), r=(1, g * 6, 6), b=(1, 2 * g * 6), wo=(6, 3))
    states = ["", "h0", "c0"] if op == "LSTM" else ["", "h0"]
    arrays |= {name: np.full((2, 1, 6), 0.1, np.float32) for name in states[1:]}
    nodes = [
        onnx.helper.make_node(op, ["x", "w", "r", "b", *states], ["", "last"], hidden_size=6, layout=1),
        onnx.helper.make_node("MatMul", ["last", "wo"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "test", [value("x", 1, [2, 5, 4])], [value("y", 1, [2, 1, 3])],
        [onnx.numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op):
    graph = from_model(batch_first(op))
    groups = find_groups(graph)
    assert [g.width for g in groups] == [6]
    plan = complete(groups, [np.array([1, 0, 1, 1, 0, 0], bool)], {})
    pruned = rewrite(graph, plan)
    assert pruned.shape("last") == (2, 1, 3)
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)}
    dense, masked, small = (
        ReferenceEvaluator(m).run(["y"], x)[0] for m in (graph.model, masked_original(graph, plan), pruned.model)
    )
    np.testing.assert_allclose(small, masked, rtol=1e-5, atol=1e-6)
    assert np.abs(small - dense).max() > 0.1 * dense.std()
