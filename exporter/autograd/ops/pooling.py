"""Pooling over windows and over everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.ops.contraction import padded, spatial_pads
from exporter.autograd.ops.elementwise import root
from exporter.autograd.registry import Ints, Site, op
from runtime.nouns import counted

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class _Windows:
    """Windows over the spatial axes.

    Attributes:
        kernel, strides, dilations: of each axis.
        pads: (before, after) as the node has them.
        reach: (before, after) so that the last window lies within.
        counts: number of windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    reach: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]


def _windows(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> _Windows:
    rank = len(kernel)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    sizes = x.shape[2:]
    around = spatial_pads(auto_pad, pads, sizes, kernel, strides, dilations)
    reach, counts = [], []
    for size, (low, high), k, s, d in zip(sizes, around, kernel, strides, dilations, strict=True):
        span = (k - 1) * d + 1
        room = size + low + high - span
        count = (math.ceil(room / s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= size + low:
            count -= 1  # it would begin beyond the input
        counts.append(count)
        reach.append((low, max(high, (count - 1) * s + span - size - low)))
    return _Windows(tuple(kernel), tuple(strides), tuple(dilations), tuple(around), tuple(reach), tuple(counts))


def _cut(y: Tensor, counts: Sequence[int]) -> Tensor:
    for k, count in enumerate(counts):
        y = y.narrow(2 + k, 0, count) if y.shape[2 + k] != count else y
    return y


def _sums(x: Tensor, at: _Windows) -> Tensor:
    """Sum of each window, zero outside."""
    x = padded(x, at.reach)
    rank = len(at.kernel)
    if set(at.dilations) == {1} and rank in _AVERAGE:
        return _cut(_AVERAGE[rank](x, at.kernel, at.strides) * math.prod(at.kernel), at.counts)
    for k in range(rank):
        x = x.unfold(2 + k, (at.kernel[k] - 1) * at.dilations[k] + 1, at.strides[k])[..., :: at.dilations[k]].sum(-1)
    return _cut(x, at.counts)


@op("AveragePool")
def average_pool(
    site: Site,
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Mean over each window; what lies outside counts only where padding is to count."""
    at = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.float32, device=x.device)
    if count_include_pad:
        ones = padded(ones, at.pads, 1.0)
        rest = tuple((0, r[1] - p[1]) for r, p in zip(at.reach, at.pads, strict=True))
        count = _sums(ones, _Windows(at.kernel, at.strides, at.dilations, rest, rest, at.counts))
    else:
        count = _sums(ones, at)
    return _sums(x, at) / count.round().to(x.dtype)


@op("LpPool")
def _lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    at = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return root(_sums(x.abs().pow(p), at), p)


@op("MaxPool")
def max_pool(
    site: Site,
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
) -> tuple[Tensor, ...]:
    """Largest element of each window, and where it is in the whole tensor."""
    rank = len(kernel_shape)
    if rank not in _MAX:
        raise site.refuse(f"it has {counted(rank, 'spatial axis')}")
    at = _windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    wide = padded(x if x.is_floating_point() else x.float(), at.reach, float("-inf"))
    found = _MAX[rank](wide, at.kernel, at.strides, 0, at.dilations, False, site.outputs > 1)
    if site.outputs == 1:
        return (_cut(found, at.counts).to(x.dtype),)
    y, index = found
    index = _cut(index, at.counts)
    places: list[Tensor] = []
    for k in reversed(range(rank)):
        places.insert(0, index % wide.shape[2 + k] - at.reach[k][0])
        index = index // wide.shape[2 + k]
    sizes = list(x.shape[2:])
    flat = torch.zeros_like(places[0])
    for k in range(rank) if storage_order == 0 else reversed(range(rank)):
        flat = flat * sizes[k] + places[k]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * rank)
    return _cut(y, at.counts).to(x.dtype), planes * math.prod(sizes) + flat


@op("MaxUnpool")
def _max_unpool(
    x: Tensor,
    indices: Tensor,
    shape: Ints | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Put elements where MaxPool found them; indices count in the size the input had, whatever the output's."""
    rank = len(kernel_shape)
    strides, pads = strides or [1] * rank, pads or [0] * 2 * rank
    inner = [(x.shape[2 + k] - 1) * strides[k] + kernel_shape[k] - pads[k] - pads[k + rank] for k in range(rank)]
    plain = [*x.shape[:2], *inner]
    flat = torch.zeros(math.prod(plain), dtype=x.dtype, device=x.device)
    y = flat.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(plain)
    return y if shape is None else padded(y, [(0, n - m) for n, m in zip(shape[2:], plain[2:], strict=True)])


@op("GlobalAveragePool")
def _global_average(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@op("GlobalMaxPool")
def _global_max(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@op("GlobalLpPool")
def _global_lp(x: Tensor, *, p: int = 2) -> Tensor:
    return root(x.abs().pow(p).sum(list(range(2, x.ndim)), keepdim=True), p)


@op("LRN")
def _lrn(x: Tensor, *, size: int, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """X / (bias + alpha / size * sum of squares over neighbouring channels) ** beta."""
    low, high = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = F.pad(x.square().movedim(1, -1), (low, high))
    around = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * around).pow(beta)


@op("MaxRoiPool")
def _max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: list[int], spatial_scale: float = 1.0) -> Tensor:
    """Largest element of each cell of a grid over each region (batch, x1, y1, x2, y2)."""
    height, width = x.shape[2:]
    results = []
    for roi in rois.tolist():
        left, top, right, bottom = (round_half_away(v * spatial_scale) for v in roi[1:])
        tall, wide = max(bottom - top + 1, 1), max(right - left + 1, 1)
        cells = torch.zeros(x.shape[1], *pooled_shape, dtype=x.dtype, device=x.device)
        rows = []
        for i in range(pooled_shape[0]):
            y0 = min(max(math.floor(i * tall / pooled_shape[0]) + top, 0), height)
            y1 = min(max(math.ceil((i + 1) * tall / pooled_shape[0]) + top, 0), height)
            row = []
            for j in range(pooled_shape[1]):
                x0 = min(max(math.floor(j * wide / pooled_shape[1]) + left, 0), width)
                x1 = min(max(math.ceil((j + 1) * wide / pooled_shape[1]) + left, 0), width)
                part = x[int(roi[0]), :, y0:y1, x0:x1]
                row.append(part.amax((1, 2)) if part.numel() else cells[:, i, j])
            rows.append(torch.stack(row, -1))
        results.append(torch.stack(rows, 1))
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], *pooled_shape)


def round_half_away(x: float) -> int:
    """The nearest whole number; halves away from zero, as C rounds."""
    return math.floor(x + 0.5) if x >= 0 else math.ceil(x - 0.5)
