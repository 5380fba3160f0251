"""Layers of the branch that calibration inputs take are chosen, fitted and sparsified as others are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporter import prune, sparsify
from exporter.calibration.branches import along
from exporter.calibration.compensation import compensate
from exporter.calibration.readers import find_readers
from exporter.groups import find_groups
from exporter.importance import score
from exporter.model_file import from_model
from exporter.normalise import input_specs
from exporter.planner import make_plan
from exporter.rewriter import rewrite
from runtime.backends import open_session
from runtime.samples import samples_of
from tests.exporter.calibration.networks import scaled
from tests.onnx_builder import build, node

THEN = [node("MatMul", "h w1", "p"), node("Relu", "p", "q"), node("MatMul", "q v1", "r")]
OTHER = [node("MatMul", "h w2", "s"), node("Tanh", "s", "t"), node("MatMul", "t v2", "u")]
SHAPES = {"wi": (6, 12), "w1": (12, 24), "v1": (24, 8), "w2": (12, 24), "v2": (24, 8), "w3": (12, 8), "wo": (8, 3)}


def branch(nodes, result):
    return helper.make_graph(
        nodes, "branch", [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
    )  # fmt: skip


def network(condition="flag", then=None, other=None, before=()):
    """Two layers, between which a branch has two of its own."""
    choice = node(
        "If", condition, "k", then_branch=then or branch(THEN, "r"), else_branch=other or branch(OTHER, "u")
    )  # fmt: skip
    nodes = [node("MatMul", "x wi", "g"), node("Relu", "g", "h"), *before, choice, node("MatMul", "k wo", "y")]
    inputs = {"x": ["N", 6]} | ({"flag": []} if condition == "flag" else {})
    constants = scaled(**SHAPES) | {"low": np.float32(-100), "nought": np.float32(0)}
    return build(nodes, inputs, ["y"], constants, kinds={"flag": "b"} if condition == "flag" else {})


def feeds(flags, rows=24, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, 6)).astype(np.float32), "flag": np.array(f)} for f in flags]


def samples(model, given):
    return samples_of(given, input_specs(model))


def ops(graph):
    return [n.op for n in graph.nodes if n.depth == 0]


@pytest.mark.parametrize(("flag", "weights"), [(True, ["wi", "w1", "v1", "wo"]), (False, ["wi", "w2", "v2", "wo"])])
def test_the_branch_taken_becomes_part_of_the_graph(flag, weights):
    graph = from_model(network())
    given = feeds([flag] * 3)
    (found,) = along([graph], samples(graph.model, given), 24)
    assert "If" not in ops(found)
    assert [r.weight for r in find_readers(found)] == weights
    assert "If" in ops(graph)
    for feed in given:
        want, got = (open_session(g.model.SerializeToString()).run(feed)["y"] for g in (graph, found))
        np.testing.assert_array_equal(got, want)


def test_what_samples_decide_differently_stays():
    graph = from_model(network())
    assert along([graph], samples(graph.model, feeds([True, False])), 24) == [graph]


def test_two_graphs_take_the_same_way_or_none():
    before = [node("ReduceMean", "h", "mean", keepdims=0), node("Greater", "mean low", "sure")]
    first = network("sure", before=before)
    second = onnx.ModelProto()
    second.CopyFrom(first)
    next(t for t in second.graph.initializer if t.name == "low").CopyFrom(
        onnx.numpy_helper.from_array(np.float32(100), "low")
    )
    graphs = [from_model(first), from_model(second)]
    given = samples(graphs[0].model, [{"x": f["x"]} for f in feeds([True] * 2)])
    assert along(graphs, given, 24) == graphs
    for graph, weight in zip(graphs, ("w1", "w2"), strict=True):
        (alone,) = along([graph], given, 24)
        assert weight in [r.weight for r in find_readers(alone)]


def test_branches_inside_branches():
    inner = node("If", "deep", "k2", then_branch=branch(THEN, "r"), else_branch=branch(OTHER, "u"))
    then = branch([node("ReduceMean", "h", "mean", keepdims=0), node("Less", "mean low", "deep"), inner], "k2")
    graph = from_model(network(then=then, other=branch([node("MatMul", "h w3", "z")], "z")))
    (found,) = along([graph], samples(graph.model, feeds([True] * 2)), 24)
    assert [r.weight for r in find_readers(found)] == ["wi", "w2", "v2", "wo"]


def test_what_the_other_branch_reads_too_stays():
    """It would be fitted to the one, and spoil the other."""
    both = branch([node("MatMul", "h w1", "s"), node("Tanh", "s", "t"), node("MatMul", "t v2", "u")], "u")
    graph = from_model(network(other=both))
    (found,) = along([graph], samples(graph.model, feeds([True] * 2)), 24)
    assert [r.weight for r in find_readers(found)] == ["wi", "v1", "wo"]


def test_the_branch_taken_is_fitted_and_the_other_is_left():
    graph = from_model(network())
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    pruned = rewrite(graph, plan)
    fixed, refits = compensate(pruned, graph, plan, samples(graph.model, feeds([True] * 16)), 24)
    assert [r.weight for r in refits] == ["w1", "v1", "wo"]
    before, after = ({t.name: t for t in g.model.graph.initializer} for g in (pruned, fixed))
    changed = {n for n in before if before[n].SerializeToString() != after[n].SerializeToString()}
    assert {"v1"} <= changed <= {"wi", "w1", "v1", "wo"}
    assert ops(fixed) == ops(pruned)
    (feed,) = feeds([True], 256, seed=5)
    want, plain, got = (
        open_session(g.model.SerializeToString()).run(feed)["y"] for g in (graph, pruned, fixed)
    )  # fmt: skip
    assert np.square(got - want).mean() < 0.5 * np.square(plain - want).mean()


def test_units_in_the_branch_are_chosen_by_what_they_do(tmp_path):
    """Those that hardly act go, however large their weights are."""
    model = network()
    tensors = {t.name: t for t in model.graph.initializer}
    for name, part, factor in (("w1", np.s_[:, :12], 20), ("v1", np.s_[:12], 1e-3)):
        values = onnx.numpy_helper.to_array(tensors[name]).copy()
        values[part] *= factor
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "m.onnx")
    asked = {"ratio": 0.5, "align": 1, "only": ["w1"]}
    chosen = {}
    for score_name, calib in (("l2", None), ("reconstruction", feeds([True] * 16))):
        result = prune(tmp_path / "m.onnx", tmp_path / "o.onnx", score=score_name, calib=calib, **asked)
        (chosen[score_name],) = [g.keep for g in result.plan.groups if g.name == "w1"]
    assert min(chosen["reconstruction"]) >= 12 > min(chosen["l2"])


def test_sparse_weights_in_the_branch_are_fitted(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    result = sparsify(tmp_path / "m.onnx", tmp_path / "o.onnx", pattern="0.5", calib=feeds([True] * 16))
    assert {layer.weight.name for layer in result.layers if layer.fit is not None} == {"wi", "w1", "v1", "wo"}


def test_what_cannot_be_taken_out_is_tried_once(monkeypatch):
    graph = from_model(network())
    monkeypatch.setattr("exporter.calibration.branches.take_known_branches", lambda *_: False)
    assert along([graph], samples(graph.model, feeds([True] * 2)), 24) == [graph]
