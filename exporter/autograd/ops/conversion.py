"""Element types: Cast and what is like it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from exporter.autograd.dtypes import torch_type
from exporter.autograd.registry import Site, Value, op

_BITS = {21: 4, 22: 4, 25: 2, 26: 2}
"""Bits of the sub-byte integers, by ONNX's number; the odd ones are unsigned."""

FOURTH = 23
"""ONNX's number of 4-bit floats: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""
_POWERS = 24
"""And of E8M0: the powers of two from 2^-127 to 2^127, and NaN."""
_HELD = (*_BITS, FOURTH, _POWERS)
"""Numbers of the types that are held in wider ones."""
_LARGEST = 127

EIGHTH = {
    torch.float8_e4m3fn: 448.0,
    torch.float8_e4m3fnuz: 240.0,
    torch.float8_e5m2: 57344.0,
    torch.float8_e5m2fnuz: 57344.0,
}
"""Largest value of each 8-bit float."""
_LAST_E4M3FN = 464.0


def cast(site: Site, x: Tensor, number: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """``x`` in another element type; outside the range of an 8-bit float its largest value, unless told otherwise.

    ``round_mode`` is for powers of two.
    """
    dtype = torch_type(number)
    if dtype is None:
        raise site.refuse(f"torch has no element type for ONNX's number {number}")
    if number in _BITS:
        return _wrapped(x, number)
    if number == FOURTH:
        return fourth(x.float())
    if number == _POWERS:
        return _powers(x.float(), bool(saturate), round_mode)
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


def fourth(x: Tensor) -> Tensor:
    """The nearest 4-bit float, ties to the even mantissa, with the gradient of the identity within the range."""
    value = torch.where(x.isnan(), torch.full_like(x, -0.0), x.clamp(-6, 6))
    size = value.detach().abs()
    apart = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(x.dtype)
    rounded = torch.round(value.detach() / apart) * apart
    return (rounded + (value - value.detach())).to(torch.float8_e4m3fn)


def _powers(x: Tensor, saturate: bool, mode: str) -> Tensor:
    """A power of two near the size of ``x``; for ties ``nearest`` takes the larger one."""
    size = x.detach().abs()
    mantissa, exponent = torch.frexp(size)  # mantissa in [0.5, 1)
    beyond = {"up": 0.5, "down": 1.0}.get(mode)
    larger = mantissa > beyond if beyond is not None else mantissa >= 0.75
    power = exponent - 1 + larger.to(exponent.dtype)
    power = torch.where(size == 0, -_LARGEST - 1, power)
    found = torch.ldexp(torch.ones_like(size), power.clamp(-_LARGEST, _LARGEST))
    bad = ~size.isfinite() if saturate else ~size.isfinite() | (power.abs() > _LARGEST)
    return torch.where(bad, torch.full_like(found, float("nan")), found).to(torch.bfloat16)


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
    if isinstance(x, np.ndarray):
        raise site.refuse("torch does not have one of its element types")
    return cast(site, x, to, saturate, round_mode)


@op("CastLike")
def _cast_like(site: Site, x: Value, like: Value, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    if not isinstance(like, Tensor) or not isinstance(x, Tensor):
        raise site.refuse("torch does not have one of its element types")
    declared = site.kinds.get(site.node.inputs[1], 0)
    if declared in _HELD:
        return cast(site, x, declared, saturate, round_mode)
    return _eighth(x, like.dtype, bool(saturate)) if like.dtype in EIGHTH else x.to(like.dtype)


@op("BitCast")
def _bit_cast(site: Site, x: Tensor, *, to: int) -> Tensor:
    dtype = torch_type(to)
    declared = site.kinds.get(site.node.inputs[0], 0)
    if dtype is None or to in _HELD or declared in _HELD:
        raise site.refuse(f"torch has no element type for ONNX's number {to if declared not in _HELD else declared}")
    return x.view(dtype)
