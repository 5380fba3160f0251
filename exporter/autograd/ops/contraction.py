"""Sums over products: matrix products, convolutions, einsum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.registry import Ints, Site, op
from runtime.nouns import counted

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@op("MatMul")
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@op("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Alpha A B + beta C."""
    y = torch.matmul(a.t() if transA else a, b.t() if transB else b)
    y = y if alpha == 1.0 else y * alpha
    if c is None or beta == 0.0:
        return y
    return y + (c if beta == 1.0 else c * beta)


@op("Einsum")
def _einsum(*xs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *xs)


@op("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def _fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    def turned(x: Tensor, last: int, batch: int) -> Tensor:
        if batch:  # the batch axes' first comes before the last axis
            x = x.movedim(0, -2)
        return x.transpose(-1, -2) if last and x.ndim > 1 else x

    return alpha * torch.matmul(turned(a, transA, transBatchA), turned(b, transB, transBatchB))


def spatial_pads(
    auto_pad: str,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis."""  # fmt: skip
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
        return found
    given = list(pads or [0] * 2 * rank) if auto_pad in ("NOTSET", "") else [0] * 2 * rank
    return [(given[k], given[k + rank]) for k in range(rank)]


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """``x`` with so much before and after on its last axes."""
    flat = [n for pair in reversed(pads) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@op("Conv")
def conv(
    site: Site,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Cross-correlation."""
    rank = w.ndim - 2
    if rank not in _CONV:
        raise site.refuse(f"it has {counted(rank, 'spatial axis')}")
    kernel = list(w.shape[2:])
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    around = spatial_pads(auto_pad, pads, x.shape[2:], kernel, strides, dilations)
    even = all(low == high >= 0 for low, high in around)
    x = x if even else padded(x, around)
    result: Tensor = _CONV[rank](x, w, b, strides, [low for low, _ in around] if even else 0, dilations, group)
    return result


@op("ConvTranspose")
def _conv_transpose(
    site: Site,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The gradient of a convolution; what is padded is cut off the full result."""
    rank = w.ndim - 2
    if rank not in _TRANSPOSED:
        raise site.refuse(f"it has {counted(rank, 'spatial axis')}")
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    y: Tensor = _TRANSPOSED[rank](x, w, b, strides, 0, 0, group, dilations)
    full = [
        s * (n - 1) + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], strides, w.shape[2:], dilations, strict=True)
    ]
    for k in range(rank):
        if output_shape is not None or auto_pad.startswith("SAME"):
            want = output_shape[-rank:][k] if output_shape is not None else x.shape[2 + k] * strides[k]
            total = full[k] + extra[k] - want
            half = total // 2
            low, high = (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)
        else:
            given = pads or [0] * 2 * rank
            low, high = (given[k], given[k + rank]) if auto_pad in ("NOTSET", "") else (0, 0)
        stop = full[k] + extra[k] - high
        axis = 2 + k
        if stop > full[k]:  # beyond the last window there is only the bias
            missing = list(y.shape)
            missing[axis] = stop - full[k]
            fill = torch.zeros(missing, dtype=y.dtype, device=y.device)
            if b is not None:
                fill = fill + b.reshape(1, -1, *[1] * rank)
            y = torch.cat([y, fill], axis)
        y = (
            y.narrow(axis, low, stop - low)
            if low >= 0
            else padded(y, [(-low, 0)] if axis == y.ndim - 1 else [(-low, 0), *[(0, 0)] * (y.ndim - 1 - axis)])
        )
    return y


@op("DeformConv")
def _deform_conv(
    site: Site,
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """A convolution that samples bilinearly at positions moved by ``offset`` (Dai et al., ICCV 2017), in 2-D."""
    if w.ndim != 4:
        raise site.refuse(f"it has {counted(w.ndim - 2, 'spatial axis')}")
    n, c, height, width = x.shape
    kh, kw = w.shape[2:]
    sy, sx = strides or [1, 1]
    dy, dx = dilations or [1, 1]
    top, left, bottom, right = pads or [0] * 4
    oh = (height + top + bottom - dy * (kh - 1) - 1) // sy + 1
    ow = (width + left + right - dx * (kw - 1) - 1) // sx + 1
    moved = offset.reshape(n, offset_group, kh * kw, 2, oh, ow)
    grid_y = torch.arange(oh, device=x.device)[:, None] * sy - top
    grid_x = torch.arange(ow, device=x.device)[None, :] * sx - left
    tap_y = (torch.arange(kh, device=x.device) * dy).repeat_interleave(kw)[:, None, None]
    tap_x = (torch.arange(kw, device=x.device) * dx).repeat(kh)[:, None, None]
    at_y = (grid_y + tap_y).to(x.dtype) + moved[:, :, :, 0]
    at_x = (grid_x + tap_x).to(x.dtype) + moved[:, :, :, 1]
    sampled = _bilinear(
        x.reshape(n * offset_group, c // offset_group, height, width), at_y.flatten(0, 1), at_x.flatten(0, 1)
    )
    if mask is not None:
        sampled = sampled * mask.reshape(n * offset_group, 1, kh * kw, oh, ow)
    columns = sampled.reshape(n, group, c // group * kh * kw, oh * ow)
    y = torch.einsum("gok,ngkp->ngop", w.reshape(group, w.shape[0] // group, -1), columns).reshape(n, -1, oh, ow)
    return y if b is None else y + b.reshape(1, -1, 1, 1)


def _bilinear(x: Tensor, at_y: Tensor, at_x: Tensor) -> Tensor:
    """``x`` [N, C, H, W] at positions [N, K, P, Q]; zero outside. Returns [N, C, K, P, Q]."""
    n, c, height, width = x.shape
    low_y, low_x = at_y.floor(), at_x.floor()
    result: Tensor | None = None
    for step_y in (0, 1):
        for step_x in (0, 1):
            y, xx = low_y + step_y, low_x + step_x
            weight = (1 - (at_y - y).abs()) * (1 - (at_x - xx).abs())
            inside = (y >= 0) & (y < height) & (xx >= 0) & (xx < width)
            index = (y.clamp(0, height - 1) * width + xx.clamp(0, width - 1)).long().reshape(n, 1, -1).expand(n, c, -1)
            value = x.reshape(n, c, -1).gather(2, index).reshape(n, c, *at_y.shape[1:])
            part = value * (weight * inside).unsqueeze(1)
            result = part if result is None else result + part
    assert result is not None
    return result


@op("Col2Im")
def _col2im(
    site: Site,
    x: Tensor,
    image: Ints,
    block: Ints,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Add up columns where the windows of a convolution would have read them."""
    rank = len(image)
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    n, c = x.shape[0], x.shape[1] // math.prod(block)
    full = [size + pads[k] + pads[k + rank] for k, size in enumerate(image)]
    windows = [(f - d * (k - 1) - 1) // s + 1 for f, d, k, s in zip(full, dilations, block, strides, strict=True)]
    taps = torch.cartesian_prod(*[torch.arange(k) * d for k, d in zip(block, dilations, strict=True)]).reshape(-1, rank)
    starts = torch.cartesian_prod(*[torch.arange(m) * s for m, s in zip(windows, strides, strict=True)]).reshape(
        -1, rank
    )
    index = torch.zeros(len(taps), len(starts), dtype=torch.int64)
    for k in range(rank):
        index = index * full[k] + taps[:, None, k] + starts[None, :, k]
    flat = torch.zeros(n, c, math.prod(full), dtype=x.dtype, device=x.device)
    flat = flat.index_add(2, index.reshape(-1).to(x.device), x.reshape(n, c, -1))
    y = flat.reshape(n, c, *full)
    for k in range(rank):
        y = y.narrow(2 + k, pads[k], image[k])
    return y
