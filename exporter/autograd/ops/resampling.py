"""Images at other sizes and positions: Resize, GridSample, RoiAlign; and boxes that overlap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.registry import Ints, Site, op
from runtime.nouns import counted

Position = Callable[[int], float]
Kernel = Callable[[float], float]


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized: sizes, scale, and the part of the input that is taken (for crops)."""

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def _position(mode: str, axis: _Axis) -> Position:
    """The place in the input of an element of the output."""
    size, out, scale = axis.size, axis.out, axis.scale
    if mode == "align_corners":
        return lambda i: i * (size - 1) / (scale * size - 1) if out > 1 else 0.0
    if mode == "asymmetric":
        return lambda i: i / scale
    if mode == "pytorch_half_pixel":
        return lambda i: (i + 0.5) / scale - 0.5 if out > 1 else 0.0
    if mode == "half_pixel_symmetric":
        shift = size / 2 * (1 - out / (scale * size))
        return lambda i: shift + (i + 0.5) / scale - 0.5
    if mode == "tf_half_pixel_for_nn":
        return lambda i: (i + 0.5) / scale
    if mode == "tf_crop_and_resize":
        if out > 1:
            return lambda i: axis.start * (size - 1) + i * (axis.end - axis.start) * (size - 1) / (out - 1)
        return lambda _: 0.5 * (axis.start + axis.end) * (size - 1)
    return lambda i: (i + 0.5) / scale - 0.5


def _linear(x: float) -> float:
    return max(1 - abs(x), 0.0)


def _cubic(a: float) -> Kernel:
    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    return weight


def _nearest(mode: str, at: float) -> int:
    if mode == "round_prefer_ceil":
        return math.floor(at + 0.5)
    if mode in ("floor", "simple"):
        return math.floor(at)
    return math.ceil(at) if mode == "ceil" else math.ceil(at - 0.5)


def _matrix(axis: _Axis, place: Position, kernel: Kernel, reach: int, antialias: bool, exclude: bool) -> Tensor:
    """Weights [out, size] of an interpolation; what lies outside is taken from the border or left out."""
    shrink = min(axis.scale, 1.0) if antialias else 1.0
    rows = torch.zeros(axis.out, axis.size, dtype=torch.float64)
    for i in range(axis.out):
        at = place(i)
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

    Before operator set 11 (and in Upsample) the scales come second and coordinates are asymmetric.
    """
    old = site.node.op == "Upsample" or site.opset < 11
    if old:
        scales, roi = roi, None
    how = coordinate_transformation_mode or ("asymmetric" if old else "half_pixel")
    rounding = nearest_mode or ("simple" if old else "round_prefer_floor")
    where = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    if sizes:
        ratios = [n / x.shape[a] for n, a in zip(sizes, where, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            ratio = min(ratios) if keep_aspect_ratio_policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(where)
            sizes = [math.floor(x.shape[a] * ratio + 0.5) for a in where]
        outs = list(sizes)
    elif scales is not None and scales.numel():
        ratios = scales.double().tolist()
        outs = [math.floor(x.shape[a] * r) for a, r in zip(where, ratios, strict=True)]
    else:
        raise site.refuse("it has neither scales nor sizes")
    corners = (
        roi.double().tolist()
        if roi is not None and how == "tf_crop_and_resize"
        else [0.0] * len(where) + [1.0] * len(where)
    )
    kind = x.dtype
    wide = x if x.is_floating_point() else x.float()
    outside: Tensor | None = None
    for k, a in enumerate(where):
        axis = _Axis(x.shape[a], outs[k], ratios[k], corners[k], corners[k + len(where)])
        place = _position(how, axis)
        if axis.out == axis.size and axis.scale == 1.0 and how != "tf_crop_and_resize":
            continue
        wide = _along(wide, a, axis, place, mode, rounding, cubic_coeff_a, bool(antialias), bool(exclude_outside))
        if how == "tf_crop_and_resize":
            beyond = torch.tensor([not 0 <= place(i) <= axis.size - 1 for i in range(axis.out)], device=x.device)
            beyond = beyond.reshape([-1 if j == a else 1 for j in range(x.ndim)])
            outside = beyond if outside is None else outside | beyond
    if outside is not None:
        wide = torch.where(outside, torch.full_like(wide, extrapolation_value), wide)
    return wide if kind == wide.dtype else (wide.round().clamp(*_bounds(kind)) if mode != "nearest" else wide).to(kind)


def _bounds(kind: torch.dtype) -> tuple[int, int]:
    return torch.iinfo(kind).min, torch.iinfo(kind).max


def _along(
    x: Tensor,
    a: int,
    axis: _Axis,
    place: Position,
    mode: str,
    rounding: str,
    cubic: float,
    antialias: bool,
    exclude: bool,
) -> Tensor:
    if mode == "nearest":
        index = [min(max(_nearest(rounding, place(i)), 0), axis.size - 1) for i in range(axis.out)]
        return x.index_select(a, torch.tensor(index, dtype=torch.int64, device=x.device))
    kernel, reach = (_cubic(cubic), 2) if mode == "cubic" else (_linear, 1)
    weights = _matrix(axis, place, kernel, reach, antialias, exclude).to(x.dtype).to(x.device)
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
