"""Recurrent layers, as exporters write them."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row

_SEQUENCE = {"x": [7, "N", 5]}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _cell(op, prefix, inputs, hidden, directions=1, *, peepholes=False):
    """W, R, B (and P) of one layer, small enough for a state that does not saturate."""
    g = _GATES[op]
    shapes = {"w": (directions, g * hidden, inputs), "r": (directions, g * hidden, hidden), "b": (directions, 2 * g * hidden)}
    if peepholes:
        shapes["p"] = (directions, 3 * hidden)
    made = weights(_seed(prefix), **{f"{prefix}{k}": v for k, v in shapes.items()})
    return {k: v * np.float32(0.5) for k, v in made.items()}


def _seed(text):
    return sum(ord(c) * (k + 1) for k, c in enumerate(text))


def _plain(op, **attributes):
    """One layer, its whole sequence read by a linear layer."""
    nodes = [node(op, "x aw ar ab", "h", hidden_size=8, **attributes), node("Squeeze", "h one", "s"), node("MatMul", "s wo", "y")]
    constants = _cell(op, "a", 5, 8) | weights(wo=(8, 3)) | {"one": ints(1)}
    return build(nodes, _SEQUENCE, ["y"], constants)


def _reset_before():
    """The reset gate acts on the state before it is multiplied: another sum over the state."""
    return _plain("GRU", linear_before_reset=0)


def _bidirectional(op):
    """Two layers of two directions, stacked the way torch exports them: transposed and flattened in between."""
    nodes = [
        node(op, "x aw ar ab", "h", hidden_size=6, direction="bidirectional"),
        node("Transpose", "h", "t", perm=[0, 2, 1, 3]), node("Reshape", "t flat", "f"),
        node(op, "f cw cr cb", "k", hidden_size=4, direction="bidirectional"),
        node("Transpose", "k", "u", perm=[0, 2, 1, 3]), node("Reshape", "u flat", "g"),
        node("MatMul", "g wo", "y"),
    ]
    constants = _cell(op, "a", 5, 6, 2) | _cell(op, "c", 12, 4, 2) | weights(wo=(8, 3)) | {"flat": ints(0, 0, -1)}
    return build(nodes, _SEQUENCE, ["y"], constants)


def _everything():
    """An LSTM in reverse with peepholes, clipped, with lengths and states from constants and the input layer cut as well."""
    nodes = [
        node("MatMul", "x wi", "e"),
        node("LSTM", "e aw ar ab lengths h0 c0 ap", "h hn cn", hidden_size=8, direction="reverse", clip=2.0),
        node("Squeeze", "h one", "s"), node("MatMul", "s wo", "y0"),
        node("Squeeze", "hn zero", "hs"), node("MatMul", "hs wh", "y1"),
        node("Squeeze", "cn zero", "cs"), node("MatMul", "cs wc", "y2"),
        node("Add", "y0 y1", "y3"), node("Add", "y3 y2", "y"),
    ]
    constants = _cell("LSTM", "a", 6, 8, peepholes=True)
    constants |= weights(wi=(5, 6), wo=(8, 3), wh=(8, 3), wc=(8, 3), h0=(1, 2, 8), c0=(1, 2, 8))
    constants |= {"lengths": np.array([7, 4], np.int32), "one": ints(1), "zero": ints(0)}
    return build(nodes, {"x": [7, 2, 5]}, ["y"], constants)


def _zeros_for_the_batch():
    """States of zeros made for the batch at hand: one by ConstantOfShape, one by Expand."""
    nodes = [
        node("Shape", "x", "xs"), node("Gather", "xs at", "n"), node("Concat", "one n eight", "shape", axis=0),
        node("ConstantOfShape", "shape", "h0"), node("Expand", "zero_f shape", "c0"),
        node("LSTM", "x aw ar ab - h0 c0", "h hn", hidden_size=8), node("Squeeze", "hn zero", "s"),
        node("MatMul", "s wo", "y"),
    ]
    constants = _cell("LSTM", "a", 5, 8) | weights(wo=(8, 3))
    constants |= {"at": ints(1), "one": ints(1), "eight": ints(8), "zero": ints(0), "zero_f": np.float32(0)}
    return build(nodes, _SEQUENCE, ["y"], constants)


def _states_of_the_interface():
    """The states go in and out of the model: they are its interface. The layer before can be cut."""
    nodes = [
        node("MatMul", "x wi", "e"), node("LSTM", "e aw ar ab - h0 c0", "- hn cn", hidden_size=8),
        node("Squeeze", "hn zero", "s"), node("MatMul", "s wo", "y"),
    ]
    constants = _cell("LSTM", "a", 6, 8) | weights(wi=(5, 6), wo=(8, 3)) | {"zero": ints(0)}
    return build(nodes, {**_SEQUENCE, "h0": [1, "N", 8], "c0": [1, "N", 8]}, ["y", "hn", "cn"], constants)


def _encoder_decoder():
    """The decoder starts from the encoder's last state: one set of hidden units."""
    nodes = [
        node("GRU", "x aw ar ab", "- hn", hidden_size=8, linear_before_reset=1),
        node("GRU", "z cw cr cb - hn", "d", hidden_size=8, linear_before_reset=1),
        node("Squeeze", "d one", "s"), node("MatMul", "s wo", "y"),
    ]
    constants = _cell("GRU", "a", 5, 8) | _cell("GRU", "c", 4, 8) | weights(wo=(8, 3)) | {"one": ints(1)}
    return build(nodes, {**_SEQUENCE, "z": [3, "N", 4]}, ["y"], constants)


def _no_hidden_size():
    """ONNX Runtime asks for the attribute; without it nothing tells what would follow a cut."""
    model = _plain("RNN")
    for attribute in [a for a in model.graph.node[0].attribute if a.name == "hidden_size"]:
        model.graph.node[0].attribute.remove(attribute)
    return model


ROWS = [
    Row("RNN", ("RNN",), _plain("RNN"), (8,)),
    Row("RNN-relu", ("RNN",), _plain("RNN", activations=["Relu"], clip=3.0), (8,)),
    Row("GRU", ("GRU",), _plain("GRU", linear_before_reset=1), (8,)),
    Row("GRU-reset-before", ("GRU",), _reset_before(), (8,)),
    Row("LSTM", ("LSTM",), _plain("LSTM"), (8,)),
    Row("LSTM-coupled-gates", ("LSTM",), _plain("LSTM", input_forget=1), (8,)),
    *(Row(f"{op}-bidirectional-stacked", (op,), _bidirectional(op), (4, 6)) for op in _GATES),
    Row("LSTM-everything", ("LSTM",), _everything(), (6, 8)),
    Row("LSTM-zero-states", ("LSTM",), _zeros_for_the_batch(), (8,)),
    Row("LSTM-states-of-the-interface", ("LSTM",), _states_of_the_interface(), (6,), frozen="graph input"),
    Row("GRU-encoder-decoder", ("GRU",), _encoder_decoder(), (8,)),
    Row("RNN-no-hidden-size", ("RNN",), _no_hidden_size(), (), frozen="the number of hidden units is not given"),
]
