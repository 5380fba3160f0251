"""Quantized operators of ONNX Runtime (domain com.microsoft)."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, node, weights
from tests.rows import Row

_RNG = np.random.default_rng(5)


def _ms(op, inputs, outputs, **attributes):
    return node(f"com.microsoft::{op}", inputs, outputs, **attributes)


def _codes(*shape, dtype=np.int8, low=-99, high=99):
    return _RNG.integers(low, high, shape).astype(dtype)


def _scales(size, around=0.01):
    return np.linspace(around, 3 * around, size).astype(np.float32)


_SCALARS = {"s": np.float32(0.05), "z": np.uint8(120), "t": np.float32(0.07), "u": np.uint8(110), "sw": np.float32(0.01), "zw": np.int8(0), "s2": np.float32(0.1)}


def _row(name, covers, nodes, widths, constants, *, inputs=None, frozen="", inner=False, **options):
    """Nodes over ``x[N, S, 5]``; constants are standard normal of the given shape, or given as arrays."""
    constants = {**_SCALARS, **constants}
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {k: v for k, v in constants.items() if k not in arrays}
    made = build(nodes, inputs or {"x": ["N", "S", 5]}, ["y"], {**weights(**shapes), **arrays}, **options)
    return Row(name, tuple(f"com.microsoft::{op}" for op in covers), made, widths, frozen, inner)


def _image(name, covers, nodes, widths=(8,), *, frozen="", **constants):
    """``x[N, 3, 6, 6] -> w1 -> h[N, 8, 6, 6] -> codes q``, the nodes, ``a -> numbers -> w2 -> y``."""
    return _row(
        name,
        covers,
        [node("Conv", "x w1", "h"), node("QuantizeLinear", "h s z", "q"), *nodes, node("DequantizeLinear", "a t u", "f"), node("Conv", "f w2", "y")],
        widths,
        {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1), **constants},
        inputs={"x": ["N", 3, 6, 6]},
        frozen=frozen,
    )


def _linear(name, covers, nodes, widths=(8,), *, frozen="", inputs=None, **constants):
    """``x[N, S, 5] -> w1 -> h[N, S, 8]``, the nodes, ``a -> w2 -> y``."""
    return _row(name, covers, [node("MatMul", "x w1", "h"), *nodes, node("MatMul", "a w2", "y")], widths, {"w1": (5, 8), "w2": (8, 3), **constants}, frozen=frozen, inputs=inputs)


def _turned(name, covers, nodes, widths=(8,), *, size=6, **constants):
    """The same as ``_image`` with channels last between."""
    return _row(
        name,
        covers,
        [
            node("Conv", "x w1", "h"),
            node("QuantizeLinear", "h s z", "q0"),
            node("Transpose", "q0", "q", perm=[0, 2, 3, 1]),
            *nodes,
            node("Transpose", "a", "a1", perm=[0, 3, 1, 2]),
            node("DequantizeLinear", "a1 t u", "f"),
            node("Conv", "f w2", "y"),
        ],
        widths,
        {"w1": (8, 3, 1, 1), "w2": (2, constants.pop("last", 8), 1, 1), **constants},
        inputs={"x": ["N", 3, size, size]},
    )


def _nbits(name, widths, k, n, *, block=16, bits=4, points=None, flat=False, extra="", constants=None, **options):
    """``x[N, S, 5] -> w1 -> h[N, S, k]``, a quantized matrix [n, k], ``-> w2 -> y``."""
    blocks = -(-k // block)
    given = {"c": _codes(n, blocks, block * bits // 8, dtype=np.uint8, low=0, high=256), "sc": _RNG.uniform(0.01, 0.03, (n, blocks)).astype(np.float32)}
    if points is not None:
        given["p"] = points(n, blocks)
    if flat:
        given = {key: v.reshape(-1) if key != "c" else v for key, v in given.items()}
    nodes = [
        node("MatMul", "x w1", "h"),
        _ms("MatMulNBits", f"h c sc {'p' if points is not None else '-'}{extra}", "a", K=k, N=n, bits=bits, block_size=block),
        node("MatMul", "a w2", "y"),
    ]
    return _row(name, ("MatMulNBits",), nodes, widths, {"w1": (5, k), "w2": (n, 3), **given, **(constants or {})}, **options)


def _packed(n, blocks):
    return _codes(n, -(-blocks // 2), dtype=np.uint8, low=0, high=256)


def _gather(name, width, **options):
    """Rows of a table of 11 by 64 numbers of 4 bits."""
    table = {"table": _codes(11, 32, dtype=np.uint8, low=0, high=256), "sc": _RNG.uniform(0.01, 0.03, (11, 4)).astype(np.float32)}
    attributes = {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    points = options.pop("points", None)
    if points is not None:
        table["p"] = points
    return _row(
        name,
        ("GatherBlockQuantized",),
        [_ms("GatherBlockQuantized", "table x sc" + (" p" if points is not None else ""), "e", **attributes), node("MatMul", "e w2", "y")],
        (width,),
        {**table, "w2": (64, 3)},
        inputs={"x": ["N", 4]},
        kinds={"x": "i"},
        frozen="selected by data",
    )


ROWS = [
    _image("QLinearAdd", ("QLinearAdd",), [_ms("QLinearAdd", "q s z q s z t u", "a")]),
    _image(
        "QLinearAdd-broadcast",
        ("QLinearAdd", "QLinearMul"),
        [_ms("QLinearAdd", "q s z k s z t u", "m"), _ms("QLinearMul", "m t u k s z t u", "a")],
        k=_codes(8, 1, 1, dtype=np.uint8, low=0, high=256),
    ),
    _image(
        "QLinearSigmoid",
        ("QLinearSigmoid", "QLinearMul"),
        [_ms("QLinearSigmoid", "q s z small u0", "g"), _ms("QLinearMul", "q s z g small u0 t u", "a")],
        small=np.float32(1 / 256),
        u0=np.uint8(0),
    ),
    _image("QLinearLeakyRelu", ("QLinearLeakyRelu",), [_ms("QLinearLeakyRelu", "q s z t u", "a", alpha=0.2)]),
    _image(
        "QLinearSoftmax-other-axis",
        ("QLinearSoftmax",),
        [_ms("QLinearSoftmax", "q s z small u0", "p", opset=13, axis=-1), _ms("QLinearMul", "q s z p small u0 t u", "a")],
        small=np.float32(1 / 256),
        u0=np.uint8(0),
    ),
    _image("QLinearSoftmax", ("QLinearSoftmax",), [_ms("QLinearSoftmax", "q s z t u", "a", opset=13, axis=1)], (), frozen="axis of Softmax"),
    _image("QLinearSoftmax-12", ("QLinearSoftmax",), [_ms("QLinearSoftmax", "q s z t u", "a", opset=12, axis=1)], (), frozen="axis of Softmax"),
    _image(
        "QLinearConcat",
        ("QLinearConcat",),
        [_ms("QLinearConcat", "t u q s z k s z q s z", "a", axis=1)],
        (3, 8),
        k=_codes(2, 3, 6, 6, dtype=np.uint8, low=0, high=256),
        w2=(2, 19, 1, 1),
    ),
    _image("QLinearWhere", ("QLinearWhere",), [_ms("QLinearWhere", "c q s z k s z t u", "a")], k=_codes(8, 1, 1, dtype=np.uint8, low=0, high=256), c=_RNG.random((6, 6)) > 0.5),
    _image("QLinearAveragePool", ("QLinearAveragePool",), [_ms("QLinearAveragePool", "q s z t u", "a", kernel_shape=[2, 2], strides=[2, 2])]),
    _image("QLinearGlobalAveragePool", ("QLinearGlobalAveragePool",), [_ms("QLinearGlobalAveragePool", "q s z t u", "a")]),
    _turned(
        "QLinearAveragePool-channels-last",
        ("QLinearAveragePool", "NhwcMaxPool"),
        [_ms("NhwcMaxPool", "q", "m", kernel_shape=[2, 2]), _ms("QLinearAveragePool", "m s z t u", "a", kernel_shape=[2, 2], channels_last=1)],
    ),
    _turned("QLinearGlobalAveragePool-channels-last", ("QLinearGlobalAveragePool",), [_ms("QLinearGlobalAveragePool", "q s z t u", "a", channels_last=1)]),
    _turned(
        "QLinearConv-channels-last",
        ("QLinearConv",),
        [_ms("QLinearConv", "q s z w sw3 zw t u b", "a", channels_last=1, pads=[1, 1, 1, 1])],
        (6, 8),
        last=6,
        w=_codes(6, 8, 3, 3),
        sw3=_scales(6, 0.002),
        b=_codes(6, dtype=np.int32),
    ),
    _turned(
        "QLinearConv-channels-last-grouped",
        ("QLinearConv",),
        [_ms("QLinearConv", "q s z w sw zw t u", "a", channels_last=1, group=4)],
        (2, 3, 4),
        last=12,
        w=_codes(12, 2, 3, 3),
        sw=np.float32(0.002),
    ),
    _image("QLinearConv-contrib", ("QLinearConv",), [_ms("QLinearConv", "q s z w sw zw t u", "a")], (6, 8), w=_codes(6, 8, 3, 3), sw=np.float32(0.002), w2=(2, 6, 1, 1)),
    _row(
        "QGemm",
        ("QGemm",),
        [node("MatMul", "x w1", "h"), node("QuantizeLinear", "h s z", "q"), _ms("QGemm", "q s z w sc zs c t u", "g", transB=1), _ms("QGemm", "g t u v sw zw", "y")],
        (6, 8),
        {"w1": (5, 8), "w": _codes(6, 8), "sc": _scales(6), "zs": _codes(6, low=-5, high=5), "c": _codes(6, dtype=np.int32), "v": _codes(6, 3)},
        inputs={"x": ["N", 5]},
    ),
    _linear(
        "MatMulIntegerToFloat",
        ("MatMulIntegerToFloat",),
        [node("QuantizeLinear", "h s z", "q"), _ms("MatMulIntegerToFloat", "q w s sc z zs b", "a")],
        (6, 8),
        w=_codes(8, 6),
        sc=_scales(6),
        zs=_codes(6, low=-5, high=5),
        b=(6,),
        w2=(6, 3),
    ),
    _linear(
        "MatMulIntegerToFloat-dynamic",
        ("MatMulIntegerToFloat",),
        [node("DynamicQuantizeLinear", "h", "q d e"), _ms("MatMulIntegerToFloat", "q w d sw e", "a")],
        (6, 8),
        w=_codes(8, 6),
        w2=(6, 3),
    ),
    _linear(
        "DynamicQuantizeMatMul",
        ("DynamicQuantizeMatMul",),
        [_ms("DynamicQuantizeMatMul", "h w sc zs b", "a")],
        (6, 8),
        w=_codes(8, 6),
        sc=_scales(6),
        zs=_codes(6, low=-5, high=5),
        b=(6,),
        w2=(6, 3),
    ),
    _linear(
        "QuantizeLinear-contrib", ("QuantizeLinear", "DequantizeLinear"), [_ms("QuantizeLinear", "h s z16", "q"), _ms("DequantizeLinear", "q s z16", "a")], z16=np.uint16(30000)
    ),
    _linear(
        "DequantizeLinear-contrib-per-channel",
        ("DequantizeLinear",),
        [_ms("DequantizeLinear", "w sc zs", "w3", axis=1), node("MatMul", "h w3", "a")],
        (6, 8),
        w=_codes(8, 6),
        sc=_scales(6),
        zs=_codes(6, low=-5, high=5),
        w2=(6, 3),
    ),
    _nbits("MatMulNBits", (4, 6), 64, 6),
    _nbits("MatMulNBits-zero-points", (2, 6), 64, 6, points=_packed, extra=" - b", constants={"b": (6,)}),
    _nbits("MatMulNBits-one-row-of-scales", (2, 6), 64, 6, points=_packed, flat=True),
    _nbits("MatMulNBits-8-bits", (4, 6), 64, 6, bits=8, points=lambda n, blocks: _codes(n, blocks, dtype=np.uint8, low=0, high=256)),
    _nbits("MatMulNBits-plain-zero-points", (4, 6), 64, 6, points=lambda n, blocks: _RNG.uniform(6, 9, (n, blocks)).astype(np.float32)),
    _nbits("MatMulNBits-odd-blocks", (6,), 48, 6, points=_packed, frozen="a byte that is not full"),
    _nbits("MatMulNBits-short-block", (6,), 40, 6, frozen="last block"),
    _gather("GatherBlockQuantized", 4),
    _gather("GatherBlockQuantized-zero-points", 2, points=_codes(11, 2, dtype=np.uint8, low=0, high=256)),
    _row(
        "QAttention",
        ("QAttention",),
        [node("MatMul", "x w0", "h"), node("QuantizeLinear", "h s z", "q"), _ms("QAttention", "q w b s sc - z zs", "o", num_heads=4), node("MatMul", "o wo", "y")],
        (3, 4, 8),
        {"w0": (5, 8), "w": _codes(8, 36), "sc": _scales(36), "zs": _codes(36, low=-5, high=5), "b": (36,), "wo": (12, 5)},
        since="1.31",
    ),
]
