"""Control flow: branches by data, loops, scans, and what lies inside them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row

_X = {"x": ["N", 5]}


def _graph(nodes, outputs, inputs="", constants=None, kinds=None):
    """A subgraph; ``kinds`` gives the element type of inputs and outputs that are scalars of another type than float."""

    def value(name):
        kind = (kinds or {}).get(name)
        return helper.make_tensor_value_info(name, kind or TensorProto.FLOAT, None if kind is None else [])

    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    return helper.make_graph(nodes, "inner", [value(n) for n in inputs.split()], [value(n) for n in outputs.split()], tensors)


def _if(condition, outputs, then, other):
    return node("If", condition, outputs, then_branch=then, else_branch=other)


_POSITIVE = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum nought", "positive")]
_NOUGHT = {"nought": np.float32(0)}
_COUNTED = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "on": TensorProto.BOOL}


def _body(nodes, outputs, inputs, constants=None):
    """A loop's body that goes on: (i, go, *inputs) -> (on, *outputs)."""
    return _graph([node("Identity", "go", "on"), *nodes], f"on {outputs}", f"i go {inputs}", constants, _COUNTED)


def _own_weights():
    """Each branch has a hidden layer of its own; they share what they read and what they return."""
    then = _graph([node("MatMul", "h w", "p"), node("Relu", "p", "q"), node("MatMul", "q v", "r")], "r",
                  constants=weights(1, w=(8, 6), v=(6, 4)))
    other = _graph([node("MatMul", "h w", "p"), node("Tanh", "p", "q"), node("MatMul", "q v", "r")], "r",
                   constants=weights(2, w=(8, 7), v=(7, 4)))
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), _if("positive", "k", then, other), node("MatMul", "k wo", "y")]
    return build(nodes, _X, ["y"], weights(wi=(5, 8), wo=(4, 3)) | _NOUGHT)


def _flag():
    """The caller decides; seeded inputs say yes every time."""
    then = _graph([node("MatMul", "h w", "r")], "r", constants=weights(1, w=(8, 4)))
    other = _graph([node("MatMul", "h u", "p"), node("Relu", "p", "q"), node("MatMul", "q v", "r")], "r",
                   constants=weights(2, u=(8, 6), v=(6, 4)))
    nodes = [node("MatMul", "x wi", "h"), _if("flag", "k", then, other), node("MatMul", "k wo", "y")]
    return build(nodes, {"x": ["N", 5], "flag": []}, ["y"], weights(wi=(5, 8), wo=(4, 3)), kinds={"flag": "b"})


def _captured_weights():
    """Both branches read the same weights; a constant inside is a Constant node."""
    half = node("Constant", "", "half", value=numpy_helper.from_array(np.float32(0.5)))
    then = _graph([node("MatMul", "h w", "p"), half, node("Mul", "p half", "r")], "r")
    other = _graph([node("MatMul", "h w", "p"), node("Neg", "p", "r")], "r")
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), _if("positive", "k", then, other), node("MatMul", "k wo", "y")]
    return build(nodes, _X, ["y"], weights(wi=(5, 8), w=(8, 6), wo=(6, 3)) | _NOUGHT)


def _passed_on():
    """One branch returns an outer tensor as it is, twice, the other two of its own; one result is not read."""
    then = _graph([node("Identity", "h", "a"), node("Identity", "h", "b"), node("Identity", "h", "c")], "a b c")
    other = _graph([node("Neg", "h", "a"), node("Abs", "h", "b"), node("Exp", "h", "c")], "a b c")
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), _if("positive", "k l unread", then, other),
             node("Mul", "k l", "m"), node("MatMul", "m wo", "y")]
    return build(nodes, _X, ["y"], weights(wi=(5, 8), wo=(8, 3)) | _NOUGHT)


def _different_shapes():
    """The branches return what cannot be one axis by axis: frozen there, free inside."""
    then = _graph([node("MatMul", "h w", "p"), node("Relu", "p", "q"), node("MatMul", "q v", "r")], "r",
                  constants=weights(1, w=(8, 6), v=(6, 4)))
    other = _graph([node("ReduceSum", "h last", "r", keepdims=0)], "r", constants={"last": ints(1)})
    nodes = [*_POSITIVE, node("MatMul", "x wi", "h"), _if("positive", "k", then, other),
             node("ReduceMax", "k", "m", keepdims=0), node("Mul", "m x", "y")]
    return build(nodes, {"x": [2, 5]}, ["y"], weights(wi=(5, 8)) | _NOUGHT)


def _merged_constant():
    """One zero bias, merged by the exporter: outside, and inside a branch where another layer is cut."""
    then = _graph([node("Gemm", "h w zero", "p"), node("Relu", "p", "q"), node("MatMul", "q v", "r")], "r",
                  constants=weights(1, w=(8, 8), v=(8, 4)))
    other = _graph([node("MatMul", "h u", "r")], "r", constants=weights(2, u=(8, 4)))
    nodes = [*_POSITIVE, node("Gemm", "x wi zero", "h"), _if("positive", "k", then, other), node("MatMul", "k wo", "y")]
    return build(nodes, _X, ["y"], weights(wi=(5, 8), wo=(4, 3)) | _NOUGHT | {"zero": np.zeros(8, np.float32)})


def _everything_inside():
    """What a cut must edit lies in a branch: an attribute, a target, a split, a selection, a shuffle that starts outside."""
    then = _graph([
        node("Conv", "h wd", "d", group=8), node("Split", "d parts", "a b", axis=1), node("Gather", "a odd", "c", axis=1),
        node("Concat", "c b", "e", axis=1), node("Conv", "e w1", "r")],
        "r", constants=weights(1, wd=(8, 1, 1, 1), w1=(4, 6, 1, 1)) | {"parts": ints(4, 4), "odd": ints(1, 3)})
    other = _graph([node("Transpose", "g", "gt", perm=[0, 2, 1, 3, 4]), node("Reshape", "gt back", "s"),
                    node("Conv", "s w2", "r")], "r", constants=weights(2, w2=(4, 8, 1, 1)) | {"back": ints(0, 8, 3, 3)})
    nodes = [*_POSITIVE, node("Conv", "x wi", "h"), node("Reshape", "h grid", "g"), _if("positive", "k", then, other),
             node("Conv", "k wo", "y")]
    constants = weights(wi=(8, 3, 1, 1), wo=(2, 4, 1, 1)) | _NOUGHT | {"grid": ints(0, 2, 4, 3, 3)}
    return build(nodes, {"x": ["N", 3, 3, 3]}, ["y"], constants)


def _residual_loop():
    """A residual block run three times with the same weights from outside, normalised in the body."""
    body = _body([node("LayerNormalization", "s g b", "n"), node("MatMul", "n w1", "p"), node("Relu", "p", "q"),
                  node("MatMul", "q w2", "r"), node("Add", "s r", "t")], "t", "s")
    nodes = [node("MatMul", "x wi", "h"), node("Loop", "three - h", "k", body=body), node("MatMul", "k wo", "y")]
    constants = weights(wi=(5, 8), w1=(8, 10), w2=(10, 8), wo=(8, 3), g=(8,), b=(8,)) | {"three": np.int64(3)}
    return build(nodes, _X, ["y"], constants)


def _loop_by_data():
    """Until the state is large, at most five times; the weights are the body's own."""
    body = _graph([node("MatMul", "s w", "t0"), node("Tanh", "t0", "t"), node("ReduceMax", "t", "m", keepdims=0),
                   node("Less", "m high", "on")], "on t", "i go s", weights(1, w=(8, 8)) | {"high": np.float32(0.99)}, _COUNTED)
    nodes = [node("MatMul", "x wi", "h"), node("Loop", "five yes h", "k", body=body), node("MatMul", "k wo", "y")]
    constants = weights(wi=(5, 8), wo=(8, 3)) | {"five": np.int64(5), "yes": np.array(True)}
    return build(nodes, _X, ["y"], constants)


def _scan_outputs():
    """A state and two stacked results, one of them wider; both are read by a layer outside."""
    body = _body([node("MatMul", "s w", "t0"), node("Tanh", "t0", "t"), node("MatMul", "t v", "u"), node("Identity", "t", "o")],
                 "t u o", "s", weights(1, w=(8, 8), v=(8, 6)))
    nodes = [node("MatMul", "x wi", "h"), node("Loop", "three - h", "last us os", body=body), node("MatMul", "us wu", "a"),
             node("MatMul", "os wo", "b"), node("Add", "a b", "y")]
    constants = weights(wi=(5, 8), wu=(6, 3), wo=(8, 3)) | {"three": np.int64(3)}
    return build(nodes, _X, ["y"], constants)


def _growing():
    """A state that gets longer in every iteration stays; what is beside it does not."""
    body = _body([node("Concat", "s x", "t", axis=0)], "t", "s")
    nodes = [node("Loop", "three - x", "k", body=body), node("MatMul", "k w1", "h"), node("Relu", "h", "q"),
             node("MatMul", "q w2", "y")]
    return build(nodes, {"x": [2, 5]}, ["y"], weights(w1=(5, 8), w2=(8, 3)) | {"three": np.int64(3)})


def _collected():
    """A loop that collects tensors in a sequence: sequences stay, the layer before the loop has to as well."""
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    body = _body([node("SequenceInsert", "s h", "t")], "t", "s")
    for value in (body.input[2], body.output[1]):
        value.type.CopyFrom(sequence)
    nodes = [node("MatMul", "x wi", "h"), node("SequenceEmpty", "", "none"), node("Loop", "three - none", "k", body=body),
             node("ConcatFromSequence", "k", "c", axis=0), node("MatMul", "c w1", "p"), node("Relu", "p", "q"),
             node("MatMul", "q w2", "y")]
    return build(nodes, {"x": [2, 5]}, ["y"], weights(wi=(5, 4), w1=(4, 8), w2=(8, 3)) | {"three": np.int64(3)})


def _nested():
    """A branch by data in a loop, with a loop in one branch; every state is one width."""
    kinds = {"j": TensorProto.INT64, "go2": TensorProto.BOOL, "on2": TensorProto.BOOL}
    inner = _graph([node("Identity", "go2", "on2"), node("MatMul", "z v", "z1"), node("Tanh", "z1", "z2")], "on2 z2",
                   "j go2 z", weights(3, v=(8, 8)), kinds)
    then = _graph([node("Loop", "two - s", "a", body=inner)], "a")
    other = _graph([node("MatMul", "s w1", "p"), node("Relu", "p", "q"), node("MatMul", "q w2", "a")], "a")
    body = _body([node("ReduceMean", "s", "m", keepdims=0), node("Greater", "m nought", "positive"),
                  _if("positive", "t", then, other)], "t", "s")
    nodes = [node("MatMul", "x wi", "h"), node("Loop", "three - h", "k", body=body), node("MatMul", "k wo", "y")]
    constants = weights(wi=(5, 8), w1=(8, 6), w2=(6, 8), wo=(8, 3)) | _NOUGHT | {"three": np.int64(3), "two": np.int64(2)}
    return build(nodes, _X, ["y"], constants)


def _scan_cell(**attributes):
    """A recurrent cell written out, over time; a layer before makes its inputs, one after reads all its states."""
    cell = _graph([node("MatMul", "e wx", "a"), node("MatMul", "s wh", "b"), node("Add", "a b", "c"),
                   node("Add", "c bias", "d"), node("Tanh", "d", "t"), node("Identity", "t", "o")], "t o", "s e",
                  weights(1, wx=(6, 8), wh=(8, 8), bias=(8,)))
    nodes = [node("MatMul", "x wi", "es"), node("Scan", "start es", "last all", body=cell, num_scan_inputs=1, **attributes),
             node("MatMul", "all wo", "a1"), node("ReduceMax", "last first", "top", keepdims=0), node("MatMul", "top wl", "a2"), node("Add", "a1 a2", "y")]
    constants = weights(wi=(5, 6), wo=(8, 3), wl=(8, 3)) | {"start": np.full((4, 8), 0.1, np.float32),
                                                                 "first": ints(0)}
    time_last = attributes.get("scan_input_axes") == [1]
    return build(nodes, {"x": [4, 7, 5] if time_last else [7, 4, 5]}, ["y"], constants)


def _no_branch():
    """An If that lacks a branch is left alone."""
    model = _own_weights()
    chosen = next(n for n in model.graph.node if n.op_type == "If")
    chosen.attribute.remove(next(a for a in chosen.attribute if a.name == "else_branch"))
    return model


ROWS = [
    Row("If-own-weights", ("If",), _own_weights(), (4, 6, 7, 8)),
    Row("If-flag", ("If",), _flag(), (4, 6, 8)),
    Row("If-captured-weights", ("If",), _captured_weights(), (6, 8)),
    Row("If-passed-on", ("If",), _passed_on(), (8,)),
    Row("If-different-shapes", ("If",), _different_shapes(), (6, 8), frozen="the branches return different shapes", inner=True),
    Row("If-merged-constant", ("If",), _merged_constant(), (4, 8, 8)),
    Row("If-everything-inside", ("If",), _everything_inside(), (2, 2, 4, 4)),
    Row("Loop-residual", ("Loop",), _residual_loop(), (8, 10)),
    Row("Loop-by-data", ("Loop",), _loop_by_data(), (8,)),
    Row("Loop-scan-outputs", ("Loop",), _scan_outputs(), (6, 8)),
    Row("Loop-growing", ("Loop",), _growing(), (8,), frozen="a value whose shape changes"),
    Row("Loop-collects", ("Loop",), _collected(), (8,), frozen="a sequence holds"),
    Row("Loop-nested", ("Loop", "If"), _nested(), (6, 8)),
    Row("Scan-cell", ("Scan",), _scan_cell(), (6, 8)),
    Row("Scan-cell-reverse", ("Scan",), _scan_cell(scan_input_directions=[1], scan_output_directions=[1]), (6, 8)),
    Row("Scan-cell-other-axes", ("Scan",), _scan_cell(scan_input_axes=[1], scan_output_axes=[-2]), (6, 8)),
]  # fmt: skip
