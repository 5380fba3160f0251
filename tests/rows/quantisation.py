"""Quantised products, and scales per channel or per block."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.onnx_builder import build, node, weights
from tests.rows import Row

_F = np.float32
_RNG = np.random.default_rng(5)


def _codes(*shape, dtype=np.int8, low=-99, high=99):
    return _RNG.integers(low, high, shape).astype(dtype)


def _scales(*shape):
    return _RNG.uniform(0.01, 0.03, shape).astype(_F)


def _linear(name, covers, nodes, widths, *, opset=21, frozen="", **constants):
    """``x[N, 5] -> w1 -> h[N, 8]``, the nodes, ``a -> w2 -> y``."""
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {"w1": (5, 8), "w2": (6, 3)} | {k: v for k, v in constants.items() if k not in arrays}
    model = build([node("MatMul", "x w1", "h"), *nodes, node("MatMul", "a w2", "y")], {"x": ["N", 5]}, ["y"],
                  {**weights(**shapes), **arrays}, opset=opset)
    return Row(name, covers, model, widths, frozen)


def _blocked(name, dtype, low, high, *, opset=21, zeros=True, **more):
    """A weight of 8 x 6 codes, with a scale and a zero point for every 2 of the 8 rows."""
    return _linear(name, ("DequantizeLinear",),
                   [node("DequantizeLinear", "codes scales zeros", "w3", axis=0, block_size=2), node("MatMul", "h w3", "a")],
                   (4, 6), opset=opset, codes=_codes(8, 6, dtype=dtype, low=low, high=high), scales=_scales(4, 6),
                   zeros=_codes(4, 6, dtype=dtype, low=low, high=high) if zeros else np.zeros((4, 6), dtype), **more)


_CONV = {"hs": _F(0.05), "hz": np.uint8(120), "ys": _F(0.1), "yz": np.uint8(110)}


def _conv(name, scales, zeros, widths, *, group=1, inner=8, bias=False, **options):
    """A quantised convolution of 8 channels to 12 between two others."""
    constants = {**weights(w1=(8, 3, 1, 1), w2=(2, 12, 1, 1)), **_CONV, "wq": _codes(12, inner, 3, 3), "ws": scales, "wz": zeros}
    if bias:
        constants["bq"] = _codes(12, dtype=np.int32)
    nodes = [node("Conv", "x w1", "h"), node("QuantizeLinear", "h hs hz", "q"),
             node("QLinearConv", f"q hs hz wq ws wz ys yz{' bq' * bias}", "c", group=group, pads=[1, 1, 1, 1]),
             node("DequantizeLinear", "c ys yz", "a"), node("Conv", "a w2", "y")]
    return Row(name, ("QLinearConv",), build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants), widths, **options)


def _matmul(name, scales, zeros, widths):
    """A quantised product of 8 columns to 6 between two others."""
    return _linear(name, ("QLinearMatMul",),
                   [node("QuantizeLinear", "h hs hz", "q"), node("QLinearMatMul", "q hs hz wq ws wz ys yz", "c"),
                    node("DequantizeLinear", "c ys yz", "a")],
                   widths, wq=_codes(8, 6), ws=scales, wz=zeros, **_CONV)


ROWS = [
    _conv("QLinearConv", _F(0.02), np.int8(0), (8, 12), bias=True),
    _conv("QLinearConv-per-channel", _scales(12), np.zeros(12, np.int8), (8, 12), bias=True),
    _conv("QLinearConv-grouped", _scales(12), np.zeros(12, np.int8), (4, 2, 3), group=4, inner=2),
    _matmul("QLinearMatMul", _F(0.02), np.int8(3), (6, 8)),
    _matmul("QLinearMatMul-per-column", _scales(6), np.zeros(6, np.int8), (6, 8)),
    _linear("QLinearMatMul-left-weight", ("QLinearMatMul",),
            [node("Transpose", "h", "t"), node("QuantizeLinear", "t hs hz", "q"),
             node("QLinearMatMul", "wq ws wz q hs hz ys yz", "c"), node("DequantizeLinear", "c ys yz", "d"),
             node("Transpose", "d", "a")],
            (6, 8), opset=21, wq=_codes(6, 8, dtype=np.uint8, low=0, high=199), ws=_F(0.02), wz=np.uint8(99), **_CONV),
    _blocked("DequantizeLinear-blocked", np.int8, -99, 99),
    _blocked("DequantizeLinear-blocked-int4", ml_dtypes.int4, -8, 8),
    _blocked("DequantizeLinear-blocked-uint4", ml_dtypes.uint4, 0, 16),
    _blocked("DequantizeLinear-blocked-float8", ml_dtypes.float8_e4m3fn, 1, 9, zeros=False),
    _linear("DequantizeLinear-blocked-int2", ("DequantizeLinear",),
            [node("DequantizeLinear", "codes scales", "w3", axis=0, block_size=2), node("MatMul", "h w3", "a")], (4, 6),
            opset=25, codes=_codes(8, 6, dtype=ml_dtypes.int2, low=-2, high=2), scales=_scales(4, 6)),
    _linear("DequantizeLinear-blocked-other-axis", ("DequantizeLinear",),
            [node("DequantizeLinear", "codes scales", "w3", axis=1, block_size=3), node("MatMul", "h w3", "a")], (2, 8),
            codes=_codes(8, 6), scales=_scales(8, 2)),
    _linear("DequantizeLinear-one-block", ("DequantizeLinear",),
            [node("DequantizeLinear", "codes scales", "w3", axis=0, block_size=8), node("MatMul", "h w3", "a")], (6,),
            codes=_codes(8, 6), scales=_scales(1, 6), frozen="block of a quantised axis"),
    _linear("QuantizeLinear-blocked", ("QuantizeLinear", "DequantizeLinear"),
            [node("QuantizeLinear", "w3 scales zeros", "codes", axis=0, block_size=2),
             node("DequantizeLinear", "codes scales zeros", "w4", axis=0, block_size=2), node("MatMul", "h w4", "a")],
            (4, 6), w3=(8, 6), scales=_scales(4, 6), zeros=np.zeros((4, 6), np.int8)),
    _linear("DequantizeLinear-last-block-short", ("DequantizeLinear",),
            [node("DequantizeLinear", "codes scales", "w3", axis=0, block_size=3), node("MatMul", "h w3", "a")], (6,),
            codes=_codes(8, 6), scales=_scales(3, 6), frozen="last block"),
    _linear("MatMulInteger-fixed-scale", ("MatMulInteger",),
            [node("QuantizeLinear", "h hs hz", "q"), node("MatMulInteger", "q wq hz", "c"), node("Cast", "c", "a", to=1)],
            (6, 8), wq=_codes(8, 6), **_CONV),
    Row("ConvInteger-fixed-scale", ("ConvInteger",),
        build([node("Conv", "x w1", "h"), node("QuantizeLinear", "h hs hz", "q"), node("ConvInteger", "q wq hz wz", "c"),
               node("Cast", "c", "a", to=1), node("Conv", "a w2", "y")], {"x": ["N", 3, 6, 6]}, ["y"],
              {**weights(w1=(8, 3, 1, 1), w2=(2, 12, 1, 1)), **_CONV, "wq": _codes(12, 8, 3, 3), "wz": np.int8(3)}), (8, 12)),
]
