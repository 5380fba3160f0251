"""ONNX Runtime's own operators: none is overlooked, their shapes are known, and default scales survive a cut."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_state

from exporter import find_groups, load, rewrite, score
from exporter.edits import complete
from exporter.errors import SecateurError
from exporter.rules import FROZEN, RULES
from runtime import feeds
from runtime.backends import SessionOptions, open_session
from tests.onnx_builder import build, node, weights
from tests.rows import contrib, contrib_attention, contrib_quantised

ROWS = [*contrib.ROWS, *contrib_attention.ROWS, *contrib_quantised.ROWS]
DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")


def test_every_operator_of_the_runtime_has_a_rule_or_is_frozen_on_purpose():
    named = {f"{s.domain}::{s.name}" for s in runtime_state.get_all_operator_schema() if s.domain in DOMAINS}
    assert len(named) > 150
    assert not sorted(named - set(RULES) - set(FROZEN))


def test_what_is_frozen_says_why():
    mine = {op: why for op, why in FROZEN.items() if op.startswith("com.m")}
    assert len(mine) > 80
    assert not set(mine) & set(RULES)
    assert all(len(why.split()) > 3 for why in mine.values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_shapes_are_those_of_a_run(row, tmp_path):
    """Every tensor, from the definitions alone: no run was needed to measure one."""
    onnx.save(row.model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    names = [n for n in graph.producer if n not in graph.constants]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in graph.outputs)
    session = open_session(model.SerializeToString(), options=SessionOptions(optimize=False))
    feed = feeds.seeded(session.inputs, graph.binding.shapes, 0, feeds.constraints(graph.model.graph))
    found = session.run(feed)
    assert {n: graph.shape(n) for n in names} == {n: np.shape(found[n]) for n in names}
    kinds = {n: onnx.helper.tensor_dtype_to_np_dtype(graph.inferred.dtype[n]) for n in names}
    assert kinds == {n: found[n].dtype for n in names}
    assert not [n.op_type for n in graph.static.failed]


def damaged(model):
    """The model with one input or attribute of an operator of ONNX Runtime gone, or a number that makes no sense."""
    for k, original in enumerate(model.graph.node):
        if not original.domain:
            continue
        for change in [*range(len(original.input)), *original.attribute]:
            for value in (0, "x") if isinstance(change, onnx.AttributeProto) else (None,):
                wrong = onnx.ModelProto()
                wrong.CopyFrom(model)
                if value is None:
                    wrong.graph.node[k].input[change] = ""
                else:
                    attribute = next(a for a in wrong.graph.node[k].attribute if a.name == change.name)
                    attribute.CopyFrom(onnx.helper.make_attribute(change.name, value))
                yield wrong
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        del wrong.graph.node[k].attribute[:]
        del wrong.graph.node[k].input[1:]
        yield wrong


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nodes_that_make_no_sense_give_a_reason(row, tmp_path):
    """The checker knows none of these operators, so anything may stand in a file."""
    for model in damaged(row.model):
        onnx.save(model, tmp_path / "model.onnx")
        try:
            groups = find_groups(load(tmp_path / "model.onnx"))
            score(groups)
        except SecateurError:
            continue


SCALED = [
    ("Attention", "x w b", {"num_heads": 2}, {"w": (5, 24), "b": (24,), "wo": (8, 5)}),
    ("Attention", "x w b", {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 12]}, {"w": (5, 28), "b": (28,), "wo": (12, 5)}),
    ("MultiHeadAttention", "q k v", {"num_heads": 2}, {"wq": (5, 8), "wk": (5, 8), "wv": (5, 8), "wo": (8, 5)}),
    (
        "MultiHeadAttention",
        "q k v",
        {"num_heads": 2, "scale": 0.0},
        {"wq": (5, 8), "wk": (5, 8), "wv": (5, 8), "wo": (8, 5)},
    ),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "shapes"), SCALED)
def test_the_default_scale_stays_what_it_was(op, inputs, attributes, shapes, tmp_path):
    """Four dimensions per head; with half of them the default would be another."""
    nodes = [node("MatMul", f"x w{t}", t) for t in "qkv" if f"w{t}" in shapes]
    nodes += [node(f"com.microsoft::{op}", inputs, "o", **attributes), node("MatMul", "o wo", "y")]
    onnx.save(build(nodes, {"x": ["N", "S", 5]}, ["y"], weights(**shapes)), tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    groups = find_groups(graph)
    keep = [np.arange(g.width) % 2 == 0 for g in groups]
    for model in (graph, rewrite(graph, complete(groups, keep, {}))):
        fused = next(n for n in model.nodes if n.op == f"com.microsoft::{op}")
        assert math.isclose(fused.attributes["scale"], 0.5)
    assert graph.shape("o") != model.shape("o")


@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_a_model_saved_by_the_optimiser(level, tmp_path):
    """Fused operators are cut; channels in blocks for one processor are not, and the reason says what to do."""
    nodes = [
        node("Conv", "x w1 b1", "h"),
        node("Relu", "h", "a"),
        node("Conv", "a w2 b2", "g"),
        node("Sigmoid", "g", "s"),
        node("Mul", "g s", "m"),
        node("Conv", "m w3", "y"),
    ]
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,), "w3": (4, 16, 1, 1)}
    model = build(nodes, {"x": ["N", 3, 9, 9]}, ["y"], weights(**shapes))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "model.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = load(tmp_path / "model.onnx")
    blocked = [n.op for n in graph.nodes if n.op.startswith("com.microsoft.nchwc::")]
    groups = find_groups(graph)
    if level == "ORT_ENABLE_EXTENDED":
        assert not blocked
        assert [g.width for g in groups] == [16, 16]
    elif blocked:  # on processors ONNX Runtime has such kernels for
        assert not len(groups)
        assert any("before hardware-specific optimisation" in f.reason.text for f in groups.frozen)
