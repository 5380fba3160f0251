"""Operators of ONNX Runtime that stand for several of the standard, and layers with packed weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.ops.contraction import conv, gemm
from exporter.autograd.ops.normalisation import standardised
from exporter.autograd.ops.quantisation import centred, requantized
from exporter.autograd.registry import Site, op


def _activated(site: Site, x: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    first = parameters[0] if parameters else None
    if name in ("", "Relu"):
        return torch.relu(x) if name else x
    if name == "LeakyRelu":
        return F.leaky_relu(x, 0.01 if first is None else first)
    if name == "Clip" and len(parameters) == 2:
        return x.clamp(parameters[0], parameters[1])
    if name == "HardSigmoid":
        alpha, beta = parameters if len(parameters) == 2 else (0.2, 0.5)
        return (alpha * x + beta).clamp(0, 1)
    if name in ("Sigmoid", "Tanh"):
        return torch.sigmoid(x) if name == "Sigmoid" else torch.tanh(x)
    raise site.refuse(f"its activation '{name}' is not implemented")


@op("com.microsoft::FusedConv")
def _fused_conv(
    site: Site,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    y: Tensor = conv(site, x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return _activated(site, y if z is None else y + z, activation, activation_params or ())


@op("com.microsoft::FusedGemm")
def _fused_gemm(
    site: Site,
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    given = [p for p in (activation_alpha, activation_beta, activation_gamma) if p is not None]
    return _activated(site, y, activation, given)


@op("com.microsoft::SkipLayerNormalization")
def _skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor, ...]:
    """A sum, normalised over its last axis; the sum itself is the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = standardised(total, [-1], epsilon)
    y = y * gamma
    return (y if beta is None else y + beta), mean, inverse, total


@op("com.microsoft::SkipSimplifiedLayerNormalization")
def _skip_rms_norm(
    x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-12
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = standardised(total, [-1], epsilon, centred=False)
    return y * gamma, mean, inverse, total


@op("com.microsoft::EmbedLayerNormalization")
def _embed_layer_norm(
    site: Site,
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    places: Tensor,
    kinds: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, ...]:
    """Words, positions and segments, summed and normalised; how many positions the mask shows."""
    at = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions.long()
    total = words[ids.long()] + places[at]
    if segments is not None and kinds is not None:
        total = total + kinds[segments.long()]
    y = standardised(total, [-1], epsilon)[0]
    y = y if gamma is None else y * gamma
    y = y if beta is None else y + beta
    shown = torch.zeros(ids.shape[0], dtype=torch.int32) if mask is None else mask.sum(1).to(torch.int32)
    return y, shown, total


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The numbers in bytes [..., n], lowest bits first: [..., n * 8 / bits]."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, device=packed.device)
    return ((packed.unsqueeze(-1).to(torch.int32) >> shifts) & ((1 << bits) - 1)).flatten(-2)


@op("com.microsoft::MatMulNBits")
def _matmul_nbits(
    site: Site,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero: Tensor | None = None,
    group: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int = 32,
    weight_prepacked: int = 0,
) -> Tensor:
    """A product with weights of a few bits in blocks along K, each with a scale and a zero point."""
    if bits not in (2, 4, 8) or group is not None or weight_prepacked:
        raise site.refuse(f"its weights have {bits} bits, an order of groups or a layout of their own")
    blocks = math.ceil(K / block_size)
    codes = unpacked(b.reshape(N, blocks, -1), bits)[..., :block_size].to(scales.dtype)
    if zero is None:
        centre = torch.full((N, blocks), float(1 << (bits - 1)), dtype=scales.dtype, device=a.device)
    elif zero.is_floating_point():
        centre = zero.reshape(N, blocks)
    else:
        centre = unpacked(zero.reshape(N, -1), bits)[:, :blocks].to(scales.dtype)
    weight = ((codes - centre.unsqueeze(-1)) * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K]
    return F.linear(a, weight.to(a.dtype), bias)


@op("com.microsoft::MatMulIntegerToFloat")
def _matmul_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    y = torch.matmul(centred(a, a_zero), centred(b, b_zero, -1)).to(a_scale.dtype) * a_scale * b_scale
    return y if bias is None else y + bias


@op("com.microsoft::QLinearAdd")
def _qlinear_add(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    return requantized(centred(a, a_zero) * a_scale + centred(b, b_zero) * b_scale, y_scale, y_zero)


@op("com.microsoft::QLinearMul")
def _qlinear_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    return requantized(centred(a, a_zero) * a_scale * centred(b, b_zero) * b_scale, y_scale, y_zero)


@op("com.microsoft::QLinearSigmoid")
def _qlinear_sigmoid(x: Tensor, scale: Tensor, zero: Tensor | None, y_scale: Tensor, y_zero: Tensor) -> Tensor:
    return requantized(torch.sigmoid(centred(x, zero) * scale), y_scale, y_zero)


@op("com.microsoft::QLinearLeakyRelu")
def _qlinear_leaky_relu(
    x: Tensor, scale: Tensor, zero: Tensor | None, y_scale: Tensor, y_zero: Tensor, *, alpha: float = 0.01
) -> Tensor:
    return requantized(F.leaky_relu(centred(x, zero) * scale, alpha), y_scale, y_zero)


@op("com.microsoft::QLinearGlobalAveragePool")
def _qlinear_global_average(
    site: Site,
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor,
    *,
    channels_last: int = 0,
) -> Tensor:
    if channels_last:
        raise site.refuse("its channels come last")
    mean = (centred(x, zero) * scale).mean(list(range(2, x.ndim)), keepdim=True)
    return requantized(mean, y_scale, y_zero)


@op("com.microsoft::QLinearConcat")
def _qlinear_concat(y_scale: Tensor, y_zero: Tensor, *rest: Tensor, axis: int) -> Tensor:
    real = [centred(rest[k], rest[k + 2]) * rest[k + 1] for k in range(0, len(rest), 3)]
    return requantized(torch.cat(real, axis), y_scale, y_zero)
