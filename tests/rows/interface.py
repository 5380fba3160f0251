"""Graph inputs and outputs that may shrink: caches, hidden states, features."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row


def cached_attention(heads=4, groups=4):
    """One attention layer over a cache: ``past_*`` [N, groups, P, 3] go in, ``present_*`` [N, groups, P + S, 3] come out."""
    nodes = [
        node("MatMul", "x wq", "q0"), node("MatMul", "x wk", "k0"), node("MatMul", "x wv", "v0"),
        node("Reshape", "q0 sq", "q4"), node("Reshape", "k0 sk", "k4"), node("Reshape", "v0 sk", "v4"),
        *(node("Transpose", f"{t}4", f"{t}h", perm=[0, 2, 1, 3]) for t in "qkv"),
        node("Concat", "past_k kh", "present_k", axis=2), node("Concat", "past_v vh", "present_v", axis=2),
    ]
    for t in "kv":
        nodes += [node("Unsqueeze", f"present_{t} two", f"{t}u"), node("Shape", f"present_{t}", f"{t}s", start=2, end=3),
                  node("Concat", f"one one repeat {t}s one", f"{t}e", axis=0), node("Expand", f"{t}u {t}e", f"{t}x"),
                  node("Concat", f"zero heads {t}s three", f"{t}f", axis=0), node("Reshape", f"{t}x {t}f", f"{t}m")]
    nodes += [
        node("Transpose", "km", "kt", perm=[0, 1, 3, 2]), node("MatMul", "qh kt", "s"), node("Softmax", "s", "p"),
        node("MatMul", "p vm", "o"), node("Transpose", "o", "ot", perm=[0, 2, 1, 3]), node("Reshape", "ot flat", "of"),
        node("MatMul", "of wo", "y"),
    ]
    constants = weights(wq=(5, heads * 3), wk=(5, groups * 3), wv=(5, groups * 3), wo=(heads * 3, 5))
    constants |= {"sq": ints(0, 0, heads, 3), "sk": ints(0, 0, groups, 3), "two": ints(2), "one": ints(1), "zero": ints(0),
                  "heads": ints(heads), "repeat": ints(heads // groups), "three": ints(3), "flat": ints(0, 0, heads * 3)}
    past = ["N", groups, "P", 3]
    return build(nodes, {"x": ["N", "S", 5], "past_k": past, "past_v": past}, ["y", "present_k", "present_v"], constants)


def hidden_state():
    """A hidden state that is an output too."""
    return build([node("MatMul", "x w1", "h0"), node("Relu", "h0", "h"), node("MatMul", "h w2", "y")],
                 {"x": ["N", 5]}, ["y", "h"], weights(w1=(5, 8), w2=(8, 3)))


def language_model(*more, outputs=("y",)):
    """A table of 12 tokens, tied to the head; the same ids select from a table of 12 biases."""
    nodes = [
        node("Cast", "ids", "whole", to=7), node("Gather", "words whole", "e0"), node("Gather", "biases ids", "b"),
        node("Add", "e0 b", "e"), node("MatMul", "e w1", "h0"), node("Relu", "h0", "h"), node("MatMul", "h w2", "t"),
        node("Transpose", "words", "head", perm=[1, 0]), node("MatMul", "t head", "y"), *more,
    ]
    constants = weights(words=(12, 8), biases=(12, 1), w1=(8, 6), w2=(6, 8)) | {"pad": np.int32(0)}
    return build(nodes, {"ids": ["N", "S"]}, outputs, constants, kinds={"ids": "j"})


ROWS = [
    Row("interface-cache-frozen", ("Concat",), cached_attention(), (), frozen="graph input"),
    Row("interface-cache-heads", ("Concat",), cached_attention(), (4,), io=("past_*:1", "present_*:1")),
    Row("interface-cache-heads-and-dims", ("Concat",), cached_attention(), (3, 3, 4),
        io=("past_*:1", "present_*:1", "past_*:-1", "present_*:-1")),
    Row("interface-cache-groups", ("Expand",), cached_attention(6, 3), (2, 3), io=("past_*:1", "present_*:1")),
    Row("interface-hidden-state-output", ("MatMul",), hidden_state(), (8,), io=("h:1",)),
    Row("interface-input-features", ("MatMul",), hidden_state(), (5,), io=("x:1",)),
    Row("interface-ids", ("Gather",), language_model(), (12, 6, 8), inner=True, io=("ids:ids", "y:2")),
    Row("interface-ids-tied-to-the-output", ("Gather",), language_model(), (6, 8), frozen="graph output", io=("ids:ids",)),
    Row("interface-ids-compared", ("Gather",),
        language_model(node("Equal", "ids pad", "no0"), node("Cast", "no0", "no", to=1), outputs=("y", "no")), (6, 8),
        frozen="positions along it are read", io=("ids:ids", "y:2")),
    Row("interface-everything", ("MatMul",), hidden_state(), (3, 5, 8), io=("*:1",)),
]
