"""Quantization: rounding with the gradient of the identity within the range (the straight-through estimator)."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.autograd.dtypes import torch_type
from exporter.autograd.ops.conversion import EIGHTH, FOURTH, cast, fourth
from exporter.autograd.registry import Site, op

RANGES: dict[int, tuple[int, int]] = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    21: (0, 15),
    22: (-8, 7),
    25: (0, 3),
    26: (-2, 1),
}
"""Smallest and largest value by ONNX's number of the type."""

_NUMBERS = {torch.uint8: 2, torch.int8: 3, torch.uint16: 4, torch.int16: 5, torch.int32: 6}


def spread(scale: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points, of a whole, of slices of an axis or of blocks of it, so that they broadcast to ``x``."""
    if scale.ndim == 0 or (scale.numel() == 1 and scale.ndim <= 1):
        return scale.reshape(())
    at = axis % x.ndim
    if block:
        return scale.repeat_interleave(block, at).narrow(at, 0, x.shape[at])
    if scale.ndim == 1:
        return scale.reshape([-1 if k == at else 1 for k in range(x.ndim)])
    return scale


def _stored_type(site: Site, zero: Tensor | None, number: int) -> int:
    """ONNX's number of the type to quantize to; where 4 bits are held in a byte only the graph knows."""
    if number:
        return number
    name = site.node.inputs[2] if len(site.node.inputs) > 2 else ""
    declared = site.kinds.get(name) if name else None
    if declared is not None:
        return declared
    if zero is None:
        return 2
    found = _NUMBERS.get(zero.dtype)
    return found if found is not None else {v: k for k, v in _EIGHT_BIT.items()}[zero.dtype]


_EIGHT_BIT = {n: t for n in (17, 18, 19, 20) if (t := torch_type(n)) is not None}


def through(x: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


@op("QuantizeLinear", "com.microsoft::QuantizeLinear")
def _quantize(
    site: Site,
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """round(x / scale) + zero point, within the range of the type."""
    number = _stored_type(site, zero, output_dtype)
    work = x.double() if x.dtype == torch.int32 else x.float()
    value = work / spread(scale, x, axis, block_size).to(work.dtype)
    if number == FOURTH:
        return fourth(value)
    if torch_type(number) in EIGHTH:
        return cast(site, value, number, saturate)
    if number not in RANGES:
        raise site.refuse(f"it quantizes to ONNX's type number {number}")
    low, high = RANGES[number]
    value = through(value)
    if zero is not None:
        value = value + spread(zero.to(value.dtype), x, axis, block_size)
    dtype = torch_type(number)
    assert dtype is not None
    return _whole(value.clamp(low, high), dtype)


@op("DequantizeLinear", "com.microsoft::DequantizeLinear")
def _dequantize(
    site: Site,
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero point) * scale, in the type of the scale."""
    real = getattr(x, "secateur_real", None)
    work = real if real is not None else x.double() if x.dtype == torch.int32 else x.float()
    if zero is not None:
        work = work - spread(zero.to(work.dtype), x, axis, block_size)
    dtype = torch_type(output_dtype) if output_dtype else scale.dtype
    found: Tensor = (work * spread(scale, x, axis, block_size).to(work.dtype)).to(dtype)
    return found


@op("DynamicQuantizeLinear")
def _dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8, with the range of the data and zero."""
    low, high = x.detach().min().clamp(max=0), x.detach().max().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.round((-low / safe).clamp(0, 255))
    y = (through(x / safe) + zero).clamp(0, 255)
    return _whole(y, torch.uint8), scale, zero.to(torch.uint8)


def _whole(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded numbers as integers that remember what they were, for DequantizeLinear to differentiate."""
    whole = real.detach().to(torch.int32).to(dtype)
    if real.requires_grad:
        whole.secateur_real = real  # type: ignore[attr-defined]
    return whole


def centred(x: Tensor, zero: Tensor | None, axis: int | None = None) -> Tensor:
    """X - zero point, exact: products of bytes need more than 32-bit floats only beyond 2^24, so float64."""
    wide = x.double()
    if zero is None:
        return wide
    if zero.ndim == 1 and zero.numel() > 1 and axis is not None:
        zero = zero.reshape([-1 if k == axis % x.ndim else 1 for k in range(x.ndim)])
    elif zero.numel() == 1:
        zero = zero.reshape(())
    return wide - zero.double()


def requantized(y: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Real numbers in the type of a zero point."""
    low, high = RANGES[_NUMBERS[zero.dtype]]
    return (torch.round(y / scale) + zero.to(y.dtype)).clamp(low, high).to(zero.dtype)


@op("MatMulInteger")
def _matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return torch.matmul(centred(a, a_zero, -2), centred(b, b_zero, -1)).to(torch.int32)


@op("QLinearMatMul")
def _qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    product = torch.matmul(centred(a, a_zero, -2), centred(b, b_zero, -1))
    scale = _row(a_scale, a, -2).double() * _row(b_scale, b, -1).double()
    return requantized(product * scale, y_scale.double(), y_zero)


def _row(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim > 1:
        return scale
    return scale.reshape([-1 if k == axis % x.ndim else 1 for k in range(x.ndim)])


@op("ConvInteger")
def _conv_integer(
    site: Site,
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    from exporter.autograd.ops.contraction import conv

    y: Tensor = conv(
        site, centred(x, x_zero), centred(w, w_zero, 0), auto_pad=auto_pad, dilations=dilations, group=group,
        pads=pads, strides=strides,
    )  # fmt: skip
    return y.to(torch.int32)


@op("QLinearConv")
def _qlinear_conv(
    site: Site,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    from exporter.autograd.ops.contraction import conv

    y: Tensor = conv(
        site, centred(x, x_zero), centred(w, w_zero, 0), None if b is None else b.double(), auto_pad=auto_pad,
        dilations=dilations, group=group, pads=pads, strides=strides,
    )  # fmt: skip
    scale = x_scale.double() * (
        w_scale.double() if w_scale.numel() == 1 else w_scale.double().reshape(-1, *[1] * (y.ndim - 2))
    )
    return requantized(y * scale, y_scale.double(), y_zero)
