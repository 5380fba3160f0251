"""Shape arithmetic: the sizes an exporter computes at run time are known where they can be, and follow a cut."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from exporter import find_groups, load, make_plan, rewrite, score, verify
from tests.exporter.files import Case, assert_same_function, branch, check, choose, ints, run, write
from tests.onnx_builder import build, node, weights


def size_of(tensor, axis, name):
    """The legacy exporter's three nodes that read the size of one axis."""
    return [
        node("Shape", tensor, f"{name}_shape"),
        node("Gather", f"{name}_shape i{axis}", f"{name}_size", axis=0),
        node("Unsqueeze", f"{name}_size zero", name),
    ]


TWO_SIZES = ({"x": (1, 3, 5)}, {"x": (3, 7, 5)})
INDICES = {f"i{k}": np.int64(k) for k in range(4)} | {"zero": ints(0)}


def heads(target=(), back=(), constants=()):
    """``x[N, S, 5]``, 24 columns apart into 4 x 6 by a target named ``to``, together by one named ``flat``."""
    nodes = [
        node("MatMul", "x w1", "h"),
        *target,
        node("Reshape", "h to", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
        node("Softmax", "t", "p", axis=2),
        node("Transpose", "p", "u", perm=[0, 2, 1, 3]),
        *back,
        node("Reshape", "u flat", "f"),
        node("MatMul", "f w2", "y"),
    ]
    present = {"to": ints(0, 0, 4, 6), "flat": ints(0, 0, 24)} | INDICES | dict(constants)
    made = {name for n in (*target, *back) for name in n.output}
    present = {k: v for k, v in present.items() if k not in made}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], weights(w1=(5, 24), w2=(24, 3)) | present)


def _expanded_token():
    """A class token repeated over the batch, by the legacy exporter's ``expand(b, -1, -1)``."""
    nodes = [
        node("MatMul", "x w0", "e"),
        *size_of("x", 0, "b"),
        node("Concat", "b minus minus", "asked", axis=0),
        node("Shape", "asked", "rank"),
        node("ConstantOfShape", "rank", "ones", value=numpy_helper.from_array(ints(1))),
        node("Mul", "ones minus", "negative"),
        node("Equal", "asked negative", "same"),
        node("Where", "same ones asked", "to"),
        node("Expand", "token to", "tokens"),
        node("Concat", "tokens e", "c", axis=1),
        node("Relu", "c", "r"),
        node("MatMul", "r w1", "y"),
    ]
    constants = weights(w0=(5, 8), w1=(8, 3), token=(1, 1, 8)) | INDICES | {"minus": ints(-1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _scale_from_a_shape():
    """Attention whose scale is the square root of a shape: it must stay what it was when head dimensions go."""
    target = [
        node("Shape", "h", "hs"),
        node("Gather", "hs i2", "width"),
        node("Cast", "width", "wide", to=1),
        node("Div", "wide four", "dim"),
        node("Sqrt", "dim", "root"),
        node("Div", "h root", "q"),
        node("Cast", "dim", "inner", to=7),
        node("Unsqueeze", "inner zero", "last"),
        node("Concat", "lead heads last", "to", axis=0),
    ]
    nodes = [
        node("MatMul", "x w1", "h"),
        *target,
        node("Reshape", "q to", "r"),
        node("Softmax", "r", "p", axis=1),
        node("Reshape", "p flat", "f"),
        node("MatMul", "f w2", "y"),
    ]
    constants = weights(w1=(5, 24), w2=(24, 3)) | INDICES
    constants |= {"four": np.float32(4), "lead": ints(0, 0), "heads": ints(4), "flat": ints(0, 0, 24)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _sizes_of_branches(behind):
    """A token for each row of what both branches flatten, and the graph behind them: one symbol with many origins."""

    def rows(tensor, name):
        return [
            node("Reshape", f"{tensor} flat", f"{name}_g"),
            node("Shape", f"{name}_g", f"{name}_s"),
            node("Expand", f"token {name}_s", f"{name}_e"),
            node("Add", f"{name}_g {name}_e", name),
        ]

    then = branch("then", [*rows("h", "p"), node("Relu", "p", "p1")], "p1")
    other = branch("other", [*rows("h", "q"), node("Tanh", "q", "q1")], "q1")
    nodes = [
        node("MatMul", "x w0", "h"),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum nought", "positive"),
        choose("positive", "k", then, other),
        *(rows("h", "m") if behind else []),
        node("Add", "k m" if behind else "k bias", "r"),
        node("MatMul", "r w1", "y"),
    ]
    constants = weights(w0=(5, 8), w1=(8, 3), token=(1, 8), bias=(8,))
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants | {"flat": ints(-1, 8), "nought": np.float32(0)})


def _resize_to_another():
    """A U-Net's upsampling: batch and channels of one tensor, height and width of another."""
    nodes = [
        node("Conv", "x w1", "a", pads=[1, 1, 1, 1]),
        node("MaxPool", "a", "b", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "b w2", "c"),
        node("Shape", "c", "cs"),
        node("Slice", "cs zero two", "front"),
        node("Shape", "a", "as"),
        node("Slice", "as two four", "back"),
        node("Concat", "front back", "sizes", axis=0),
        node("Resize", "c - - sizes", "d", mode="nearest"),
        node("Concat", "a d", "e", axis=1),
        node("Conv", "e w3", "y"),
    ]
    constants = weights(w1=(6, 3, 3, 3), w2=(8, 6, 1, 1), w3=(2, 14, 1, 1)) | INDICES
    constants |= {"two": ints(2), "four": ints(4)}
    return build(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], constants)


def _chunk():
    """``chunk(2, dim=1)`` as the legacy exporter writes it: half of the size, then two slices."""
    nodes = [
        node("Conv", "x w1", "h"),
        node("Shape", "h", "hs"),
        node("Gather", "hs i1", "whole", axis=0),
        node("Unsqueeze", "whole zero", "width"),
        node("Add", "width one", "more"),
        node("Div", "more two", "half"),
        node("Mul", "half one", "stop"),
        node("Slice", "h zero stop one", "a"),
        node("Mul", "half two", "end"),
        node("Slice", "h stop end one", "b"),
        node("Sigmoid", "b", "g"),
        node("Mul", "a g", "m"),
        node("Conv", "m w2", "y"),
    ]
    constants = weights(w1=(16, 3, 1, 1), w2=(2, 8, 1, 1)) | INDICES | {"one": ints(1), "two": ints(2)}
    return build(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants)


def _flattened_batch():
    """Batch and sequence joined by a product of their sizes, and taken apart again."""
    nodes = [
        *size_of("x", 0, "b"),
        *size_of("x", 1, "s"),
        node("Mul", "b s", "rows"),
        node("Concat", "rows minus", "joined", axis=0),
        node("Reshape", "x joined", "j"),
        node("MatMul", "j w1", "h"),
        node("Relu", "h", "g"),
        node("Concat", "b s minus", "apart", axis=0),
        node("Reshape", "g apart", "k"),
        node("MatMul", "k w2", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3)) | INDICES | {"minus": ints(-1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _positions():
    """A table of positions, cut to the length of the input, and one looked up by a range."""
    nodes = [
        node("MatMul", "x w0", "e"),
        *size_of("x", 1, "s"),
        node("Slice", "table zero s one", "cut"),
        node("Add", "e cut", "a"),
        node("Range", "i0 s_size i1", "r"),
        node("Gather", "other r", "o"),
        node("Add", "a o", "c"),
        node("Relu", "c", "d"),
        node("MatMul", "d w1", "y"),
    ]
    constants = weights(w0=(5, 8), table=(1, 32, 8), other=(32, 8), w1=(8, 3)) | INDICES | {"one": ints(1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _zeros_like():
    """A zero state made for the batch, as recurrent cells start with."""
    nodes = [
        *size_of("x", 0, "b"),
        node("Concat", "b eight", "to", axis=0),
        node("ConstantOfShape", "to", "state"),
        node("MatMul", "x w1", "h"),
        node("Add", "h state", "g"),
        node("Tanh", "g", "k"),
        node("MatMul", "k w2", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3)) | INDICES | {"eight": ints(8)}
    return build(nodes, {"x": ["N", 5]}, ["y"], constants)


def _tiled():
    """A row of weights repeated as often as the input is long."""
    nodes = [
        *size_of("x", 1, "s"),
        node("Concat", "one s one", "times", axis=0),
        node("Tile", "row times", "rows"),
        node("MatMul", "x w1", "h"),
        node("Mul", "h rows", "g"),
        node("MatMul", "g w2", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3), row=(1, 1, 8)) | INDICES | {"one": ints(1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _repeated_row():
    """One row per window, by the legacy exporter's ``repeat_interleave``: how often is a division of two sizes."""
    nodes = [
        node("Reshape", "x windows", "v"),
        node("MatMul", "v w1", "h"),
        *size_of("h", 0, "all"),
        *size_of("x", 0, "b"),
        node("Div", "all_size b_size", "times"),
        node("Reshape", "times minus", "t"),
        node("Concat", "one t", "off_on", axis=0),
        node("OneHot", "one four off_on", "row"),
        node("Reshape", "row minus", "repeats"),
        node("ReduceMean", "x one", "m", keepdims=0),
        node("MatMul", "m w0", "q"),
        node("Unsqueeze", "q one_two", "q1"),
        node("Tile", "q1 repeats", "q2"),
        node("Reshape", "q2 rows", "q3"),
        node("Mul", "h q3", "g"),
        node("MatMul", "g w2", "y"),
    ]
    constants = (
        weights(w0=(5, 8), w1=(5, 8), w2=(8, 3)) | INDICES | {"one": ints(1), "minus": ints(-1), "four": np.int64(4)}
    )
    constants |= {"windows": ints(-1, 2, 5), "rows": ints(-1, 1, 8), "one_two": ints(1, 2)}
    return build(nodes, {"x": ["N", 6, 5]}, ["y"], constants)


def _heads_in_the_batch():
    """Attention with its heads joined to the batch, which a product of a size and the number of heads says."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Reshape", "h to", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
        *size_of("x", 0, "b"),
        *size_of("x", 1, "s"),
        node("Mul", "b four", "bn"),
        node("Concat", "bn s minus", "joined", axis=0),
        node("Reshape", "t joined", "q"),
        node("Transpose", "q", "k", perm=[0, 2, 1]),
        node("MatMul", "q k", "scores"),
        node("Softmax", "scores", "p", axis=2),
        node("MatMul", "p q", "a"),
        node("Concat", "b four s minus", "apart", axis=0),
        node("Reshape", "a apart", "u"),
        node("Transpose", "u", "o", perm=[0, 2, 1, 3]),
        node("Concat", "b s minus", "flat", axis=0),
        node("Reshape", "o flat", "f"),
        node("MatMul", "f w2", "y"),
    ]
    constants = weights(w1=(5, 24), w2=(24, 3)) | INDICES | {"to": ints(0, 0, 4, 6), "four": ints(4), "minus": ints(-1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _divided_out():
    """Heads of a state-space model, padded and cut to a length that nothing tells; the channels are divided out."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Reshape", "h to", "r"),
        *size_of("x", 0, "b"),
        *size_of("x", 1, "s"),
        node("Pad", "r pads", "padded"),
        node("Slice", "padded zero s one", "cut"),
        node("Relu", "cut", "u"),
        node("Size", "u", "all"),
        node("Mul", "b_size s_size", "bs"),
        node("Div", "all bs", "channels"),
        node("Unsqueeze", "channels zero", "c"),
        node("Concat", "b s c", "flat", axis=0),
        node("Reshape", "u flat", "f"),
        node("MatMul", "f w2", "y"),
    ]
    constants = weights(w1=(5, 24), w2=(24, 3)) | INDICES | {"to": ints(0, 0, 4, 6), "one": ints(1)}
    constants |= {"pads": ints(0, 0, 0, 0, 0, 3, 0, 0)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _causal():
    """A causal convolution, padded and cut to the length of its input, then put together by its channels."""
    nodes = [
        node("Conv", "x w1", "h", pads=[2, 2]),
        *size_of("x", 2, "s"),
        node("Slice", "h zero s two", "c"),
        *size_of("c", 1, "n"),
        node("Concat", "same n minus", "to", axis=0),
        node("Reshape", "c to", "r"),
        node("Relu", "r", "g"),
        node("Conv", "g w2", "y"),
    ]
    constants = weights(w1=(8, 3, 3), w2=(2, 8, 1)) | INDICES | {"two": ints(2), "same": ints(0), "minus": ints(-1)}
    return build(nodes, {"x": ["N", 3, "S"]}, ["y"], constants)


def _both_ends(*nodes):
    return [*size_of("x", 0, "b"), *size_of("h", 1, "s"), *nodes]


def _apart(*nodes):
    return [*size_of("u", 0, "b2"), *size_of("u", 1, "s2"), *nodes]


def _allowing_zero(model):
    """The same with ``allowzero`` at the reshape into heads."""
    apart = next(n for n in model.graph.node if n.output[0] == "r")
    apart.attribute.append(helper.make_attribute("allowzero", 1))
    return model


LENGTHS = {"four": ints(4), "six": ints(6), "all": ints(24), "minus": ints(-1), "4i": np.int64(4), "fours": ints(4, 6)}

SHAPES = {
    "constant zeros": heads(),
    "zero and minus one": heads(constants={"to": ints(0, -1, 4, 6), "flat": ints(0, 0, -1)}),
    "the cut axis is minus one": heads(constants={"to": ints(0, 0, 4, -1), "flat": ints(0, 0, -1)}),
    "heads are minus one": heads(constants={"to": ints(0, 0, -1, 6)}),
    "legacy chain": heads(
        _both_ends(node("Concat", "b s four six", "to", axis=0)),
        _apart(node("Concat", "b2 s2 all", "flat", axis=0)), LENGTHS,
    ),
    "legacy chain with minus one": heads(
        _both_ends(node("Concat", "b s four minus", "to", axis=0)),
        _apart(node("Concat", "b2 minus all", "flat", axis=0)), LENGTHS,
    ),
    "legacy chain, batch minus one": heads(
        _both_ends(node("Concat", "minus s four six", "to", axis=0)),
        _apart(node("Concat", "b2 s2 minus", "flat", axis=0)), LENGTHS,
    ),
    "head dimension from a division": heads(
        _both_ends(
            node("Gather", "s_shape i2", "w", axis=0), node("Div", "w 4i", "d0"), node("Unsqueeze", "d0 zero", "d"),
            node("Concat", "b s four d", "to", axis=0),
        ), (), LENGTHS,
    ),
    "width from a product": heads(
        (),
        [
            *_apart(), *size_of("u", 2, "n2"), *size_of("u", 3, "d2"),
            node("Mul", "n2 d2", "nd"), node("Concat", "b2 s2 nd", "flat", axis=0),
        ], LENGTHS,
    ),
    "shape with start and end": heads(
        [node("Shape", "x", "bs", start=0, end=2), node("Concat", "bs fours", "to", axis=0)], (), LENGTHS
    ),
    "through int32": heads(
        [
            node("Shape", "x", "xs"), node("Cast", "xs", "xi", to=6), node("Slice", "xi z32 two32", "bs32"),
            node("Concat", "bs32 fours32", "to32", axis=0), node("Cast", "to32", "to", to=7),
        ], (), {f"{k}32": np.array(v, np.int32) for k, v in (("z", [0]), ("two", [2]), ("fours", [4, 6]))},
    ),
    "allowzero": _allowing_zero(heads(
        [*size_of("x", 0, "b"), node("Concat", "b minus four six", "to", axis=0)], (), LENGTHS
    )),
}  # fmt: skip


def _element_of_a_sequence():
    """``x[4, 5]`` cut into rows without their axis, one of them put upright by a target computed from its shape."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("MatMul", "h w2", "k"),
        node("SplitToSequence", "k size", "rows", axis=0, keepdims=0),
        node("SequenceAt", "rows size", "row"),  # (3,) in ONNX Runtime, although onnx infers (1, 3)
        node("Shape", "row", "length"),
        node("Concat", "length one", "upright", axis=0),
        node("Reshape", "row upright", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3)) | {"size": np.int64(1), "one": ints(1)}
    return build(nodes, {"x": [4, 5]}, ["y"], constants)


SHAPE_CASES = [
    *(Case(name, model, (4, 6), TWO_SIZES) for name, model in SHAPES.items()),
    Case("scale from a shape", _scale_from_a_shape(), (4, 6), TWO_SIZES),
    Case("expanded token", _expanded_token(), (8,), TWO_SIZES),
    Case("flattened batch", _flattened_batch(), (8,), TWO_SIZES),
    Case("positions", _positions(), (8,), TWO_SIZES),
    Case("zero state", _zeros_like(), (8,), ({"x": (1, 5)}, {"x": (4, 5)})),
    Case("tiled row", _tiled(), (8,), TWO_SIZES),
    Case("repeated row", _repeated_row(), (8,), ({"x": (1, 6, 5)}, {"x": (3, 6, 5)})),
    Case("causal convolution", _causal(), (8,), ({"x": (1, 3, 5)}, {"x": (3, 3, 9)})),
    Case("divided out", _divided_out(), (4, 6), TWO_SIZES),
    Case("heads in the batch", _heads_in_the_batch(), (4, 6), TWO_SIZES),
    Case("resize to another's size", _resize_to_another(), (6, 8), ({"x": (1, 3, 8, 8)}, {"x": (2, 3, 12, 6)})),
    Case("chunk", _chunk(), (8,)),
    Case("sizes of branches", _sizes_of_branches(behind=False), (8,), TWO_SIZES),
    Case("sizes of branches and behind", _sizes_of_branches(behind=True), (8,), TWO_SIZES),
]


@pytest.mark.parametrize("case", SHAPE_CASES, ids=lambda c: c.name)
def test_shape_arithmetic(case, tmp_path):
    check(write(case.model, tmp_path), case, tmp_path / "out.onnx")


def test_a_scale_stays_the_number_it_was(tmp_path):
    """sqrt(6), however many of the 6 dimensions are left."""
    graph = load(write(_scale_from_a_shape(), tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1, granularity=["head_dims", "neurons", "hidden"])
    pruned = rewrite(graph, plan)
    for found in (graph, pruned):
        division = next(n for n in found.nodes if n.op == "Div")
        assert found.array(division.inputs[1]) == pytest.approx(np.sqrt(6))
    verify(pruned, graph, plan)


def test_a_shape_that_onnx_gets_wrong(tmp_path):
    """The model still does what it did, and is pruned."""
    model = _element_of_a_sequence()
    graph = load(write(model, tmp_path))
    feed = {"x": np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)}
    assert run(model.SerializeToString(), feed)["y"].shape == (3, 1)
    assert_same_function(model.SerializeToString(), graph.model.SerializeToString(), feed)
    groups = find_groups(graph)
    assert [g.width for g in groups] == [8]
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    verify(rewrite(graph, plan), graph, plan)


def test_folded_arithmetic_is_gone(tmp_path):
    """What is left of the shape chains is at most one Shape for every size that a run has to tell."""
    for case in SHAPE_CASES:
        graph = load(write(case.model, tmp_path))
        left = [n.op for n in graph.nodes]
        assert left.count("Shape") <= 3, case.name
        assert not {"Where", "Equal", "Sqrt"} & set(left) or case.name == "expanded token", case.name
