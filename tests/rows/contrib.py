"""Operators ONNX Runtime's optimisers write (domain com.microsoft)."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row


def _ms(op, inputs, outputs, **attributes):
    return node(f"com.microsoft::{op}", inputs, outputs, **attributes)


def _row(name, covers, nodes, widths, constants, *, inputs=None, frozen="", inner=False, **options):
    """Nodes over ``x[N, S, 5]``; constants are standard normal of the given shape, or given as arrays."""
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {k: v for k, v in constants.items() if k not in arrays}
    made = build(nodes, inputs or {"x": ["N", "S", 5]}, ["y"], {**weights(**shapes), **arrays}, **options)
    return Row(name, tuple(f"com.microsoft::{op}" for op in covers), made, widths, frozen, inner)


_HIDDEN = {"w1": (5, 8), "w2": (8, 3)}


def _between(name, covers, *nodes, constants=None, widths=(8,), **options):
    """``x[N, S, 5] -> w1 -> h[N, S, 8] -> the operator -> a -> w2 -> y``."""
    return _row(name, covers, [node("MatMul", "x w1", "h"), *nodes, node("MatMul", "a w2", "y")], widths, {**_HIDDEN, **(constants or {})}, **options)


_TABLES = {"words": (11, 8), "places": (6, 8), "kinds": (2, 8), "g": (8,), "b": (8,)}

_NORMS = [
    _between(
        "SkipLayerNormalization",
        ("SkipLayerNormalization",),
        node("MatMul", "x w3", "s"),
        _ms("SkipLayerNormalization", "h s g b c", "a", epsilon=1e-5),
        constants={"w3": (5, 8), "g": (8,), "b": (8,), "c": (8,)},
    ),
    _between(
        "SkipLayerNormalization-with-sum",
        ("SkipLayerNormalization",),
        _ms("SkipLayerNormalization", "h h g b", "n - - r"),
        node("Add", "n r", "a"),
        constants={"g": (8,), "b": (8,)},
    ),
    _between(
        "SkipLayerNormalization-broadcast", ("SkipLayerNormalization",), _ms("SkipLayerNormalization", "h s g", "a"), constants={"g": (8,), "s": (4, 8)}, inputs={"x": ["N", 4, 5]}
    ),
    _between(
        "SkipSimplifiedLayerNormalization",
        ("SkipSimplifiedLayerNormalization",),
        node("MatMul", "x w3", "s"),
        _ms("SkipSimplifiedLayerNormalization", "h s g c", "n - - r", epsilon=1e-5),
        node("Add", "n r", "a"),
        constants={"w3": (5, 8), "g": (8,), "c": (8,)},
    ),
    _row(
        "EmbedLayerNormalization",
        ("EmbedLayerNormalization",),
        [_ms("EmbedLayerNormalization", "x segments words places kinds g b mask", "n mi e", epsilon=1e-5), node("Add", "n e", "h"), node("MatMul", "h w", "y")],
        (8,),
        {"words": (11, 8), "places": (6, 8), "kinds": (2, 8), "g": (8,), "b": (8,), "w": (8, 3)},
        inputs={"x": ["N", 4], "segments": ["N", 4], "mask": ["N", 4]},
        kinds={"x": "j", "segments": "j", "mask": "j"},
        frozen="selected by data",
    ),
    *(
        _row(
            f"QEmbedLayerNormalization{name}",
            ("QEmbedLayerNormalization",),
            [_ms("QEmbedLayerNormalization", operands, "n mi", epsilon=1e-5), node("MatMul", "n w", "y")],
            (8,),
            {
                **{k: np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8) for k, shape in _TABLES.items()},
                **{f"s{k}": np.float32(0.01 + 0.01 * k) for k in range(5)},
                "z": np.uint8(120),
                "w": (8, 3),
            },
            inputs={"x": ["N", 4], **({"segments": ["N", 4]} if "segments" in operands else {})},
            kinds={"x": "j", "segments": "j"},
        )
        for name, operands in (
            ("", "x segments words places kinds g b - s0 s1 s2 s3 s4 z z z z z"),
            ("-no-segments", "x - words places - g b - s0 s1 - s3 s4 z z - z z"),
        )
    ),
    _row(
        "EmbedLayerNormalization-no-segments",
        ("EmbedLayerNormalization",),
        [_ms("EmbedLayerNormalization", "x - words places - g b", "n mi"), node("MatMul", "n w", "y")],
        (8,),
        {"words": (11, 8), "places": (6, 8), "g": (8,), "b": (8,), "w": (8, 3)},
        inputs={"x": ["N", 4]},
        kinds={"x": "j"},
    ),
]

_PRODUCTS = [
    _row(
        "FusedMatMul",
        ("FusedMatMul",),
        [_ms("FusedMatMul", "x w1", "h", transB=1, alpha=0.5), node("Relu", "h", "a"), _ms("FusedMatMul", "a w2", "y")],
        (8,),
        {"w1": (8, 5), "w2": (8, 3)},
    ),
    _row(
        "FusedMatMul-attention",
        ("FusedMatMul",),
        [
            *(
                n
                for t, dims in (("q", "d"), ("k", "d"), ("v", "e"))
                for n in (node("MatMul", f"x w{t}", f"{t}0"), node("Reshape", f"{t}0 s{dims}", f"{t}1"), node("Transpose", f"{t}1", f"{t}h", perm=[0, 2, 1, 3]))
            ),
            _ms("FusedMatMul", "qh kh", "s", transB=1, alpha=0.4),
            node("Softmax", "s", "p"),
            node("MatMul", "p vh", "o"),
            node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
            node("Reshape", "ot flat", "of"),
            node("MatMul", "of wo", "y"),
        ],
        (3, 4, 4),
        {"wq": (5, 16), "wk": (5, 16), "wv": (5, 12), "wo": (12, 5), "sd": ints(0, 0, 4, 4), "se": ints(0, 0, 4, 3), "flat": ints(0, 0, 12)},
    ),
    _row(
        "FusedMatMul-batches-behind",
        ("FusedMatMul",),  # heads come first in both operands
        [
            node("MatMul", "x w1", "h"),
            node("Reshape", "h split", "r"),
            node("Transpose", "r", "t", perm=[2, 0, 1, 3]),
            _ms("FusedMatMul", "t t", "s", transBatchA=1, transBatchB=1, transA=1),
            node("ReduceMean", "s last", "m", keepdims=0),
            node("Reshape", "m flat", "f"),
            node("MatMul", "f w2", "y"),
        ],
        (2, 4),
        {"w1": (5, 8), "w2": (8, 3), "split": ints(0, 4, 4, 2), "last": ints(-1), "flat": ints(4, -1, 8)},
        inputs={"x": [4, 4, 5]},
    ),
    _row(
        "TransposeMatMul",
        ("TransposeMatMul",),
        [_ms("TransposeMatMul", "x w1", "h", transB=1), node("Transpose", "h", "t", perm=[0, 2, 1]), _ms("TransposeMatMul", "t w2", "y", transA=1)],
        (8,),
        {"w1": (8, 5), "w2": (1, 8, 3)},
        inputs={"x": [1, 4, 5]},
    ),
    _row(
        "FusedGemm",
        ("FusedGemm",),
        [_ms("FusedGemm", "x w1 b1", "h", transB=1, activation="Relu"), _ms("FusedGemm", "h w2", "y", activation="Tanh")],
        (8,),
        {"w1": (8, 5), "b1": (8,), "w2": (8, 3)},
        inputs={"x": ["N", 5]},
    ),
    _row(
        "MoE",
        ("MoE",),
        [
            node("MatMul", "x w0", "h"),
            node("MatMul", "h r", "p0"),
            node("Reshape", "p0 flat", "p"),
            _ms("MoE", "h p w1 b1 w2 b2", "m", k=2, activation_type="silu"),
            node("Add", "h m", "a"),
            node("MatMul", "a w3", "y"),
        ],
        (8, 12),
        {"w0": (5, 8), "r": (8, 4), "w1": (4, 12, 8), "b1": (4, 12), "w2": (4, 8, 12), "b2": (4, 8), "w3": (8, 3), "flat": ints(-1, 4)},
        frozen="experts are chosen by data",
    ),
    _row(
        "MoE-swiglu",
        ("MoE",),
        [
            node("MatMul", "x w0", "h"),
            node("MatMul", "h r", "p0"),
            node("Reshape", "p0 flat", "p"),
            _ms("MoE", "h p w1 b1 w2 b2", "m", k=2, activation_type="swiglu", swiglu_fusion=1),
            node("Add", "h m", "a"),
            node("MatMul", "a w3", "y"),
        ],  # ONNX Runtime 1.31 is wrong where it reuses the memory of h for m
        (8, 12),
        {"w0": (5, 8), "r": (8, 4), "w1": (4, 24, 8), "b1": (4, 24), "w2": (4, 8, 12), "b2": (4, 8), "w3": (8, 3), "flat": ints(-1, 4)},
    ),
]

_SMALL = [
    _between("GatedAdd", ("GatedAdd",), node("MatMul", "x w3", "g"), _ms("GatedAdd", "h h g", "a"), constants={"w3": (5, 1)}),
    _between("ScaledSiLU", ("ScaledSiLU",), _ms("ScaledSiLU", "h", "a", alpha=0.7)),
    _between(
        "Trilu-contrib", ("Trilu",), _ms("Trilu", "h", "t", upper=0), node("MatMul", "h w3", "k"), node("Add", "t k", "a"), constants={"w3": (8, 8)}, widths=(), frozen="Trilu"
    ),
    _between("Trilu-contrib-other-axes", ("Trilu",), node("Transpose", "h", "t", perm=[2, 0, 1]), _ms("Trilu", "t", "u"), node("Transpose", "u", "a", perm=[1, 2, 0])),
    _between(
        "ExpandDims", ("ExpandDims",), _ms("ExpandDims", "h axis", "e"), node("Relu", "e", "f"), node("Squeeze", "f axis64", "a"), constants={"axis": np.int32(1), "axis64": ints(1)}, since="1.28"
    ),
    _between("Pad-contrib", ("Pad",), _ms("Pad", "h pads", "p"), node("MatMul", "p w3", "a"), constants={"pads": ints(0, 0, 1, 0, 0, 2), "w3": (11, 8)}, widths=(3, 8, 8)),
    _between("GatherND-contrib", ("GatherND",), _ms("GatherND", "h at", "a"), inputs={"x": [2, 4, 5]}, constants={"at": ints((0, 1), (1, 3))}),
    _row(
        "GridSample-contrib",
        ("GridSample",),
        [node("Conv", "x w1", "h"), _ms("GridSample", "h grid", "a"), node("Conv", "a w2", "y")],
        (8,),
        {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1), "grid": np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 2)).astype(np.float32)},
        inputs={"x": [2, 3, 6, 6]},
    ),
    _between(
        "BiasGelu-and-others",
        ("BiasGelu", "FastGelu", "Gelu", "QuickGelu"),
        _ms("BiasGelu", "h b", "h1"),
        _ms("FastGelu", "h1 b", "h2"),
        _ms("Gelu", "h2", "h3"),
        _ms("QuickGelu", "h3", "a"),
        constants={"b": (8,)},
    ),
]

ROWS = [*_NORMS, *_PRODUCTS, *_SMALL]
