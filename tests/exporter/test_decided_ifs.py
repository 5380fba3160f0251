"""Branches: an If that is decided becomes part of the graph; one that only a run decides stays."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.exporter.files import Case, branch, check, choose, ints, write
from tests.onnx_builder import build, node, weights


def squeezed(axes):
    """``squeeze`` as TorchScript writes it: an If on the size of the axis."""
    return [
        node("Shape", "h", "hs"),
        node("Gather", "hs last", "size", axis=0),
        node("Equal", "size one", "is_one"),
        choose(
            "is_one", "k",
            branch("then", [node("Squeeze", f"h {axes}", "squeezed")], "squeezed", {"axes": ints(-1)}),
            branch("else", [node("Identity", "h", "same")], "same"),
        ),
    ]  # fmt: skip


def _squeeze_by_if(last):
    """A convolution over a line of ``last`` elements, then an If that drops the axis when it is one."""
    nodes = [node("Conv", "x w1", "h"), *squeezed("axes" if last == 1 else ""), node("Relu", "k", "r")]
    nodes.append(node("Gemm", "r w2", "y", transB=1) if last == 1 else node("Conv", "r w3", "y"))
    constants = weights(w1=(8, 3, 1), w2=(2, 8), w3=(2, 8, 1)) | {"last": np.int64(-1), "one": np.int64(1)}
    model = build(nodes, {"x": ["N", 3, last]}, ["y"], constants)
    shape = ["N", 2] if last == 1 else ["N", 2, last]  # nobody can infer it before the If is gone
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, shape))
    return model


def _branches_with_weights(taken):
    """Both branches use the same inner names and bring their own weights."""
    then = branch(
        "then", [node("MatMul", "h inner", "p"), node("Relu", "p", "q")], "q", weights(1, inner=(8, 6))
    )  # fmt: skip
    other = branch(
        "else", [node("MatMul", "h inner", "p"), node("Tanh", "p", "q")], "q", weights(2, inner=(8, 6))
    )  # fmt: skip
    nodes = [node("MatMul", "x w1", "h"), choose("flag", "k", then, other), node("MatMul", "k w2", "y")]
    return build(nodes, {"x": ["N", 5]}, ["y"], weights(w1=(5, 8), w2=(6, 3)) | {"flag": np.array([taken])})


def _nested_branches():
    inner = choose(
        "no", "i", branch("a", [node("Relu", "h", "z")], "z"), branch("b", [node("MatMul", "h w", "z")], "z")
    )
    then, other = branch("then", [inner, node("Tanh", "i", "j")], "j"), branch("else", [node("Abs", "h", "j")], "j")
    nodes = [node("MatMul", "x w1", "h"), choose("yes", "k", then, other), node("MatMul", "k w2", "y")]
    constants = weights(w1=(5, 8), w=(8, 6), w2=(6, 3)) | {"yes": np.array(True), "no": np.array(False)}
    return build(nodes, {"x": ["N", 5]}, ["y"], constants)


def _branch_of_the_input():
    """An If that only a run can decide: it stays, and what it reads can be cut all the same."""
    then, other = (
        branch(n, [node("MatMul", "h inner", "q")], "q", weights(k, inner=(8, 6))) for k, n in enumerate("ab")
    )
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        node("MatMul", "x w1", "h"),
        choose("positive", "k", then, other),
        node("MatMul", "x w3", "l"),
        node("MatMul", "l w4", "m"),
        node("Add", "k m", "y"),
    ]
    constants = weights(w1=(5, 8), w3=(5, 7), w4=(7, 6)) | {"zero": np.float32(0)}
    return build(nodes, {"x": [2, 5]}, ["y"], constants)


def _names_of_a_branch_that_stays():
    """What becomes part of the graph must not take the names another branch uses inside."""
    known, then, other = (
        branch(n, [node("Relu", "h", "p"), node("Abs", "p", "q")], "q") for n in ("known", "then", "other")
    )
    nodes = [
        node("MatMul", "x w1", "h"),
        choose("yes", "k", known, known),
        node("MatMul", "k w2", "l"),
        node("Relu", "l", "l1"),
        node("MatMul", "l1 w3", "m"),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        choose("positive", "n", then, other),
        node("MatMul", "n w4", "o"),
        node("Add", "m o", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 6), w3=(6, 3), w4=(8, 3)) | {"yes": np.array(True), "zero": np.float32(0)}
    return build(nodes, {"x": [2, 5]}, ["y"], constants)


BRANCHES = [
    Case("squeeze taken", _squeeze_by_if(1), (8,)),
    Case("squeeze not taken", _squeeze_by_if(4), (8,)),
    Case("then, with weights", _branches_with_weights(True), (6, 8)),
    Case("else, with weights", _branches_with_weights(False), (6, 8)),
    Case("nested", _nested_branches(), (6, 8)),
    Case("names of a branch that stays", _names_of_a_branch_that_stays(), (6, 8)),
    Case("decided by the input", _branch_of_the_input(), (7, 8)),
]


@pytest.mark.parametrize("case", BRANCHES, ids=lambda c: c.name)
def test_branches(case, tmp_path):
    graph = check(write(case.model, tmp_path), case, tmp_path / "out.onnx")
    left = [n.op for n in graph.nodes].count("If")
    assert left == (case.name in ("decided by the input", "names of a branch that stays"))
