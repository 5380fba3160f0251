"""Attention as ONNX Runtime fuses it (domain com.microsoft)."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row


def _ms(op, inputs, outputs, **attributes):
    return node(f"com.microsoft::{op}", inputs, outputs, **attributes)


def _row(name, covers, nodes, widths, constants, *, inputs=None, frozen="", io=(), **options):
    """Nodes over ``x[N, S, 5]``; constants are standard normal of the given shape, or given as arrays."""
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {k: v for k, v in constants.items() if k not in arrays}
    outputs = options.pop("outputs", ["y"])
    made = build(nodes, inputs or {"x": ["N", "S", 5]}, outputs, {**weights(**shapes), **arrays}, **options)
    return Row(name, tuple(f"com.microsoft::{op}" for op in covers), made, widths, frozen, io=io)


def _apart(query=12, key=12, value=12):
    """Queries, keys and values from three matrices."""
    nodes = [node("MatMul", f"x w{t}", t) for t in "qkv"]
    return nodes, {"wq": (5, query), "wk": (5, key), "wv": (5, value)}


def _multi_head(name, widths, *, value=12, bias=True, extra="", outputs="o", more=(), constants=None, **options):
    nodes, shapes = _apart(value=value)
    attributes = options.pop("attributes", {})
    nodes += [*more, _ms("MultiHeadAttention", f"q k v {'b' if bias else '-'}{extra}", outputs, num_heads=4, **attributes), node("MatMul", "o wo", "y")]
    shapes |= {"b": (24 + value,), "wo": (value, 5), **(constants or {})}
    return _row(name, ("MultiHeadAttention",), nodes, widths, shapes, **options)


def _grouped(name, widths, size, *, extra="", packed=False, attributes=None, constants=None, **options):
    """Four query heads over two groups."""
    if packed:
        nodes, shapes = [node("MatMul", "x wq", "q")], {"wq": (5, 8 * size)}
    else:
        nodes, shapes = _apart(4 * size, 2 * size, 2 * size)
    operands = "q - -" if packed else "q k v"
    nodes += [_ms("GroupQueryAttention", f"{operands} - - lengths total{extra}", "o pk pv", num_heads=4, kv_num_heads=2, **(attributes or {})), node("MatMul", "o wo", "y")]
    shapes |= {"wo": (4 * size, 5), "lengths": np.array([5, 5], np.int32), "total": np.int32(6), **(constants or {})}
    return _row(name, ("GroupQueryAttention",), nodes, widths, shapes, inputs={"x": [2, 6, 5]}, **options)


def _angles(rows, pairs):
    angle = np.arange(rows)[:, None] / 10 ** np.linspace(0, 2, pairs)[None]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


_COS, _SIN = _angles(24, 16)

def _decoder():
    """A decoder's step: cache as input and output, lengths read off the mask, rotary embedding inside."""
    nodes = [
        *(node("MatMul", f"x w{t}", t) for t in "qkv"),
        node("Shape", "mask", "sizes"),
        node("Gather", "sizes one", "long"),
        node("Cast", "long", "total", to=6),
        node("Sub", "total i32", "last"),
        node("Shape", "x", "dims"),
        node("Slice", "dims zero end", "batch"),
        node("Expand", "last batch", "lengths"),
        _ms("GroupQueryAttention", "q k v past_k past_v lengths total cos sin", "o present_k present_v", num_heads=4, kv_num_heads=2, do_rotary=1),
        node("MatMul", "o wo", "y"),
    ]
    constants = {"wq": (5, 128), "wk": (5, 64), "wv": (5, 64), "wo": (128, 5), "cos": _COS, "sin": _SIN, "one": np.int64(1), "i32": np.int32(1), "zero": ints(0), "end": ints(1)}
    cache = {f"past_{t}": ["N", 2, "P", 32] for t in "kv"}
    return {
        "covers": ("GroupQueryAttention",),
        "nodes": nodes,
        "constants": constants,
        "inputs": {"x": ["N", 1, 5], "mask": ["N", "T"], **cache},
        "kinds": {"mask": "i"},
        "outputs": ["y", "present_k", "present_v"],
    }


ROWS = [
    _row("GroupQueryAttention-decoder", widths=(2,), frozen="graph input", **_decoder()),
    _row("GroupQueryAttention-decoder-cache-shrinks", widths=(2, 2, 2), io=("past_*:1", "past_*:3", "present_*:1", "present_*:3"), **_decoder()),
    _row(
        "Attention-contrib",
        ("Attention",),
        [node("MatMul", "x w0", "h"), _ms("Attention", "h w b", "o", num_heads=4), node("MatMul", "o wo", "y")],
        (3, 3, 4, 8),
        {"w0": (5, 8), "w": (8, 36), "b": (36,), "wo": (12, 5)},
    ),
    _row(
        "Attention-contrib-sizes",
        ("Attention",),
        [_ms("Attention", "x w b mask - bias", "o", num_heads=4, qkv_hidden_sizes=[8, 8, 20]), node("MatMul", "o wo", "y")],
        (2, 4, 5),
        {"w": (5, 36), "b": (36,), "wo": (20, 5), "mask": np.array([6, 4], np.int32), "bias": (1, 4, 6, 6)},
        inputs={"x": [2, 6, 5]},
    ),
    _row(
        "Attention-contrib-causal-with-cache",
        ("Attention",),
        [_ms("Attention", "x w b - past", "o present", num_heads=4, unidirectional=1), node("MatMul", "o wo", "y")],
        (),
        {"w": (5, 36), "b": (36,), "wo": (12, 5)},
        inputs={"x": [2, 6, 5], "past": [2, 2, 4, 3, 3]},
        outputs=["y", "present"],
        frozen="graph input",
    ),
    _row(
        "Attention-contrib-cache-shrinks",
        ("Attention",),
        [_ms("Attention", "x w b - past", "o present", num_heads=4, unidirectional=1), node("MatMul", "o wo", "y")],
        (3, 4),
        {"w": (5, 36), "b": (36,), "wo": (12, 5)},
        inputs={"x": [2, 6, 5], "past": [2, 2, 4, 3, 3]},
        outputs=["y", "present"],
        io=("past:2", "past:4", "present:2", "present:4"),
    ),
    _multi_head("MultiHeadAttention", (3, 3, 4)),
    _multi_head("MultiHeadAttention-value-size", (3, 4, 5), value=20, bias=False),
    _multi_head(
        "MultiHeadAttention-causal-biased", (3, 3, 4), extra=" - bias", constants={"bias": (2, 4, 6, 6)}, inputs={"x": [2, 6, 5]}, attributes={"unidirectional": 1, "scale": 0.0}
    ),
    _multi_head(
        "MultiHeadAttention-cache-shrinks",
        (3, 4),
        extra=" - - past_k past_v",
        outputs="o pk pv",
        inputs={"x": ["N", 6, 5], "past_k": ["N", 4, 2, 3], "past_v": ["N", 4, 2, 3]},
        bias=False,
        io=("past_*:1", "past_*:3"),
    ),
    _row(
        "MultiHeadAttention-cross",
        ("MultiHeadAttention",),  # keys and values made once, heads first
        [
            node("MatMul", "x wq", "q"),
            *(n for t in "kv" for n in (node("MatMul", f"z w{t}", f"{t}0"), node("Reshape", f"{t}0 apart", f"{t}1"), node("Transpose", f"{t}1", f"{t}", perm=[0, 2, 1, 3]))),
            _ms("MultiHeadAttention", "q k v b", "o", num_heads=4),
            node("MatMul", "o wo", "y"),
        ],
        (3, 4),
        {"wq": (5, 12), "wk": (5, 12), "wv": (5, 12), "b": (36,), "apart": ints(0, 0, 4, 3), "wo": (12, 5)},
        inputs={"x": [2, 4, 5], "z": [2, 7, 5]},
    ),
    _grouped("GroupQueryAttention", (2, 2, 3), 24),
    _grouped("GroupQueryAttention-packed", (2, 2, 3), 24, packed=True),
    _grouped("GroupQueryAttention-rotary", (2, 2, 2), 32, extra=" cos sin", attributes={"do_rotary": 1}, constants={"cos": _COS, "sin": _SIN}),
    _grouped(
        "GroupQueryAttention-rotary-neighbours",
        (2, 2, 2),
        32,
        extra=" cos sin",
        packed=True,
        attributes={"do_rotary": 1, "rotary_interleaved": 1},
        constants={"cos": _COS, "sin": _SIN},
    ),
    _grouped("GroupQueryAttention-sinks-and-bias", (2, 2, 2), 16, extra=" - - - bias sinks", constants={"bias": (1, 4, 6, 6), "sinks": (4,)}),
    _row(
        "RotaryEmbedding-contrib",
        ("RotaryEmbedding",),
        [node("MatMul", "x w", "q"), _ms("RotaryEmbedding", "q places cos sin", "r"), node("MatMul", "r wo", "y")],
        (2, 4),
        {"w": (5, 128), "cos": _COS, "sin": _SIN, "wo": (128, 5), "places": ints(0)},
        inputs={"x": [2, 6, 5]},
    ),
    _row(
        "RotaryEmbedding-contrib-heads-first",
        ("RotaryEmbedding",),
        [
            node("MatMul", "x w", "q"),
            node("Reshape", "q apart", "q4"),
            node("Transpose", "q4", "qt", perm=[0, 2, 1, 3]),
            _ms("RotaryEmbedding", "qt places cos sin", "r", interleaved=1),
            node("Transpose", "r", "rt", perm=[0, 2, 1, 3]),
            node("Reshape", "rt flat", "rf"),
            node("MatMul", "rf wo", "y"),
        ],
        (2, 4),
        {"w": (5, 128), "cos": _COS, "sin": _SIN, "wo": (128, 5), "places": ints(0), "apart": ints(0, 0, 4, 32), "flat": ints(0, 0, 128)},
        inputs={"x": [2, 6, 5]},
    ),
]
