"""Several runs as one: each has the outputs it has alone, whatever their sizes, and its weight is multiplied once."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from exporter.side_by_side import in_run, side_by_side

RNG = np.random.default_rng(0)
W, V = RNG.standard_normal((6, 8)).astype(np.float32), RNG.standard_normal((8, 5)).astype(np.float32)
CONSTANTS = {
    "y@0.rows": np.ones(8, np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    "two": RNG.standard_normal((1, 8)).astype(np.float32),
}


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), output.split(), **attributes)


CASES = {
    "a product": ([node("MatMul", "x w", "y")], 3),
    "of vectors": ([node("MatMul", "x w", "y")], 1),
    "of many axes": ([node("MatMul", "x w", "y")], 4),
    "one after another": ([node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")], 3),
    "two readers": ([node("MatMul", "x w", "h"), node("MatMul", "x w", "k"), node("Mul", "h k", "y")], 2),
    "Gemm": ([node("Gemm", "x w b", "y", alpha=0.5, beta=2.0)], 2),
    "Gemm of a transposed weight": (
        [node("MatMul", "x w", "h"), node("MatMul", "h v", "k"), node("Gemm", "k v", "y", transB=1)],
        2,
    ),
    "what it adds comes from the run": ([node("MatMul", "x w", "h"), node("Gemm", "x w h", "y")], 2),
}


def made(nodes, rank, opset=17):
    dims = [f"d{k}" for k in range(rank - 1)] + [6]
    names = {n for each in nodes for n in each.input}
    inputs = [helper.make_tensor_value_info("x", 1, dims)]
    inputs += [helper.make_tensor_value_info(n, 1, v.shape) for n, v in (("w", W), ("v", V)) if n in names]
    outputs = [helper.make_tensor_value_info(o, 1, None) for each in nodes for o in each.output]
    constants = [numpy_helper.from_array(v, n) for n, v in CONSTANTS.items() if n in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {n: v for n, v in feed.items() if n in wanted}), strict=True))


def fed(rank, longer):
    return RNG.standard_normal([2 + longer] * (rank - 1) + [6]).astype(np.float32)


@pytest.mark.parametrize(("nodes", "rank"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("runs", [2, 3])
def test_each_run_has_what_it_has_alone(nodes, rank, runs):
    model = made(nodes, rank)
    before = model.SerializeToString(deterministic=True)
    inputs = [fed(rank, k) for k in range(runs)]
    joined = side_by_side(model, {"w": W.shape, "v": V.shape}, runs, 1)
    assert model.SerializeToString(deterministic=True) == before
    found = run(joined, {"w": W, "v": V} | {in_run("x", k): x for k, x in enumerate(inputs)})
    for k, x in enumerate(inputs):
        for name, want in run(model, {"x": x, "w": W, "v": V}).items():
            got = found.pop(in_run(name, k))
            assert got.shape == want.shape
            assert np.allclose(got, want, rtol=1e-5, atol=1e-5)
    assert not found
    products = [n.op_type for n in joined.graph.node if n.op_type in ("MatMul", "Gemm")]
    of_the_run = sum(any(n in ("h", "k") for n in each.input[2:]) for each in nodes)
    assert len(products) == sum(n.op_type in ("MatMul", "Gemm") for n in nodes) + of_the_run * (runs - 1)


def test_a_run_without_rows():
    joined = side_by_side(made([node("MatMul", "x w", "y")], 2), {"w": W.shape}, 2, 1)
    found = run(joined, {"w": W, in_run("x", 0): np.zeros((0, 6), np.float32), in_run("x", 1): fed(2, 0)})
    assert found[in_run("y", 0)].shape == (0, 8)
    assert found[in_run("y", 1)].shape == (2, 8)


ALONE = {
    "little to read": ([node("MatMul", "x w", "y")], 49, 17),
    "sizes are no inputs of Split yet": ([node("MatMul", "x w", "y")], 1, 12),
    "no rows": ([node("MatMul", "x w", "h"), node("Gemm", "x w", "y", transA=1)], 49, 17),
    "the weight comes first": ([node("MatMul", "w x", "y")], 1, 17),
    "what it adds has rows": ([node("Gemm", "x w two", "y")], 1, 17),
    "a name is taken": ([node("MatMul", "x w", "y"), node("Add", "y y@0.rows", "z")], 1, 17),
    "another operator": ([helper.make_node("MatMul", ["x", "w"], ["y"], domain="mine")], 1, 17),
}


@pytest.mark.parametrize(("nodes", "least", "opset"), ALONE.values(), ids=ALONE)
def test_runs_that_stay_alone(nodes, least, opset):
    assert side_by_side(made(nodes, 2, opset), {"w": W.shape}, 2, least) is None


def test_branches_stay_alone():
    value = helper.make_tensor_value_info("t", 1, None)
    branch = helper.make_graph([node("Identity", "x", "t")], "branch", [], [value])
    nodes = [node("MatMul", "x w", "h"), node("If", "c", "y", then_branch=branch, else_branch=branch)]
    assert side_by_side(made(nodes, 2), {"w": W.shape}, 2, 1) is None
