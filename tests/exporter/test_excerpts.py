"""Gates on weights are put on the weights that are fed: the same numbers come out, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import excerpts, load
from exporter.excerpts import excerpt, run_excerpt
from exporter.fed_weights import Room
from tests.exporter.files import write

ROWS, COLUMNS = 6, 8
WEIGHT = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
WEIGHT[3, 5] = np.inf
SHOWN_ROWS = np.array([1, 0, 1, 0, 1, 1], bool)[:, None]
SHOWN_COLUMNS = np.array([0, 1, 1, 1, 0, 0, 1, 1], bool)
X = np.abs(np.random.default_rng(1).standard_normal((2, 3, ROWS))).astype(np.float32)


def gated(gates, extra, dtype):
    """A product whose weight goes through gates, each a mask and what stands where it is false."""
    constants, nodes, last = {"w": WEIGHT}, [], "w"
    for k, (mask, fill) in enumerate(gates):
        constants |= {f"mask{k}": mask, f"fill{k}": np.asarray(fill, np.float32)}
        nodes.append(helper.make_node("Where", [f"mask{k}", last, f"fill{k}"], [f"w{k}"]))
        last = f"w{k}"
    nodes += [helper.make_node("MatMul", ["x", last], ["y"]), *extra]
    tensors = [
        numpy_helper.from_array(v.astype(dtype) if v.dtype == np.float32 else v, n) for n, v in constants.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs = [helper.make_tensor_value_info(n, kind, None) for node in nodes[len(gates) :] for n in node.output]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, [2, 3, ROWS])], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CASES = {
    "rows": ([(SHOWN_ROWS, 0)], [], 0),
    "columns": ([(SHOWN_COLUMNS, [0])], [], 0),
    "both": ([(SHOWN_ROWS, 0), (SHOWN_COLUMNS, 0)], [], 0),
    "all": ([(np.zeros((), bool), 0)], [], 0),
    "another number": ([(SHOWN_ROWS, 2)], [], 1),
    "a number for each": ([(SHOWN_COLUMNS, np.zeros(COLUMNS))], [], 1),
    "several readers": ([(SHOWN_ROWS, 0)], [helper.make_node("Transpose", ["w"], ["z"])], 1),
    "the gate is read twice": ([(SHOWN_ROWS, 0)], [helper.make_node("Transpose", ["w0"], ["z"])], 0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", CASES)
def test_gates_on_weights_that_are_fed(case, dtype, tmp_path, monkeypatch):
    gates, extra, left = CASES[case]
    model = gated(gates, extra, dtype)
    graph = load(write(model, tmp_path))
    names = [o.name for o in graph.model.graph.output]
    seen = []
    whole = excerpts.open_own
    monkeypatch.setattr(excerpts, "open_own", lambda data, what: seen.append(data) or whole(data, what))
    results = {}
    for fed_from in (64, 1 << 20):  # fed with its gates in place; inside the model, as it is
        monkeypatch.setattr(excerpts, "_FED_BYTES", fed_from)
        part = excerpt(graph, [n.proto for n in graph.nodes], names, {"x": X})
        results[fed_from] = run_excerpt(part.model, part, names, [{"x": X}, {"x": X + 1}], "the model", Room())
    for got, want in zip(*results.values(), strict=True):
        assert all(np.array_equal(got[n], want[n], equal_nan=True) for n in names)
    assert [n.op_type for n in onnx.load_from_string(seen[0]).graph.node].count("Where") == left
    assert np.array_equal(graph.array("w"), WEIGHT.astype(dtype))  # the file's numbers stay


def test_room_is_used_again():
    room = Room()
    first, second = room.divided([(2, 3), (4,)])
    first[:], second[:] = 1, 2
    assert first.sum() == 6  # they do not overlap
    (again,) = room.divided([(5,)])
    assert np.shares_memory(again, first)
    assert room.divided([]) == []
    assert room.divided([(100, 100)])[0].shape == (100, 100)
