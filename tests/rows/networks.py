"""Whole blocks: what the field calls heads, KV groups, residual streams must fall out of the operators' rules."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row


def _fused_attention():
    """Fused QKV with split, four heads of 3, residual stream, FFN."""
    nodes = [
        node("MatMul", "x we", "e"), node("LayerNormalization", "e g1 b1", "n"),
        node("MatMul", "n wqkv", "f0"), node("Add", "f0 bqkv", "f"), node("Split", "f thirds", "q k v", axis=-1),
        *(n for t in "qkv" for n in (node("Reshape", f"{t} heads", f"{t}4"),
                                     node("Transpose", f"{t}4", f"{t}h", perm=[0, 2, 3, 1] if t == "k" else [0, 2, 1, 3]))),
        node("Mul", "qh scale", "qs"), node("MatMul", "qs kh", "s"), node("Softmax", "s", "p"), node("MatMul", "p vh", "o"),
        node("Transpose", "o", "ot", perm=[0, 2, 1, 3]), node("Reshape", "ot flat", "of"), node("MatMul", "of wo", "op"),
        node("Add", "e op", "r"), node("LayerNormalization", "r g1 b1", "m"), node("MatMul", "m w1", "h0"),
        node("Gelu", "h0", "h"), node("MatMul", "h w2", "d"), node("Add", "r d", "t"), node("MatMul", "t wc", "y"),
    ]
    constants = weights(we=(5, 10), wqkv=(10, 36), bqkv=(36,), wo=(12, 10), w1=(10, 14), w2=(14, 10), wc=(10, 3))
    constants |= {"g1": np.ones(10, np.float32), "b1": np.zeros(10, np.float32), "scale": np.float32(0.5),
                  "thirds": ints(12, 12, 12), "heads": ints(0, 0, 4, 3), "flat": ints(0, 0, 12)}
    # hidden width 10, heads 4, query-key dimensions 3, value dimensions 3, FFN 14
    return Row("attention-fused-qkv", ("Reshape",), build(nodes, {"x": ["N", "S", 5]}, ["y"], constants), (3, 3, 4, 10, 14))


def _grouped_query_attention():
    """Six query heads over three KV groups, rotary halves, SwiGLU."""
    nodes = [
        node("MatMul", "x wq", "q0"), node("MatMul", "x wk", "k0"), node("MatMul", "x wv", "v0"),
        node("Reshape", "q0 sq", "q4"), node("Reshape", "k0 sk", "k4"), node("Reshape", "v0 sk", "v4"),
        *(n for t in "qkv" for n in (node("Transpose", f"{t}4", f"{t}h", perm=[0, 2, 1, 3]),)),
        *(n for t in "qk" for n in (
            node("Slice", f"{t}h zero two three", f"{t}a"), node("Slice", f"{t}h two four three", f"{t}b"),
            node("Neg", f"{t}b", f"{t}n"), node("Concat", f"{t}n {t}a", f"{t}r", axis=-1),
            node("Mul", f"{t}h cos", f"{t}c"), node("Mul", f"{t}r sin", f"{t}s"), node("Add", f"{t}c {t}s", f"{t}e"))),
        *(n for t, source in (("k", "ke"), ("v", "vh")) for n in (
            node("Unsqueeze", f"{source} axis2", f"{t}u"), node("Expand", f"{t}u repeat", f"{t}x"),
            node("Reshape", f"{t}x merge", f"{t}m"))),
        node("Transpose", "km", "kt", perm=[0, 1, 3, 2]), node("MatMul", "qe kt", "s"), node("Softmax", "s", "p"),
        node("MatMul", "p vm", "o"), node("Transpose", "o", "ot", perm=[0, 2, 1, 3]), node("Reshape", "ot flat", "of"),
        node("MatMul", "of wo", "a"), node("MatMul", "a wg", "g0"), node("Sigmoid", "g0", "g1"), node("Mul", "g0 g1", "g"),
        node("MatMul", "a wu", "u"), node("Mul", "g u", "h"), node("MatMul", "h wd", "y"),
    ]
    constants = weights(wq=(5, 24), wk=(5, 12), wv=(5, 12), wo=(24, 7), wg=(7, 9), wu=(7, 9), wd=(9, 2), cos=(4,), sin=(4,))
    constants |= {"sq": ints(0, 0, 6, 4), "sk": ints(0, 0, 3, 4), "zero": ints(0), "two": ints(2), "four": ints(4), "three": ints(3),
                  "axis2": ints(2), "repeat": ints(1, 1, 2, 1, 1), "merge": ints(0, 6, -1, 4), "flat": ints(0, 0, 24)}
    # 3 KV groups, 2 query heads in each, 2 rotary pairs, 4 value dimensions, 7 between, 9 FFN
    return Row("attention-grouped-query", ("Expand",), build(nodes, {"x": ["N", 6, 5]}, ["y"], constants), (2, 2, 3, 4, 7, 9))


def _residual():
    """Two residual blocks with batch normalisation, a strided one with a projection."""
    nodes = [node("Conv", "x w0", "s", pads=[1, 1, 1, 1])]
    constants = weights(w0=(8, 3, 3, 3), a1=(6, 8, 3, 3), a2=(8, 6, 3, 3), c1=(12, 8, 3, 3), c2=(10, 12, 3, 3),
                        sc=(10, 8, 1, 1), fc=(10, 3))
    for name, width in (("n1", 6), ("n2", 12)):
        constants |= {f"{name}{k}": v for k, v in zip("gbm", np.random.default_rng(3).standard_normal((3, width)).astype(np.float32), strict=True)}
        constants[f"{name}v"] = np.linspace(0.5, 2, width).astype(np.float32)
    nodes += [
        node("Conv", "s a1", "h1", pads=[1, 1, 1, 1]), node("BatchNormalization", "h1 n1g n1b n1m n1v", "h2"),
        node("Relu", "h2", "h3"), node("Conv", "h3 a2", "h4", pads=[1, 1, 1, 1]), node("Add", "s h4", "r1"),
        node("Relu", "r1", "r"), node("Conv", "r c1", "k1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", "k1 n2g n2b n2m n2v", "k2"), node("Relu", "k2", "k3"),
        node("Conv", "k3 c2", "k4", pads=[1, 1, 1, 1]), node("Conv", "r sc", "k5", strides=[2, 2]),
        node("Add", "k4 k5", "t1"), node("Relu", "t1", "t"), node("GlobalAveragePool", "t", "p"), node("Flatten", "p", "f"),
        node("Gemm", "f fc", "y"),
    ]
    return Row("residual-network", ("Add",), build(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants), (6, 8, 10, 12))


def _merged_constants():
    """Equal initializers merged into one by the exporter: their uses are cut differently."""
    nodes = [node("Conv", "x w1 zero", "h"), node("Conv", "h w2 zero", "k"), node("Conv", "h w2 zero2", "l"),
             node("Conv", "k w3", "y0"), node("Conv", "l w4", "y1"), node("Add", "y0 y1", "y")]
    constants = weights(w1=(8, 3, 1, 1), w2=(8, 8, 1, 1), w3=(2, 8, 1, 1), w4=(2, 8, 1, 1))
    constants |= {"zero": np.zeros(8, np.float32), "zero2": np.zeros(8, np.float32)}
    return Row("merged-constants", ("Conv",), build(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants), (8, 8))


def _experts(add):
    """A residual mixture of two experts as tracing exporters write it: each gets the tokens the router chose for it.

    How many they are depends on the data. ``add`` writes their results back: ScatterND, or ScatterElements with indices
    expanded to the shape of one token, as torch's older exporter writes index_add.
    """
    nodes = [
        node("MatMul", "x we", "e"), node("Reshape", "e tokens", "h"), node("MatMul", "h wr", "r"), node("Softmax", "r", "p"),
        node("ArgMax", "p", "best", axis=1, keepdims=0), node("Sub", "h h", "out0"),
        node("Slice", "h zero one zero", "row"), node("Shape", "row", "row_shape"),
    ]
    for k in (0, 1):
        nodes += [
            node("Equal", f"best number{k}", f"mine{k}"), node("NonZero", f"mine{k}", f"places{k}"),
            node("Squeeze", f"places{k} zero", f"index{k}"), node("Gather", f"h index{k}", f"a{k}"),
            node("MatMul", f"a{k} up{k}", f"b{k}"), node("Relu", f"b{k}", f"c{k}"), node("MatMul", f"c{k} down{k}", f"d{k}"),
            node("Unsqueeze", f"index{k} one", f"column{k}"),
        ]
        if add == "ScatterND":
            nodes += [node(add, f"out{k} column{k} d{k}", f"out{k + 1}", reduction="add")]
        else:
            nodes += [node("Expand", f"d{k} row_shape", f"f{k}"), node("Shape", f"f{k}", f"f{k}_shape"),
                      node("Expand", f"column{k} f{k}_shape", f"grid{k}"),
                      node(add, f"out{k} grid{k} f{k}", f"out{k + 1}", axis=0, reduction="add")]
    nodes += [node("Add", "h out2", "t"), node("MatMul", "t wc", "y")]
    constants = weights(we=(5, 10), wr=(10, 2), up0=(10, 7), down0=(7, 10), up1=(10, 6), down1=(6, 10), wc=(10, 3))
    constants |= {"tokens": ints(-1, 10), "zero": ints(0), "one": ints(1), "number0": np.int64(0), "number1": np.int64(1)}
    return Row(f"experts-{add}", (add,), build(nodes, {"x": ["N", "S", 5]}, ["y"], constants), (6, 7, 10))


def _router(name, widths, frozen="", largest=1, more=(), outputs=("y",), softmax="Softmax", kinds=None):
    """Five experts, of which a router takes the best two: their numbers select weights from two tables."""
    nodes = [
        node("MatMul", "x we", "e"), node("Reshape", "e tokens", "h"), node("MatMul", "h wr", "r0"),
        node("Mul", "r0 sign", "r"), node(softmax, "r", "p"), node("TopK", "p two", "v i", largest=largest),
        node("Reshape", "i flat", "f"), node("Unsqueeze", "f last", "column"), node("Cast", "f", "numbers", to=6),
        node("GatherND", "up column", "u"), node("Gather", "down numbers", "d"),
        node("Unsqueeze", "h one", "h1"), node("Expand", "h1 pair", "h2"), node("Reshape", "h2 each", "a"),
        node("MatMul", "a u", "b"), node("Relu", "b", "c"), node("MatMul", "c d", "g"), node("Reshape", "g back", "k"),
        node("Unsqueeze", "v last", "v1"), node("Mul", "k v1", "m"), node("ReduceSum", "m one", "s", keepdims=0),
        node("Add", "h s", "t"), node("MatMul", "t wc", "y"), *more,
    ]
    constants = weights(we=(5, 10), wr=(10, 5), up=(5, 10, 7), down=(5, 7, 10), wc=(10, 3))
    constants |= {"tokens": ints(-1, 10), "two": ints(2), "flat": ints(-1), "last": ints(-1), "one": ints(1), "pair": ints(1, 2, 1),
                  "each": ints(-1, 1, 10), "back": ints(-1, 2, 10), "sign": np.float32(1 if largest else -1)}
    model = build(nodes, {"x": ["N", "S", 5]}, outputs, constants, kinds=kinds)
    return Row(f"router-{name}", ("TopK", "GatherND", "Gather", softmax), model, widths, frozen=frozen)


ROWS = [
    _fused_attention(), _grouped_query_attention(), _residual(), _merged_constants(),
    *(_experts(add) for add in ("ScatterND", "ScatterElements")),
    # one of the five experts stays for the router to take a second
    _router("experts", (4, 7, 10)),
    _router("smallest", (4, 7, 10), largest=0),
    _router("log-softmax", (4, 7, 10), softmax="LogSoftmax"),
    _router("numbers-read", (7, 10), "positions along it are read", outputs=("y", "best"),
            more=[node("Cast", "i", "best", to=1)]),
    _router("numbers-returned", (7, 10), "graph output", outputs=("y", "i"), kinds={"i": "i"}),
]
