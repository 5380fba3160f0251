"""Operators that move data: shapes, axes, slices, padding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.registry import Ints, Site, op


@op("Reshape")
def _reshape(
    site: Site, x: Tensor, target: Ints | None = None, *, allowzero: int = 0, shape: list[int] | None = None
) -> Tensor:
    wanted = shape if target is None else target
    if wanted is None:
        raise site.refuse("it has no target shape")
    sizes = [x.shape[k] if n == 0 and not allowzero else n for k, n in enumerate(wanted)]
    if -1 in sizes and x.numel() == 0:
        rest = math.prod(n for n in sizes if n != -1)
        sizes = [0 if n == -1 else n for n in sizes] if rest else sizes
    return x.reshape(sizes)


@op("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


@op("Transpose")
def _transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return x.permute(perm if perm is not None else list(reversed(range(x.ndim))))


@op("Squeeze")
def _squeeze(site: Site, x: Tensor, at: Ints | None = None, *, axes: list[int] | None = None) -> Tensor:
    chosen = axes if at is None else at
    if chosen is None:
        return x.squeeze()
    removed = {a % x.ndim for a in chosen}
    if any(x.shape[a] != 1 for a in removed):
        raise ValueError(f"axes {sorted(removed)} of shape {list(x.shape)} are not all of size one")
    return x.reshape([n for k, n in enumerate(x.shape) if k not in removed])


@op("Unsqueeze")
def _unsqueeze(x: Tensor, at: Ints | None = None, *, axes: list[int] | None = None) -> Tensor:
    chosen = (axes if at is None else at) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


@op("com.microsoft::ExpandDims")
def _expand_dims(x: Tensor, axis: Ints) -> Tensor:
    return x.unsqueeze(axis[0])


@op("Concat")
def _concat(*xs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(xs, axis)


@op("Split")
def _split(
    site: Site,
    x: Tensor,
    parts: Ints | None = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
) -> tuple[Tensor, ...]:
    sizes = split if parts is None else parts
    if sizes is None:
        count, whole = num_outputs or len(site.node.outputs), x.shape[axis]
        step = math.ceil(whole / count)
        sizes = [min(step, max(whole - k * step, 0)) for k in range(count)]
    return torch.split(x, sizes, axis)


@op("Slice")
def _slice(
    x: Tensor,
    first: Ints | None = None,
    last: Ints | None = None,
    at: Ints | None = None,
    by: Ints | None = None,
    *,
    axes: list[int] | None = None,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
) -> Tensor:
    begin, stop = (starts if first is None else first) or [], (ends if last is None else last) or []
    where = (axes if at is None else at) or list(range(len(begin)))
    for axis, start, end, step in zip(where, begin, stop, by or [1] * len(begin), strict=True):
        size = x.shape[axis]
        if step > 0:
            low, high = slice(start, end).indices(size)[:2]
            x = x.narrow(axis, low, max(high - low, 0))
            if step > 1:
                x = x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)]
            continue
        start = min(start, size - 1) if start >= 0 else max(start + size, -1)
        end = max(end + size, -1) if end < 0 else end
        index = torch.arange(start, end, step, device=x.device) if start > end else torch.zeros(0, dtype=torch.int64)
        x = x.index_select(axis, index.to(x.device))
    return x


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@op("Pad", "com.microsoft::Pad")
def _pad(
    site: Site,
    x: Tensor,
    around: Ints | None = None,
    fill: Tensor | None = None,
    at: Ints | None = None,
    *,
    mode: str = "constant",
    pads: list[int] | None = None,
    value: float = 0.0,
) -> Tensor:
    amounts = (pads if around is None else around) or []
    axes = [a % x.ndim for a in at] if at is not None else list(range(x.ndim))
    pairs = {a: (amounts[k], amounts[k + len(axes)]) for k, a in enumerate(axes)}
    for axis, (low, high) in pairs.items():  # negative amounts cut
        start, stop = max(-low, 0), x.shape[axis] - max(-high, 0)
        x = x.narrow(axis, start, stop - start)
    pairs = {a: (max(low, 0), max(high, 0)) for a, (low, high) in pairs.items()}
    if mode == "constant":
        flat = [n for a in reversed(range(x.ndim)) for n in pairs.get(a, (0, 0))]
        number = value if fill is None else fill.reshape(-1)[0].item()
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=int(bool(number))).bool()
        return F.pad(x, flat, value=number)
    if mode not in _MODES:
        raise site.refuse(f"its mode '{mode}' is not implemented")
    for axis, (low, high) in pairs.items():
        if low or high:
            x = x.index_select(axis, _positions(x.shape[axis], low, high, mode).to(x.device))
    return x


def _positions(size: int, low: int, high: int, mode: str) -> Tensor:
    """Which element stands at each position of a padded axis."""
    at = torch.arange(-low, size + high)
    if mode == "edge":
        return at.clamp(0, size - 1)
    if mode == "wrap" or size == 1:
        return at % size
    period = 2 * (size - 1)
    at = at % period
    return torch.where(at < size, at, period - at)


@op("CenterCropPad")
def _center_crop_pad(x: Tensor, shape: Ints, *, axes: list[int] | None = None) -> Tensor:
    for axis, size in zip(axes if axes is not None else range(x.ndim), shape, strict=True):
        axis, have = axis % x.ndim, x.shape[axis]
        if size <= have:
            x = x.narrow(axis, (have - size) // 2, size)
        else:
            low = (size - have) // 2
            flat = [0, 0] * (x.ndim - 1 - axis) + [low, size - have - low]
            x = F.pad(x, flat)
    return x


@op("Tile")
def _tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(repeats)


def _common(one: list[int], other: list[int]) -> list[int]:
    """The shape to which both can be broadcast."""
    rank = max(len(one), len(other))
    left, right = [1] * (rank - len(one)) + one, [1] * (rank - len(other)) + other
    return [b if a == 1 else a for a, b in zip(left, right, strict=True)]


@op("Expand")
def _expand(x: Tensor, shape: Ints) -> Tensor:
    return x.expand(_common(list(x.shape), shape))


@op("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@op("Size")
def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@op("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b, inner = blocksize, c // blocksize**2
    if mode == "DCR":
        parts = x.reshape(n, b, b, inner, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, inner, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, inner, h * b, w * b)


@op("SpaceToDepth")
def _space_to_depth(site: Site, x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    parts = x.reshape(n, c, h // b, b, w // b, b)
    if mode == "DCR":
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(n, c * b * b, h // b, w // b)


@op("Trilu", "com.microsoft::Trilu")
def _trilu(x: Tensor, k: Ints | None = None, *, upper: int = 1) -> Tensor:
    by = k[0] if k else 0
    return torch.triu(x, by) if upper else torch.tril(x, by)


@op("ReverseSequence")
def _reverse_sequence(x: Tensor, lengths: Ints, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    rows = []
    for row, length in zip(x.unbind(batch_axis), lengths, strict=True):
        axis = time_axis if time_axis < batch_axis else time_axis - 1
        head = row.narrow(axis, 0, length).flip(axis)
        rows.append(torch.cat([head, row.narrow(axis, length, row.shape[axis] - length)], axis))
    return torch.stack(rows, batch_axis)


@op("EyeLike")
def _eye_like(site: Site, x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    from exporter.autograd.ops.conversion import cast

    ones = torch.ones(x.shape, device=x.device)
    found = torch.triu(torch.tril(ones, k), k)
    return cast(site, found, dtype) if dtype is not None else found.to(x.dtype)


@op("Compress")
def _compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    chosen = condition.nonzero().reshape(-1)
    return x.reshape(-1)[chosen] if axis is None else x.index_select(axis, chosen)


@op("NonZero")
def _nonzero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


@op("Unique")
def _unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat = x.reshape(-1) if axis is None else x
    dim = 0 if axis is None else axis
    _, inverse, counts = torch.unique(flat.detach(), sorted=True, return_inverse=True, return_counts=True, dim=dim)
    first = torch.full((len(counts),), inverse.numel(), dtype=torch.int64, device=x.device)
    first = first.scatter_reduce(0, inverse, torch.arange(inverse.numel(), device=x.device), "amin")
    if not sorted:
        order = first.argsort()
        rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
        inverse, counts, first = rank[inverse], counts[order], first[order]
    return flat.index_select(dim, first), first, inverse, counts
