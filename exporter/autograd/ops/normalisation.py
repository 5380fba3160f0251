"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.dtypes import torch_type
from exporter.autograd.ops.elementwise import root
from exporter.autograd.registry import Site, op

_AFFINE_PER_CHANNEL_OPSET = 21
_OUTPUTS_MEAN_OPSET = 14


@op("BatchNormalization")
def _batch_norm(
    site: Site,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> tuple[Tensor, ...]:
    """With the statistics given; in training mode with the batch's, which enter the running ones."""
    if not spatial:
        raise site.refuse("its statistics are per position (spatial = 0)")
    if site.opset < _OUTPUTS_MEAN_OPSET and site.outputs > 1:
        raise site.refuse("it asks for the outputs of training of an old operator set")
    shape = [1, -1] + [1] * (x.ndim - 2)
    others = [k for k in range(x.ndim) if k != 1]
    if not training_mode:
        if x.dtype == scale.dtype == mean.dtype:
            return (F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon),)
        y = (x.float() - mean.reshape(shape)) * (variance + epsilon).rsqrt().reshape(shape)
        return ((y * scale.reshape(shape) + bias.reshape(shape)).to(x.dtype),)
    now = x.mean(others)
    spread = x.var(others, unbiased=False)
    y = (x - now.reshape(shape)) * (spread + epsilon).rsqrt().reshape(shape) * scale.reshape(shape) + bias.reshape(
        shape
    )
    return y.to(x.dtype), mean * momentum + now * (1 - momentum), variance * momentum + spread * (1 - momentum)


@op("InstanceNormalization")
def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    return standardised(x, list(range(2, x.ndim)), epsilon)[0] * scale.reshape(shape) + bias.reshape(shape)


def standardised(x: Tensor, axes: Sequence[int], epsilon: float, centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + epsilon) over some axes, the mean, and one over the deviation."""
    mean = x.mean(list(axes), keepdim=True)
    value = x - mean if centred else x
    inverse = (value.square().mean(list(axes), keepdim=True) + epsilon).rsqrt()
    return value * inverse, mean, inverse


def _stash(site: Site, x: Tensor, number: int) -> Tensor:
    dtype = torch_type(number)
    return x.to(dtype) if dtype is not None and x.dtype in (torch.float16, torch.bfloat16) else x


@op("LayerNormalization")
def layer_norm(
    site: Site,
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, ...]:
    """Over the axes from ``axis`` on."""
    at = axis % x.ndim
    y, mean, inverse = standardised(_stash(site, x, stash_type), range(at, x.ndim), epsilon)
    y = y.to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@op("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(
    site: Site, x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, ...]:
    """Over the axes from ``axis`` on, without taking the mean away."""
    at = axis % x.ndim
    y, _, inverse = standardised(_stash(site, x, stash_type), range(at, x.ndim), epsilon, centred=False)
    return y.to(x.dtype) * scale, inverse


@op("GroupNormalization")
def _group_norm(
    site: Site, x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Scale and bias are per group before operator set 21, per channel from then on."""
    apart = _stash(site, x, stash_type).reshape(x.shape[0], num_groups, -1)
    y = standardised(apart, [2], epsilon)[0].to(x.dtype)
    if site.opset < _AFFINE_PER_CHANNEL_OPSET:
        return (y * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)
    shape = [1, -1] + [1] * (x.ndim - 2)
    return y.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape)


@op("MeanVarianceNormalization")
def _mean_variance(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    over = axes if axes is not None else [0, 2, 3]
    value = x - x.mean(over, keepdim=True)
    return value / (root(value.square().mean(over, keepdim=True)) + 1e-9)


@op("LpNormalization")
def _lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """X divided by its norm; zero where the norm is."""
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else root(x.square().sum(axis, keepdim=True))
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))
