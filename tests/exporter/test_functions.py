"""Local functions: calls are inlined to be cut, and a call that was left alone is put back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import find_groups, load, make_plan, rewrite, save, score, verify
from tests.exporter.files import Case, branch, check, choose, reordered, write
from tests.onnx_builder import build, node, weights


def function(name, inputs, outputs, nodes, opset=21, attributes=(), defaults=(), domains=("local",)):
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_function(
        "local", name, inputs.split(), outputs.split(), nodes, imports, list(attributes), list(defaults)
    )
    made.doc_string = f"what {name} does"
    return made


def reference(op, inputs, outputs, **names):
    """A node of a function whose attributes are the caller's: ``alpha="slope"`` takes the caller's ``slope``."""
    made = node(op, inputs, outputs)
    for attribute, (outer, kind) in names.items():
        made.attribute.add(name=attribute, ref_attr_name=outer, type=kind)
    return made


FLOAT = onnx.AttributeProto.FLOAT

LINEAR = function("Linear", "x w b", "y", [node("MatMul", "x w", "h"), node("Add", "h b", "y")])
BLOCK = function(
    "Block", "x w b", "y",
    [node("local::Linear", "x w b", "h"), node("Relu", "h", "y")],
)  # fmt: skip
LEAKY = function(
    "Leaky", "x", "y", [reference("LeakyRelu", "x", "y", alpha=("slope", FLOAT))], attributes=["slope"]
)  # fmt: skip
LEAKY_BY_DEFAULT = function(
    "Leaky", "x", "y",
    [reference("LeakyRelu", "x", "y", alpha=("slope", FLOAT))], defaults=[helper.make_attribute("slope", 0.3)],
)  # fmt: skip
SCALED = function(
    "Scaled", "x", "y",
    [reference("Constant", "", "c", value_float=("by", FLOAT)), node("Mul", "x c", "y")], attributes=["by"],
)  # fmt: skip
OUTER = function(
    "Outer", "x", "y", [reference("local::Leaky", "x", "y", slope=("steep", FLOAT))], attributes=["steep"]
)  # fmt: skip
SPLIT = function("Both", "x", "a b", [node("Relu", "x", "a"), node("Neg", "a", "b")])
CHOICE = function(
    "Choice", "x", "y",
    [
        node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True))),
        choose("yes", "y", branch("t", [node("Relu", "x", "z")], "z"), branch("e", [node("Abs", "x", "z")], "z")),
    ],
)  # fmt: skip
OLD = function("Old", "x", "y", [node("Relu", "x", "y")], opset=13)
IDLE = function("Idle", "x", "y", [node("Abs", "x", "y")])

LAYERS = weights(w1=(5, 8), b1=(8,), w2=(8, 6), b2=(6,), w3=(6, 3))


def called(*nodes, functions):
    return build(nodes, {"x": ["N", 5]}, ["y"], LAYERS, functions=functions)


def between(*nodes):
    """``h`` with 8 units, some calls that give ``k``, and a layer that reads it."""
    return [node("MatMul", "x w1", "h"), *nodes, node("MatMul", "k w2", "l"), node("MatMul", "l w3", "y")]


def inside(*nodes, functions):
    """A model around calls that give ``k`` from ``h``."""
    return called(*between(*nodes), functions=functions)


STRIDED = function(
    "Strided", "x w", "y", [node("Conv", "x w", "c", strides=[2, 2], pads=[1, 1, 1, 1]), node("Relu", "c", "y")]
)


def _resize_to_a_result():
    """The height and width of a call's result, which nobody knows the name of but an inner tensor of the call."""
    nodes = [
        node("local::Strided", "x w1", "a"),
        node("MaxPool", "a", "b", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "b w2", "c"),
        node("Shape", "c", "front", start=0, end=2),
        node("Shape", "a", "back", start=2, end=4),
        node("Concat", "front back", "sizes", axis=0),
        node("Resize", "c - - sizes", "d", mode="nearest"),
        node("Concat", "a d", "e", axis=1),
        node("Conv", "e w3", "y"),
    ]
    constants = weights(w1=(6, 3, 3, 3), w2=(8, 6, 1, 1), w3=(2, 14, 1, 1))
    return build(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], constants, functions=[STRIDED])


FUNCTIONS = [
    Case(
        "called twice",
        called(
            node("local::Linear", "x w1 b1", "h"), node("local::Linear", "h w2 b2", "k"), node("MatMul", "k w3", "y"),
            functions=[LINEAR],
        ), (6, 8),
    ),
    Case(
        "nested",
        called(
            node("local::Block", "x w1 b1", "h"), node("local::Block", "h w2 b2", "k"), node("MatMul", "k w3", "y"),
            functions=[LINEAR, BLOCK],
        ), (6, 8),
    ),
    Case("attribute", inside(node("local::Leaky", "h", "k", slope=0.25), functions=[LEAKY]), (6, 8)),
    Case("attribute left to its default", inside(node("local::Leaky", "h", "k"), functions=[LEAKY_BY_DEFAULT]), (6, 8)),
    Case(
        "attribute in place of its default",
        inside(node("local::Leaky", "h", "k", slope=0.75), functions=[LEAKY_BY_DEFAULT]), (6, 8),
    ),
    Case("attribute of a constant", inside(node("local::Scaled", "h", "k", by=3.0), functions=[SCALED]), (6, 8)),
    Case("attribute handed down", inside(node("local::Outer", "h", "k", steep=0.5), functions=[LEAKY, OUTER]), (6, 8)),
    Case("two results", inside(node("local::Both", "h", "a b"), node("Mul", "a b", "k"), functions=[SPLIT]), (6, 8)),
    Case("one result of two", inside(node("local::Both", "h", "k -"), functions=[SPLIT]), (6, 8)),
    Case("the second result of two", inside(node("local::Both", "h", "- k"), functions=[SPLIT]), (6, 8)),
    Case("a size of an inner tensor", _resize_to_a_result(), (6, 8), ({"x": (1, 3, 16, 16)}, {"x": (2, 3, 24, 12)})),
    Case("a branch inside", inside(node("local::Choice", "h", "k"), functions=[CHOICE]), (6, 8)),
    Case("another operator set", inside(node("local::Old", "h", "k"), functions=[OLD]), (6,), frozen="no rule"),
    Case("never called", inside(node("Relu", "h", "k"), functions=[IDLE]), (6, 8)),
]  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda c: c.name)
def test_functions(case, tmp_path):
    check(write(case.model, tmp_path), case, tmp_path / "out.onnx")


STAY_INLINED = {
    "a branch inside",  # what was inside is no longer what the call did
    "a size of an inner tensor",  # folding reads it from outside the call, which would hide it
}


@pytest.mark.parametrize("case", [c for c in FUNCTIONS if c.name not in STAY_INLINED], ids=lambda c: c.name)
def test_untouched_calls_are_put_back(case, tmp_path):
    """Read and written again, a model with functions is the file it was."""
    path = write(case.model, tmp_path)
    save(load(path), tmp_path / "same.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "same.onnx")
    assert list(after.functions) == list(before.functions)
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]


def test_only_cut_calls_are_inlined(tmp_path):
    model = called(
        node("local::Linear", "x w1 b1", "h"), node("local::Leaky", "h", "g", slope=0.25),
        node("local::Linear", "g w2 b2", "k"), node("local::Outer", "k", "l", steep=2.0), node("MatMul", "l w3", "y"),
        functions=[LINEAR, LEAKY, OUTER, IDLE],
    )  # fmt: skip
    graph = load(write(model, tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1, only=["w1"])
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan)
    save(pruned, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    called_ops = [n.op_type for n in written.graph.node if n.domain == "local"]
    # a cut changes what a call is given, not what it does; only a Constant or a size inside would be inlined
    assert called_ops == ["Linear", "Leaky", "Linear", "Outer"]
    assert [f.name for f in written.functions] == ["Linear", "Leaky", "Outer", "Idle"]


RESHAPED = function(
    "Heads", "x", "y",
    [node("Constant", "", "to", value_ints=[0, 4, 2]), node("Reshape", "x to", "r"), node("Softmax", "r", "s", axis=1),
     node("Constant", "", "flat", value_ints=[0, 8]), node("Reshape", "s flat", "y")],
)  # fmt: skip


def test_a_call_with_a_size_inside_is_inlined_where_it_is_cut(tmp_path):
    model = inside(node("local::Heads", "h", "k"), functions=[RESHAPED, IDLE])
    case = Case("sizes", model, (2, 6))
    graph = check(write(model, tmp_path), case, tmp_path / "out.onnx")
    assert graph.calls.uncalled == {"Idle"}
    written = onnx.load(tmp_path / "out.onnx")
    assert [f.name for f in written.functions] == ["Idle"]  # no call is left; what was idle before stays
    assert "Heads" not in {n.op_type for n in written.graph.node}


def test_functions_of_an_unsorted_model(tmp_path):
    """Sorting may move other nodes between those of a call; the call must not be put back in front of its inputs."""
    nodes = between(
        node("local::Both", "h", "a b"), node("Sigmoid", "a", "c"), node("Mul", "b c", "d"), node("Add", "d a", "k")
    )
    model = called(*nodes, functions=[SPLIT])
    for seed in range(6):
        shuffled = [nodes[k] for k in np.random.default_rng(seed).permutation(len(nodes))]
        path = write(reordered(model, shuffled), tmp_path)
        save(load(path), tmp_path / "out.onnx")
        onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
