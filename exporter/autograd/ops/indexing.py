"""Gathers and scatters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from exporter.autograd.registry import Ints, Site, op


def _from_start(index: Tensor, size: int) -> Tensor:
    """Negative indices count from the end."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


@op("Gather")
def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    at = axis % x.ndim
    index = _from_start(indices, x.shape[at])
    picked = x.index_select(at, index.reshape(-1))
    return picked.reshape([*x.shape[:at], *index.shape, *x.shape[at + 1 :]])


@op("GatherElements")
def _gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _from_start(indices, x.shape[axis]))


@op("GatherND", "com.microsoft::GatherND")
def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = indices.shape[-1]
    batch = list(x.shape[:batch_dims])
    flat = x.reshape(math.prod(batch), *x.shape[batch_dims:])
    rows = indices.reshape(math.prod(batch), -1, depth)
    where = [torch.arange(flat.shape[0], device=x.device)[:, None]]
    where += [_from_start(rows[..., k], flat.shape[1 + k]) for k in range(depth)]
    return flat[tuple(where)].reshape([*indices.shape[:-1], *x.shape[batch_dims + depth :]])


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements", "Scatter")
def _scatter_elements(
    site: Site, x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    index = _from_start(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    if reduction not in _REDUCE:
        raise site.refuse(f"its reduction '{reduction}' is not implemented")
    return x.scatter_reduce(axis, index, updates, _REDUCE[reduction])


@op("ScatterND")
def _scatter_nd(site: Site, x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = indices.shape[-1]
    rest = math.prod(x.shape[depth:])
    flat = x.reshape(-1, rest)
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for k in range(depth):
        place = place * x.shape[k] + _from_start(indices[..., k], x.shape[k])
    index = place.reshape(-1, 1).expand(-1, rest)
    values = updates.reshape(-1, rest)
    if reduction == "none":
        return flat.scatter(0, index, values).reshape(x.shape)
    if reduction not in _REDUCE:
        raise site.refuse(f"its reduction '{reduction}' is not implemented")
    return flat.scatter_reduce(0, index, values, _REDUCE[reduction]).reshape(x.shape)


@op("TensorScatter")
def _tensor_scatter(
    site: Site, past: Tensor, update: Tensor, write: Ints | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """Write a piece into a cache along an axis, at a place of its own for each sample."""
    if mode not in ("linear", "circular"):
        raise site.refuse(f"its mode '{mode}' is not implemented")
    at, size = axis % past.ndim, past.shape[axis]
    starts = torch.tensor(write or [0] * past.shape[0], device=past.device)
    steps = starts[:, None] + torch.arange(update.shape[at], device=past.device)
    steps = steps % size if mode == "circular" else steps
    shape = [1] * past.ndim
    shape[0], shape[at] = steps.shape
    return past.scatter(at, steps.reshape(shape).expand_as(update), update)


@op("OneHot")
def _one_hot(site: Site, indices: Tensor, depth: Ints, values: Tensor, *, axis: int = -1) -> Tensor:
    """Indices outside the range select nothing."""
    off, on = values[0], values[1]
    whole = indices.long()
    within = (whole >= -depth[0]) & (whole < depth[0])
    place = torch.arange(depth[0], device=indices.device)
    hot = (_from_start(whole, depth[0]).unsqueeze(-1) == place) & within.unsqueeze(-1)
    rank = indices.ndim + 1
    return torch.where(hot, on, off).movedim(-1, axis % rank)


@op("ai.onnx.ml::ZipMap")
def _zip_map(
    x: Tensor, *, classlabels_int64s: Ints | None = None, classlabels_strings: list[bytes] | None = None
) -> Tensor:
    """Its columns in the order of the classes, as backends hand out a dictionary for each sample."""
    labels: list[Any] = list(classlabels_int64s or classlabels_strings or [])
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return x.reshape(-1, x.shape[-1])[:, order]


@op("ai.onnx.ml::ArrayFeatureExtractor")
def _feature_extractor(x: Tensor, indices: Tensor) -> Tensor:
    picked = x.index_select(x.ndim - 1, indices.reshape(-1).long())
    return picked.reshape(1, -1) if x.ndim == 1 else picked
