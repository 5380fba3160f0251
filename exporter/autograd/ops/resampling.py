"""Images at other sizes and positions: Resize, GridSample, RoiAlign; and boxes that overlap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from exporter.autograd.registry import Ints, Site, op
from runtime.nouns import counted

Single = np.float32
Kernel = Callable[[float], float]


_NEARLY = 1e-6
"""How far from the middle between two elements a place may be to be taken for it, as by ONNX Runtime."""


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized: sizes, scale, and the part of the input that is taken (for crops)."""

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def _positions(mode: str, axis: _Axis) -> NDArray[np.float32]:
    """The place in the input of every element of the output, in 32 bits and this order, as ONNX Runtime computes it:
    where a place falls between two elements, the last digit decides which is nearest."""
    i = np.arange(axis.out, dtype=Single)
    size, out, scale = Single(axis.size), Single(axis.out), Single(axis.scale)
    one, half = Single(1), Single(0.5)
    if mode == "align_corners":
        return i * (size - one) / (out - one) if axis.out > 1 else np.zeros_like(i)
    if mode == "asymmetric":
        return i / scale
    if mode == "pytorch_half_pixel":
        return (i + half) / scale - half if axis.out > 1 else np.zeros_like(i)
    if mode == "half_pixel_symmetric":
        shift = size / Single(2) * (one - out / (scale * size))
        return (shift + (i.astype(np.float64) + 0.5) / float(scale) - 0.5).astype(Single)
    if mode == "tf_half_pixel_for_nn":
        return (i + half) / scale
    if mode == "tf_crop_and_resize":
        start, end = Single(axis.start), Single(axis.end)
        if axis.out > 1:
            return start * (size - one) + i * (end - start) * (size - one) / (out - one)
        return np.full_like(i, 0.5 * float((start + end) * (size - one)))
    return (i + half) / scale - half


def _linear(x: float) -> float:
    return max(1 - abs(x), 0.0)


def _cubic(a: float) -> Kernel:
    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    return weight


def _nearest(mode: str, places: NDArray[np.float32], shrinks: bool) -> NDArray[np.int64]:
    """The nearest elements; ``simple`` is what operator set 10 and Upsample do, which has no name there."""
    at = places.astype(np.float64)
    half = 0.5 + _NEARLY
    if mode == "round_prefer_ceil":
        found = np.floor(at + half)
    elif mode == "floor" or (mode == "simple" and not shrinks):
        found = np.floor(at)
    else:
        found = np.ceil(at) if mode in ("ceil", "simple") else np.ceil(at - half)
    return found.astype(np.int64)


def _matrix(
    axis: _Axis, places: NDArray[np.float32], kernel: Kernel, reach: int, antialias: bool, exclude: bool
) -> Tensor:
    """Weights [out, size] of an interpolation; what lies outside is taken from the border or left out."""
    shrink = min(axis.scale, 1.0) if antialias else 1.0
    rows = torch.zeros(axis.out, axis.size, dtype=torch.float64)
    for i, at in enumerate(places.tolist()):
        low = math.floor(at)
        first, last = low + math.floor(-reach / shrink) + 1, low + math.ceil(reach / shrink)
        total = 0.0
        found: dict[int, float] = {}
        for j in range(first, last + 1):
            outside = not 0 <= j < axis.size
            weight = 0.0 if exclude and outside else kernel((j - at) * shrink)
            total += weight
            border = min(max(j, 0), axis.size - 1)
            found[border] = found.get(border, 0.0) + weight
        for j, weight in found.items():
            rows[i, j] = weight / total if (antialias or exclude) and total else weight
    return rows


@op("Resize", "Upsample")
def _resize(
    site: Site,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str | None = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str | None = None,
) -> Tensor:
    """Interpolation along one axis after another, each a product with a matrix of weights.

    Before operator set 11 (and in Upsample) the scales come second and coordinates are asymmetric. Where the standard
    leaves room this is as in ONNX Runtime: sizes and places are computed in 32 bits, nothing happens to an axis whose
    scale is 1 (with ``antialias``: whose size stays), nor to a tensor whose sizes all stay.
    """
    old = site.node.op == "Upsample" or site.opset < 11
    if old:
        scales, roi = roi, None
    how = coordinate_transformation_mode or ("asymmetric" if old else "half_pixel")
    rounding = nearest_mode or ("simple" if old else "round_prefer_floor")
    where = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    if sizes:
        ratios = [float(Single(n) / Single(x.shape[a])) for n, a in zip(sizes, where, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            ratio = min(ratios) if keep_aspect_ratio_policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(where)
            sizes = [math.floor(Single(x.shape[a]) * Single(ratio) + 0.5) for a in where]
        outs = list(sizes)
    elif scales is not None and scales.numel():
        ratios = scales.double().tolist()
        outs = [int(Single(x.shape[a]) * Single(r)) for a, r in zip(where, ratios, strict=True)]
    else:
        raise site.refuse("it has neither scales nor sizes")
    corners = (
        roi.double().tolist()
        if roi is not None and how == "tf_crop_and_resize"
        else [0.0] * len(where) + [1.0] * len(where)
    )
    if all(n == x.shape[a] for n, a in zip(outs, where, strict=True)):
        return x
    kind = x.dtype
    wide = x if kind.is_floating_point else x.float()
    outside: Tensor | None = None
    for k, a in enumerate(where):
        axis = _Axis(x.shape[a], outs[k], ratios[k], corners[k], corners[k + len(where)])
        if axis.scale == 1.0 or (antialias and axis.out == axis.size):
            continue
        places = _positions(how, axis)
        wide = _along(wide, a, axis, places, mode, rounding, cubic_coeff_a, bool(antialias), bool(exclude_outside))
        if how == "tf_crop_and_resize":
            beyond = torch.from_numpy((places < 0) | (places > axis.size - 1)).to(x.device)
            beyond = beyond.reshape([-1 if j == a else 1 for j in range(x.ndim)])
            outside = beyond if outside is None else outside | beyond
    if outside is not None:
        wide = torch.where(outside, torch.full_like(wide, extrapolation_value), wide)
    if not kind.is_floating_point and mode != "nearest":
        wide = (wide.round() if antialias else wide.trunc()).clamp(*_bounds(kind))
    return wide.to(kind)  # under autocast a product is narrower


def _bounds(kind: torch.dtype) -> tuple[int, int]:
    return torch.iinfo(kind).min, torch.iinfo(kind).max


def _along(
    x: Tensor,
    a: int,
    axis: _Axis,
    places: NDArray[np.float32],
    mode: str,
    rounding: str,
    cubic: float,
    antialias: bool,
    exclude: bool,
) -> Tensor:
    if mode == "nearest":
        index = _nearest(rounding, places, axis.scale < 1).clip(0, axis.size - 1)
        return x.index_select(a, torch.from_numpy(index).to(x.device))
    kernel, reach = (_cubic(cubic), 2) if mode == "cubic" else (_linear, 1)
    weights = _matrix(axis, places, kernel, reach, antialias, exclude).to(x.dtype).to(x.device)
    return torch.matmul(x.movedim(a, -1), weights.t()).movedim(-1, a)


@op("GridSample", "com.microsoft::GridSample")
def _grid_sample(
    site: Site, x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str | None = None, padding_mode: str = "zeros"
) -> Tensor:
    """Values at positions given from -1 to 1."""
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode or "linear", mode or "")
    if x.ndim not in (4, 5) or (x.ndim == 5 and kind == "bicubic"):
        raise site.refuse(f"it samples a tensor of {counted(x.ndim, 'axis')} with the mode '{kind}'")
    return F.grid_sample(x, grid.to(x.dtype), kind, padding_mode, bool(align_corners))


@op("AffineGrid")
def _affine_grid(theta: Tensor, size: Ints, *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, size, bool(align_corners))


@op("RoiAlign")
def _roi_align(
    site: Site,
    x: Tensor,
    rois: Tensor,
    batch: Ints,
    *,
    coordinate_transformation_mode: str | None = None,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Mean (or maximum) of points sampled in each cell of a grid over each region."""
    half = (
        coordinate_transformation_mode or ("half_pixel" if site.opset >= 16 else "output_half_pixel")
    ) == "half_pixel"
    height, width = x.shape[2:]
    found = []
    for k, number in enumerate(batch):
        left, top, right, bottom = (rois[k].double() * spatial_scale - (0.5 if half else 0.0)).tolist()
        tall, wide = bottom - top, right - left
        if not half:
            tall, wide = max(tall, 1.0), max(wide, 1.0)
        cell_y, cell_x = tall / output_height, wide / output_width
        count_y = sampling_ratio if sampling_ratio > 0 else math.ceil(cell_y)
        count_x = sampling_ratio if sampling_ratio > 0 else math.ceil(cell_x)
        ys = _samples(top, cell_y, count_y, output_height, height)
        xs = _samples(left, cell_x, count_x, output_width, width)
        corners = []
        for y, wy in ys:
            for xx, wx in xs:
                weight = (wy[:, None] * wx[None, :]).to(x.dtype).to(x.device)
                corners.append(x[number][:, y.to(x.device)][:, :, xx.to(x.device)] * weight)
        cells = [c.reshape(-1, output_height, count_y, output_width, count_x) for c in corners]
        if mode == "max":
            best = torch.stack(cells).amax(0)
            found.append(best.amax((2, 4)))
        else:
            found.append(torch.stack(cells).sum(0).sum((2, 4)) / max(count_y * count_x, 1))
    return torch.stack(found) if found else x.new_zeros(0, x.shape[1], output_height, output_width)


def _samples(start: float, cell: float, count: int, cells: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """(index, weight) of both neighbours of every point along an axis."""
    points = torch.arange(cells * count, dtype=torch.float64)
    at = start + (points // max(count, 1)) * cell + (points % max(count, 1) + 0.5) * cell / max(count, 1)
    inside = ((at >= -1) & (at <= size)).double()
    at = at.clamp(min=0)
    low = at.floor().clamp(max=size - 1)
    at = torch.where(low >= size - 1, low, at)
    high = (low + 1).clamp(max=size - 1)
    share = at - low
    return [(low.long(), (1 - share) * inside), (high.long(), share * inside)]


@op("NonMaxSuppression")
def _non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Ints | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """(batch, class, box) of the boxes kept, the best first, each hiding those it overlaps."""
    limit = most[0] if most else 0
    threshold = 0.0 if overlap is None else float(overlap)
    held = boxes.detach().double().cpu()
    if center_point_box:
        middle, size = held[..., :2], held[..., 2:]
        held = torch.cat([middle - size / 2, middle + size / 2], -1)
    else:
        held = torch.cat([torch.minimum(held[..., :2], held[..., 2:]), torch.maximum(held[..., :2], held[..., 2:])], -1)
    rows = []
    for n in range(scores.shape[0]):
        area = (held[n, :, 2] - held[n, :, 0]) * (held[n, :, 3] - held[n, :, 1])
        for c in range(scores.shape[1]):
            values = scores[n, c].detach().double().cpu()
            order = torch.sort(values, descending=True, stable=True)[1]
            alive = torch.ones(len(values), dtype=torch.bool) if least is None else values > float(least)
            taken = 0
            for k in order.tolist():
                if taken >= limit or not alive[k]:
                    continue
                rows.append([n, c, k])
                taken += 1
                edge = torch.minimum(held[n, :, 2:], held[n, k, 2:]) - torch.maximum(held[n, :, :2], held[n, k, :2])
                common = edge.clamp(min=0).prod(1)
                union = area + area[k] - common
                alive &= ~(common > threshold * union)
    return torch.tensor(rows, dtype=torch.int64, device=boxes.device).reshape(-1, 3)
