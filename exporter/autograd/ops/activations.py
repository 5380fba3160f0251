"""Activation functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd.registry import Site, op

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
_ONE_AXIS_OPSET = 13


@op("Relu")
def _relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@op("Sigmoid")
def _sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@op("LeakyRelu")
def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@op("PRelu")
def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@op("Elu")
def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op("Celu")
def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@op("Selu")
def _selu(x: Tensor, *, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA) -> Tensor:
    return gamma * F.elu(x, alpha)


@op("Softplus")
def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


@op("Softsign")
def _softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


@op("HardSigmoid")
def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("HardSwish")
def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


@op("Mish")
def _mish(x: Tensor) -> Tensor:
    return F.mish(x)


@op("Swish")
def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@op("com.microsoft::QuickGelu")
def _quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@op("com.microsoft::ScaledSiLU")
def _scaled_silu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(alpha * x)


@op("SwiGLU")
def _swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return a * torch.sigmoid(alpha * a) * b


@op("ThresholdedRelu")
def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op("Shrink")
def _shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    low, high = x < -lambd, x > lambd
    return torch.where(low, x + bias, torch.where(high, x - bias, torch.zeros_like(x))).to(x.dtype)


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution's probability of less than x."""
    return F.gelu(x, approximate=approximate)


@op("com.microsoft::Gelu")
def _gelu_exact(x: Tensor) -> Tensor:
    return F.gelu(x)


@op("com.microsoft::BiasGelu")
def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@op("com.microsoft::FastGelu")
def _fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("Softmax")
def _softmax(site: Site, x: Tensor, *, axis: int | None = None) -> Tensor:
    return _over(site, x, axis, torch.softmax)


@op("LogSoftmax")
def _log_softmax(site: Site, x: Tensor, *, axis: int | None = None) -> Tensor:
    return _over(site, x, axis, torch.log_softmax)


@op("Hardmax")
def _hardmax(site: Site, x: Tensor, *, axis: int | None = None) -> Tensor:
    def hard(values: Tensor, dim: int) -> Tensor:
        first = values.argmax(dim, keepdim=True)
        return torch.zeros_like(values).scatter(dim, first, 1)

    return _over(site, x, axis, hard)


def _over(site: Site, x: Tensor, axis: int | None, function: object) -> Tensor:
    """Before operator set 13 everything from the axis on is one axis."""
    run = function
    assert callable(run)
    if site.opset >= _ONE_AXIS_OPSET:
        result: Tensor = run(x, -1 if axis is None else axis)
        return result
    at = (1 if axis is None else axis) % max(x.ndim, 1)
    flat = x.reshape(math.prod(x.shape[:at]), -1)
    found: Tensor = run(flat, 1)
    return found.reshape(x.shape)
