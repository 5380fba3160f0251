"""Nodes that choose between nearly equal values: equal models are proved although they choose otherwise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import GoalError, verify
from exporter.deciding import deciding_tensors
from exporter.model_file import from_model
from exporter.optimised import _Excuses
from tests.exporter.files import changed, halved, off
from tests.onnx_builder import build, node, weights

QUERIES, WIDTH = 64, 512
ROUNDING, CLOSE = 1e-7, 3e-5
"""How far scores are apart: so little that rounding orders them, and so little that a proof accepts the difference."""


def network(chooser="TopK", apart=CLOSE, chaos=None):
    """Scores of many queries, that lie close together, and an output that depends on which comes first."""
    constants = weights(
        w1=(WIDTH, 8, 3, 3), b1=(WIDTH,), w2=(1, WIDTH, 1, 1), table=(1, QUERIES), w3=(QUERIES, 5), b3=(5,)
    )
    ranks = np.arange(QUERIES, dtype=np.float64).reshape(-1, 1, 1, 1)
    constants |= {"w2": (constants["w2"] * (1 + apart * ranks)).astype(np.float32), "k": np.array([QUERIES], np.int64)}
    nodes = [node("Conv", "x w1 b1", "i"), node("Relu", "i", "a"), node("Conv", "a w2", "o"), node("Flatten", "o", "s")]
    if chooser == "TopK":
        nodes += [node("TopK", "s k", "values numbers"), node("Cast", "numbers", "chosen", to=1)]
    else:
        constants["next"] = np.array([*range(1, QUERIES), 0], np.int64)
        nodes += [node("Gather", "s next", "neighbours", axis=1), node(chooser, "s neighbours", "flags"),
                  node("Cast", "flags", "chosen", to=1)]  # fmt: skip
    nodes += [node("Mul", "chosen table", "c"), node("Add", "c s", "d"), node("MatMul", "d w3", "e"),
              node("Add", "e b3", "y")]  # fmt: skip
    kinds = {}
    if chaos:
        constants["chaos"], kinds = np.array([chaos], np.float32), {"best": "i"}
        constants |= weights(1, w4=(QUERIES, WIDTH, 1, 1))
        nodes += [node("Conv", "a w4", "p"), node("Mul", "p chaos", "m"), node("Sin", "m", "waves"),
                  node("ArgMax", "waves", "best", axis=1)]  # fmt: skip
    return from_model(build(nodes, {"x": ["N", 8, 3, 3]}, ["y", *kinds], constants, kinds=kinds))


def swapped(graph, apart=CLOSE):
    """The graph with neighbouring scores in the other order, by less than a proof accepts."""
    return changed(
        graph, "w2", lambda w: (w * (1 - 2 * apart * (np.arange(len(w)) % 2).reshape(-1, 1, 1, 1))).astype("f4")
    )


@pytest.mark.parametrize("chooser", ["TopK", "Greater"])
def test_other_choices_between_nearly_equal_values_are_no_error(chooser, monkeypatch):
    graph = network(chooser)
    plan, pruned = halved(graph)
    assert not verify(pruned, graph, plan).warnings
    other = swapped(pruned)
    proof = verify(other, graph, plan)
    assert 1e-5 < proof.error <= proof.tolerance
    assert any("so close that rounding orders them" in warning for warning in proof.warnings)
    monkeypatch.setattr("exporter.verifier.deciding_tensors", lambda *_: [])
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(other, graph, plan)


@pytest.mark.parametrize(("name", "by"), [("w1", 0.3), ("w2", 0.3), ("table", 0.3), ("w3", 0.3), ("b3", 10.0)])
def test_an_error_before_or_behind_the_choice_is_found(name, by):
    graph = network()
    plan, pruned = halved(graph)
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(off(pruned, name, by), graph, plan)
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(off(swapped(pruned), name, by), graph, plan)


def test_a_node_that_chooses_otherwise_is_found():
    graph = network()
    plan, pruned = halved(graph)
    model = onnx.ModelProto()
    model.CopyFrom(pruned.model)
    chooser = next(n for n in model.graph.node if n.op_type == "TopK")
    chooser.attribute.append(onnx.helper.make_attribute("largest", 0))
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(from_model(model), graph, plan)


def test_scores_that_rounding_moves_far_are_compared_piece_by_piece():
    graph = network(apart=CLOSE / 10, chaos=1e5)
    plan, pruned = halved(graph)
    pruned = swapped(pruned, CLOSE / 10)
    proof = verify(pruned, graph, plan)
    assert proof.pieces > 1
    assert any("tensor 'waves' differs by" in warning for warning in proof.warnings)
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(off(pruned, "w2", 0.1), graph, plan)


def test_optimisation_that_leads_to_other_choices_is_no_error(monkeypatch):
    """The dense model may happen to choose as before."""
    graph = network(apart=ROUNDING)
    plan, pruned = halved(graph)
    monkeypatch.setattr(_Excuses, "dense", None)
    assert any("comes from other choices" in warning for warning in verify(pruned, graph, plan).warnings)
    monkeypatch.setattr("exporter.optimised.deciding_tensors", lambda *_: [])
    assert any("in the last place explain" in warning for warning in verify(pruned, graph, plan).warnings)
    monkeypatch.setattr("exporter.optimised.noise_of", lambda make, what, scales, *_: dict.fromkeys(scales, 0.0))
    with pytest.raises(GoalError, match="changes when ONNX Runtime optimises"):
        verify(pruned, graph, plan)


def test_what_decides_and_what_does_not():
    nodes = [
        node("Relu", "x", "a"), node("ArgMax", "a", "first", axis=1),
        node("Exp", "x", "b"), node("Shape", "b", "sizes"),
        node("Tanh", "x", "c"), node("Less", "c x", "mask"), node("Where", "mask a b", "y"),
        node("Sigmoid", "x", "d"), node("IsNaN", "d", "no"), node("Softmax", "x", "e"), node("Cast", "e", "n", to=7),
    ]  # fmt: skip
    kinds = {"first": "i", "sizes": "i", "no": "b", "n": "i"}
    graph = from_model(build(nodes, {"x": [4, 6]}, ["y", *kinds], {}, kinds=kinds))
    assert deciding_tensors(graph, graph) == ["a", "c", "e"]
    assert deciding_tensors(graph, graph, limit=4 * 6 * 4 + 1) == ["a"]
