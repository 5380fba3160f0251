"""Element types: Cast and what is like it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from exporter.autograd.dtypes import torch_type
from exporter.autograd.registry import Site, Value, op

_BITS = {21: 4, 22: 4, 25: 2, 26: 2}
"""Bits of the sub-byte integers, by ONNX's number; the odd ones are unsigned."""

EIGHTH = {
    torch.float8_e4m3fn: 448.0,
    torch.float8_e4m3fnuz: 240.0,
    torch.float8_e5m2: 57344.0,
    torch.float8_e5m2fnuz: 57344.0,
}
"""Largest value of each 8-bit float."""
_LAST_E4M3FN = 464.0


def cast(site: Site, x: Tensor, number: int, saturate: int = 1) -> Tensor:
    """``x`` in another element type; outside the range of an 8-bit float its largest value, unless told otherwise."""
    dtype = torch_type(number)
    if dtype is None:
        raise site.refuse(f"torch has no element type for ONNX's number {number}")
    if number in _BITS:
        return _wrapped(x, number)
    if dtype in EIGHTH:
        return _eighth(x, dtype, bool(saturate))
    if dtype == torch.bool:
        return x != 0 if x.element_size() > 1 or not x.is_floating_point() else x.float() != 0
    if x.is_floating_point() and not dtype.is_floating_point and not dtype.is_complex:
        return x.to(torch.float64).to(torch.int64).to(dtype)
    return x.to(dtype)


def _wrapped(x: Tensor, number: int) -> Tensor:
    """The lowest bits, with or without a sign."""
    bits, signed = _BITS[number], number in (22, 26)
    whole = x.float().round() if x.is_floating_point() else x
    low = whole.to(torch.int64) & ((1 << bits) - 1)
    if signed:
        low = torch.where(low >= 1 << (bits - 1), low - (1 << bits), low)
    return low.to(torch.int8 if signed else torch.uint8)


def _eighth(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    value = x.float()
    if saturate:
        most = EIGHTH[dtype]
        value = torch.where(value.isnan(), value, value.clamp(-most, most))
    elif dtype == torch.float8_e4m3fn:  # torch saturates; beyond the middle of 448 and 480 there is only NaN
        value = torch.where(value.abs() > _LAST_E4M3FN, torch.full_like(value, float("nan")), value)
    return value.to(dtype)


@op("Cast")
def _cast(site: Site, x: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Value:
    if isinstance(x, np.ndarray) or round_mode != "up":
        raise site.refuse(
            "torch does not have one of its element types"
            if isinstance(x, np.ndarray)
            else "its attribute 'round_mode' is not implemented"
        )
    return cast(site, x, to, saturate)


@op("CastLike")
def _cast_like(site: Site, x: Value, like: Value, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    if not isinstance(like, Tensor) or not isinstance(x, Tensor) or round_mode != "up":
        raise site.refuse("torch does not have one of its element types")
    declared = site.kinds.get(site.node.inputs[1], 0)
    if declared in _BITS:
        return _wrapped(x, declared)
    return _eighth(x, like.dtype, bool(saturate)) if like.dtype in EIGHTH else x.to(like.dtype)


@op("BitCast")
def _bit_cast(site: Site, x: Tensor, *, to: int) -> Tensor:
    dtype = torch_type(to)
    if dtype is None or to in _BITS:
        raise site.refuse(f"torch has no element type for ONNX's number {to}")
    return x.view(dtype)
