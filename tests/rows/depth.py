"""Residual blocks: what can be dropped, by name of its sum, in networks of every shape the field knows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto

from tests.onnx_builder import build, node, weights
from tests.rows.networks import ROWS as NETWORKS


@dataclass(frozen=True)
class DepthRow:
    """A row.

    Attributes:
        name: id of the test.
        model: the graph.
        blocks: the sum each block is added by, and the number of the branch: ``r:1``.
        refused: graph inputs and outputs for which a block has to stay.
    """

    name: str
    model: ModelProto = field(repr=False)
    blocks: tuple[str, ...]
    refused: tuple[str, ...] = ()


def _ffn(x, y, n):
    """Two layers over the features."""
    return [node("MatMul", f"{x} u{n}", f"{y}.h0"), node("Relu", f"{y}.h0", f"{y}.h"), node("MatMul", f"{y}.h d{n}", y)]


def _ffn_weights(*numbers, width=6, hidden=8):
    return weights(7, **{f"{k}{n}": (width, hidden) if k == "u" else (hidden, width) for n in numbers for k in "ud"})


def _chain(post=False, scale=False, op="Add", output=()):
    """Three residual layers between two projections."""
    nodes, stream = [node("MatMul", "x w0", "e")], "e"
    constants = weights(w0=(5, 6), w1=(6, 3)) | _ffn_weights(1, 2, 3)
    constants |= {"g": np.linspace(0.5, 1.5, 6, dtype=np.float32), "b": np.linspace(-1, 1, 6, dtype=np.float32)}
    for n in (1, 2, 3):
        before = stream
        if not post:
            nodes.append(node("LayerNormalization", f"{stream} g b", f"n{n}"))
            before = f"n{n}"
        nodes += _ffn(before, f"f{n}", n)
        if scale:
            nodes.append(node("Mul", f"f{n} g", f"s{n}"))
        nodes.append(node(op, f"{stream} {'s' if scale else 'f'}{n}", f"r{n}"))
        stream = f"r{n}"
        if post:
            nodes.append(node("LayerNormalization", f"{stream} g b", f"n{n}"))
            stream = f"n{n}"
    nodes.append(node("MatMul", f"{stream} w1", "y"))
    return build(nodes, {"x": ["N", "S", 5]}, ["y", *output], constants)


def _parallel(order):
    """Two branches side by side, added to the stream in one of three orders."""
    sums = {
        "stream first": [node("Add", "e a", "t"), node("Add", "t f", "r")],
        "stream last": [node("Add", "a f", "t"), node("Add", "t e", "r")],
        "stream inside": [node("Add", "f e", "t"), node("Add", "a t", "r")],
    }
    nodes = [
        node("MatMul", "x w0", "e"), node("LayerNormalization", "e g", "n"), *_ffn("n", "a", 1), *_ffn("n", "f", 2),
        *sums[order], node("MatMul", "r w1", "y"),
    ]
    constants = weights(w0=(5, 6), w1=(6, 3)) | _ffn_weights(1, 2) | {"g": np.ones(6, np.float32)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _nested():
    """A block around a narrower network with a block of its own (a U-Net that adds)."""
    nodes = [
        node("Conv", "x c0", "e", pads=[1] * 4), node("Conv", "e c1", "d", strides=[2, 2]),
        node("Conv", "d c2", "k0", pads=[1] * 4), node("Relu", "k0", "k"), node("Add", "d k", "i"),
        node("ConvTranspose", "i c3", "u", strides=[2, 2]), node("Add", "u e", "r"), node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"), node("MatMul", "f w", "y"),
    ]
    constants = weights(c0=(6, 3, 3, 3), c1=(8, 6, 2, 2), c2=(8, 8, 3, 3), c3=(8, 6, 2, 2), w=(6, 3))
    return build(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants)


def _cached():
    """A block whose key cache is a graph input and output, and one without."""
    nodes = [
        node("MatMul", "x w0", "e"), node("MatMul", "e wk", "k"), node("Concat", "past k", "all", axis=1),
        node("Identity", "all", "present"), node("MatMul", "e wq", "q"), node("Transpose", "all", "t", perm=[0, 2, 1]),
        node("MatMul", "q t", "s"), node("Softmax", "s", "p"), node("MatMul", "p all", "o"), node("MatMul", "o wo", "a"),
        node("Add", "e a", "r1"), *_ffn("r1", "f", 1), node("Add", "r1 f", "r2"), node("MatMul", "r2 w1", "y"),
    ]
    constants = weights(w0=(5, 6), wk=(6, 4), wq=(6, 4), wo=(4, 6), w1=(6, 3)) | _ffn_weights(1)
    return build(nodes, {"x": ["N", 3, 5], "past": ["N", 7, 4]}, ["y", "present"], constants)


def _masked():
    """A mask only one block reads: without it the input would be read by nothing."""
    nodes = [
        node("MatMul", "x w0", "e"), *_ffn("e", "a", 1), node("Mul", "a mask", "m"), node("Add", "e m", "r1"),
        *_ffn("r1", "f", 2), node("Add", "r1 f", "r2"), node("MatMul", "r2 w1", "y"),
    ]
    constants = weights(w0=(5, 6), w1=(6, 3)) | _ffn_weights(1, 2)
    return build(nodes, {"x": ["N", "S", 5], "mask": ["N", "S", 1]}, ["y"], constants)


def _shared():
    """Weights shared by two blocks, a bias shared with the stream, and a table both blocks read."""
    nodes = [
        node("MatMul", "x w0", "e0"), node("Add", "e0 zero", "e"), node("Sigmoid", "t", "table"),
        *_ffn("e", "f1", 1), node("Add", "f1 zero", "b1"), node("Mul", "b1 table", "m1"), node("Add", "e m1", "r1"),
        node("MatMul", "r1 u1", "h0"), node("Relu", "h0", "h"), node("MatMul", "h d1", "f2"), node("Mul", "f2 table", "m2"),
        node("Add", "m2 r1", "r2"), node("MatMul", "r2 w1", "y"),
    ]
    constants = weights(w0=(5, 6), w1=(6, 3), t=(6,)) | _ffn_weights(1) | {"zero": np.zeros(6, np.float32)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _no_blocks():
    """Gates, concatenations, two projections, positions, relative scores: sums that are no residual blocks."""
    nodes = [
        node("MatMul", "x w0", "e"), node("MatMul", "e w1", "a"), node("MatMul", "e w2", "b"), node("Add", "a b", "c"),
        node("Sigmoid", "c", "g"), node("Mul", "c g", "m"), node("Sub", "one g", "h"), node("MatMul", "c w3", "n"),
        node("Mul", "h n", "o"), node("Add", "m o", "highway"), node("Concat", "highway c", "d", axis=-1),
        node("MatMul", "d w4", "y0"), node("Add", "y0 bias", "y"),
    ]
    constants = weights(w0=(5, 6), w1=(6, 6), w2=(6, 6), w3=(6, 6), w4=(12, 3), bias=(2, 4, 3))
    return build(nodes, {"x": [2, 4, 5]}, ["y"], constants | {"one": np.float32(1)})


def _old():
    """Operator set 8 and initializers that are inputs too; the branch becomes infinite."""
    nodes = [
        node("Conv", "x c0", "e"), node("Conv", "e c1", "h0", pads=[1] * 4), node("Relu", "h0", "h"),
        node("Conv", "h c2", "f"), node("Add", "f e", "r"), node("Conv", "r c3", "y"),
    ]
    constants = weights(c0=(6, 3, 1, 1), c1=(5, 6, 3, 3), c2=(6, 5, 1, 1), c3=(2, 6, 1, 1))
    model = build(nodes, {"x": [2, 3, 4, 4]}, ["y"], constants, opset=8, ir=3)
    model.graph.input.extend(build_inputs(constants))
    return model


def build_inputs(constants):
    """Declarations of constants as inputs."""
    from onnx import helper

    return [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in constants.items()]


_BY_NAME = {row.name: row.model for row in NETWORKS}

ROWS = [
    DepthRow("fused-attention", _BY_NAME["attention-fused-qkv"], ("r:1", "t:1")),
    DepthRow("downsampling", _BY_NAME["residual-network"], ("r1:1",)),
    DepthRow("grouped-query", _BY_NAME["attention-grouped-query"], ()),
    DepthRow("pre-norm", _chain(), ("r1:1", "r2:1", "r3:1")),
    DepthRow("post-norm", _chain(post=True), ("r1:1", "r2:1", "r3:1")),
    DepthRow("layer-scale", _chain(scale=True), ("r1:1", "r2:1", "r3:1")),
    DepthRow("sum", _chain(op="Sum"), ("r1:1", "r2:1", "r3:1")),
    DepthRow("stream-is-output", _chain(output=("r1", "r3")), ("r1:1", "r2:1", "r3:1")),
    DepthRow("inside-is-output", _chain(output=("f2.h",)), ("r1:1", "r3:1"), ("f2.h",)),
    DepthRow("parallel, stream first", _parallel("stream first"), ("t:1", "r:1")),
    DepthRow("parallel, stream last", _parallel("stream last"), ("t:0", "t:1", "r:0")),
    DepthRow("parallel, stream inside", _parallel("stream inside"), ("t:0", "r:0")),
    DepthRow("nested", _nested(), ("i:1", "r:0")),
    DepthRow("cache", _cached(), ("r2:1",), ("past",)),
    DepthRow("mask", _masked(), ("r2:1",), ("mask",)),
    DepthRow("shared", _shared(), ("r1:1", "r2:0")),
    DepthRow("gates and projections", _no_blocks(), ()),
    DepthRow("old", _old(), ("r:0",)),
]
