"""Attention and rotary embeddings as single operators."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row

_X = {"x": ["N", 6, 5]}
_CACHE = {"pk": ["N", 2, 4, 3], "pv": ["N", 2, 4, 2]}


def _packed(name, shapes, widths, *attention, opset=24, covers=("Attention",), inputs=None, outputs=("y",), **more):
    """``x[N, 6, 5]`` to q, k and v by a weight each, attention over three axes, a projection."""
    options = {k: more.pop(k) for k in ("frozen", "inner", "io", "kinds") if k in more}
    kinds = options.pop("kinds", None)
    nodes = [node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k"), node("MatMul", "x wv", "v"), *attention,
             node("MatMul", "a wo", "y")]
    model = build(nodes, {**_X, **(inputs or {})}, list(outputs), {**weights(**shapes), **more}, opset=opset, kinds=kinds)
    return Row(name, covers, model, widths, **options)


def _shapes(q, k, v, o):
    return {"wq": (5, q), "wk": (5, k), "wv": (5, v), "wo": (o, 5)}


def _split(name, heads, kv, d, dv, widths, *, opset=23, mask=None, covers=("Attention",), pre=(), extra="", at=None, **more):
    """The same over four axes: heads are an axis of their own."""
    nodes = [
        *(n for t, m in (("q", heads), ("k", kv), ("v", kv))
          for n in (node("MatMul", f"x w{t}", f"{t}0"), node("Reshape", f"{t}0 s{t}", f"{t}1"),
                    node("Transpose", f"{t}1", f"{t}2", perm=[0, 2, 1, 3]))),
        *pre, node("Attention", f"q{3 if pre else 2} k{3 if pre else 2} v2{' mask' if mask is not None else extra}", "a0", **(at or {})),
        node("Transpose", "a0", "a1", perm=[0, 2, 1, 3]), node("Reshape", "a1 so", "a"), node("MatMul", "a wo", "y"),
    ]
    constants = {**weights(**_shapes(heads * d, kv * d, kv * dv, heads * dv)), "sq": ints(0, 0, heads, d), "sk": ints(0, 0, kv, d),
                 "sv": ints(0, 0, kv, dv), "so": ints(0, 0, heads * dv), **({} if mask is None else {"mask": mask}), **more}
    return Row(name, covers, build(nodes, _X, ["y"], constants, opset=opset), widths)


_CAUSAL = np.triu(np.full((6, 6), -1e4, np.float32), 1)
_PER_HEAD = np.random.default_rng(3).standard_normal((1, 4, 6, 6)).astype(np.float32)
_ANGLES = np.random.default_rng(4).uniform(0, 3, (9, 4))


def _tables(rows, width):
    angles = _ANGLES[:rows, :width]
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


def _turned(*names, **attributes):
    return [node("RotaryEmbedding", f"{n}2 cos sin places", f"{n}3", **attributes) for n in names]


_PLACES = np.tile(np.arange(6), (2, 1))

ONE_TABLE = _split("RotaryEmbedding-one-table", 4, 2, 8, 2, (2, 2, 4, 2), covers=("RotaryEmbedding",),
                   pre=[node("RotaryEmbedding", f"{t}2 cos sin", f"{t}3") for t in "qk"],
                   **{k: v[None] for k, v in _tables(6, 4).items()})
"""As torch's exporter writes it: one table for all samples, which ONNX Runtime takes for one sample only."""

ROWS = [
    _packed("Attention", _shapes(12, 12, 8, 8), (4, 3, 2), node("Attention", "q k v", "a", q_num_heads=4, kv_num_heads=4)),
    _packed("Attention-grouped", _shapes(12, 6, 4, 8), (2, 2, 3, 2),
            node("Attention", "q k v", "a", q_num_heads=4, kv_num_heads=2)),
    _packed("Attention-one-key-head", _shapes(12, 3, 2, 8), (4, 3, 2),
            node("Attention", "q k v", "a", q_num_heads=4, kv_num_heads=1)),
    _packed("Attention-causal-softcap", _shapes(12, 12, 8, 8), (4, 3, 2),
            node("Attention", "q k v", "a", q_num_heads=4, kv_num_heads=4, is_causal=1, softcap=2.0, scale=0.3), opset=23),
    _packed("Attention-mask-per-head", _shapes(12, 12, 8, 8), (4, 3, 2),
            node("Attention", "q k v mask", "a", q_num_heads=4, kv_num_heads=4), mask=_PER_HEAD),
    _packed("Attention-cache", _shapes(6, 6, 4, 4), (),
            node("Attention", "q k v - pk pv", "a nk nv", q_num_heads=2, kv_num_heads=2),
            frozen="graph input", inputs=_CACHE, outputs=("y", "nk", "nv")),
    _packed("Attention-cache-shrinks", _shapes(12, 6, 4, 8), (2, 2, 3, 2),
            node("Attention", "q k v - pk pv", "a nk nv", q_num_heads=4, kv_num_heads=2),
            io=("p*:1", "p*:3", "n*:1", "n*:3"), inputs=_CACHE, outputs=("y", "nk", "nv")),
    _packed("Attention-cache-inside", _shapes(6, 6, 4, 4), (2, 3, 2),  # the past is made of the same weights
            node("MatMul", "x0 wk", "pk0"), node("Reshape", "pk0 ck", "pk1"), node("Transpose", "pk1", "pk", perm=[0, 2, 1, 3]),
            node("MatMul", "x0 wv", "pv0"), node("Reshape", "pv0 cv", "pv1"), node("Transpose", "pv1", "pv", perm=[0, 2, 1, 3]),
            node("Attention", "q k v - pk pv", "a nk nv", q_num_heads=2, kv_num_heads=2),
            node("ReduceSum", "nk", "y2"), node("ReduceMax", "nv", "y3"),
            inputs={"x0": ["N", 4, 5]}, outputs=("y", "y2", "y3"), ck=ints(0, 0, 2, 3), cv=ints(0, 0, 2, 2)),
    _packed("Attention-scores", _shapes(6, 6, 4, 4), (2, 3, 2),
            node("Attention", "q k v", "a - - s", q_num_heads=2, kv_num_heads=2, qk_matmul_output_mode=3),
            node("ReduceMax", "s", "y2"), outputs=("y", "y2")),
    _split("Attention-4d", 4, 4, 3, 2, (4, 3, 2)),
    _split("Attention-4d-grouped", 4, 2, 3, 2, (2, 2, 3, 2), mask=_CAUSAL, opset=24),
    _split("RotaryEmbedding", 4, 2, 8, 2, (2, 2, 4, 2), covers=("RotaryEmbedding",), pre=_turned("q", "k"),
           places=_PLACES, **_tables(9, 4)),
    _split("RotaryEmbedding-interleaved", 2, 2, 8, 2, (2, 4, 2), covers=("RotaryEmbedding",),
           pre=_turned("q", "k", interleaved=1), places=_PLACES, **_tables(9, 4)),
    _split("RotaryEmbedding-part", 2, 2, 8, 2, (2, 2, 4, 2), covers=("RotaryEmbedding",),
           pre=_turned("q", "k", rotary_embedding_dim=4), places=_PLACES, **_tables(9, 2)),
    _packed("RotaryEmbedding-packed", _shapes(16, 16, 4, 4), (2, 4, 2),
            node("Shape", "x", "n", end=1), node("Concat", "n rest", "to", axis=0), node("Expand", "cos0 to", "cos"),
            node("Expand", "sin0 to", "sin"),
            node("RotaryEmbedding", "q cos sin", "q3", num_heads=2), node("RotaryEmbedding", "k cos sin", "k3", num_heads=2),
            node("Attention", "q3 k3 v", "a", q_num_heads=2, kv_num_heads=2), opset=23, covers=("RotaryEmbedding",),
            rest=ints(1, 1), **{f"{k}0": v[None] for k, v in _tables(6, 4).items()}),
]
