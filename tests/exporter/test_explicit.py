"""Attributes whose default depends on a size are written out at load, and survive the cut."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from exporter import find_groups, load, rewrite
from exporter.explicit import STEPS, explicit
from tests.exporter.test_rules import random_plan
from tests.onnx_builder import build, node, weights


def attention(size, heads=2, *, packed=True, **attributes):
    """q and k come in, packed [N, 6, heads x size] or as [N, heads, 6, size]; v is made inside."""
    if packed:
        shape = ["N", 6, heads * size if isinstance(size, int) else size]
        attributes |= {"q_num_heads": heads, "kv_num_heads": heads}
        nodes = [node("MatMul", "x wv", "v")]
    else:
        shape = ["N", heads, 6, size]
        nodes = [
            node("MatMul", "x wv", "v0"),
            node("Reshape", "v0 to", "v1"),
            node("Transpose", "v1", "v", perm=[0, 2, 1, 3]),
        ]
    nodes += [node("Attention", "q k v", "a", **attributes), node("ReduceSum", "a", "y")]
    constants = {**weights(wv=(5, heads * 4)), "to": np.array([0, 0, heads, 4])}
    return build(nodes, {"q": shape, "k": shape, "x": ["N", 6, 5]}, ["y"], constants, opset=23)


def scale_of(graph):
    found = next(n for n in graph.nodes if n.op == "Attention")
    return found.attributes.get("scale")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("size", "given", "want"),
    [
        pytest.param(16, {}, 0.25, id="written out"),
        pytest.param(16, {"scale": 0.7}, 0.7, id="left as it is"),
        pytest.param("D", {}, None, id="not where the size depends on the inputs"),
    ],
)
def test_scale_of_attention(size, given, want, packed, tmp_path):
    onnx.save(attention(size, packed=packed, **given), tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    assert scale_of(graph) == (want if want is None else pytest.approx(want))


def test_scale_stays_when_the_head_size_is_cut(tmp_path):
    nodes = [
        node("MatMul", "x w", "q"),
        node("Attention", "q q q", "a", q_num_heads=2, kv_num_heads=2),
        node("MatMul", "a o", "y"),
    ]
    model = build(nodes, {"x": ["N", 6, 5]}, ["y"], weights(w=(5, 32), o=(32, 3)), opset=23)
    onnx.save(model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    plan = random_plan(find_groups(graph), np.random.default_rng(0))
    pruned = rewrite(graph, plan)
    assert pruned.shape("q") != graph.shape("q")
    assert scale_of(pruned) == scale_of(graph) == pytest.approx(1 / math.sqrt(16))


def test_two_steps_for_one_operator_are_refused():
    with pytest.raises(ValueError, match="two steps for Attention"):
        explicit("Attention")(STEPS["Attention"])
