"""Whole blocks: what the field calls heads, KV groups, residual streams must fall out of the operators' rules."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, node, weights
from tests.rows import Row


def _i(*values):
    return np.array(values, np.int64)


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
                  "thirds": _i(12, 12, 12), "heads": _i(0, 0, 4, 3), "flat": _i(0, 0, 12)}
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
    constants |= {"sq": _i(0, 0, 6, 4), "sk": _i(0, 0, 3, 4), "zero": _i(0), "two": _i(2), "four": _i(4), "three": _i(3),
                  "axis2": _i(2), "repeat": _i(1, 1, 2, 1, 1), "merge": _i(0, 6, -1, 4), "flat": _i(0, 0, 24)}
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


ROWS = [_fused_attention(), _grouped_query_attention(), _residual(), _merged_constants()]
