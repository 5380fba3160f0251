"""Operators that make tensors: constants, ranges, random numbers, windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from exporter.autograd.dtypes import to_tensor, torch_type
from exporter.autograd.registry import Ints, Site, Value, op


@op("Constant")
def _constant(
    site: Site,
    *,
    value: Any = None,
    value_int: int | None = None,
    value_ints: list[int] | None = None,
    value_float: float | None = None,
    value_floats: list[float] | None = None,
    value_string: str | None = None,
    value_strings: list[bytes] | None = None,
    sparse_value: Any = None,
) -> Value:
    """Constants that the graph keeps as nodes."""
    if value is not None:
        return to_tensor(onnx.numpy_helper.to_array(value))
    for given, dtype in (
        (value_int, np.int64),
        (value_ints, np.int64),
        (value_float, np.float32),
        (value_floats, np.float32),
    ):
        if given is not None:
            return to_tensor(np.array(given, dtype))
    raise site.refuse("it holds text or a sparse tensor")


@op("ConstantOfShape")
def _constant_of_shape(site: Site, shape: Ints, *, value: Any = None) -> Tensor:
    filler = torch.zeros(1) if value is None else to_tensor(onnx.numpy_helper.to_array(value))
    return filler.reshape(()).to(site.device).expand(shape).clone()


@op("Range", "com.microsoft::Range")
def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... before limit."""
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((last - first) / step), 0)
    steps = torch.arange(count, device=start.device)
    return start.reshape(()) + (steps.to(start.dtype) * delta.reshape(())).to(start.dtype)


def _drawn(site: Site, seed: float | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator(site.device).manual_seed(int(np.float32(seed).view(np.int32)))


def _typed(site: Site, x: Tensor, number: int | None, like: torch.dtype) -> Tensor:
    dtype = like if number is None else torch_type(number)
    if dtype is None:
        raise site.refuse(f"torch has no element type for ONNX's number {number}")
    return x.to(dtype)


def _normal(site: Site, shape: Any, mean: float, scale: float, seed: float | None) -> Tensor:
    return torch.randn(tuple(shape), generator=_drawn(site, seed), device=site.device) * scale + mean


def _uniform(site: Site, shape: Any, low: float, high: float, seed: float | None) -> Tensor:
    return torch.rand(tuple(shape), generator=_drawn(site, seed), device=site.device) * (high - low) + low


@op("RandomNormal")
def _random_normal(
    site: Site, *, shape: list[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return _typed(site, _normal(site, shape, mean, scale, seed), dtype, torch.float32)


@op("RandomNormalLike")
def _random_normal_like(
    site: Site, x: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return _typed(site, _normal(site, x.shape, mean, scale, seed), dtype, x.dtype)


@op("RandomUniform")
def _random_uniform(
    site: Site, *, shape: list[int], dtype: int = 1, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    return _typed(site, _uniform(site, shape, low, high, seed), dtype, torch.float32)


@op("RandomUniformLike")
def _random_uniform_like(
    site: Site, x: Tensor, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    return _typed(site, _uniform(site, x.shape, low, high, seed), dtype, x.dtype)


@op("Bernoulli")
def _bernoulli(site: Site, x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    return _typed(site, _uniform(site, x.shape, 0.0, 1.0, seed) < x, dtype, x.dtype)


@op("Multinomial")
def _multinomial(site: Site, x: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Tensor:
    drawn = torch.multinomial(torch.softmax(x.float(), -1), sample_size, replacement=True, generator=_drawn(site, seed))
    return _typed(site, drawn, dtype, torch.int32)


def _window(site: Site, size: Ints, number: int, periodic: int, terms: tuple[float, ...]) -> Tensor:
    """a0 - a1 cos(2 pi n / N) + a2 cos(4 pi n / N) ..."""
    count = size[0]
    n = torch.arange(count, dtype=torch.float64)
    over = count if periodic else max(count - 1, 1)
    wave = sum((-1) ** k * a * torch.cos(2 * math.pi * k * n / over) for k, a in enumerate(terms))
    assert isinstance(wave, Tensor)
    return _typed(site, wave.to(site.device), number, torch.float32)


@op("HannWindow")
def _hann(site: Site, size: Ints, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(site, size, output_datatype, periodic, (0.5, 0.5))


@op("HammingWindow")
def _hamming(site: Site, size: Ints, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(site, size, output_datatype, periodic, (25 / 46, 21 / 46))


@op("BlackmanWindow")
def _blackman(site: Site, size: Ints, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(site, size, output_datatype, periodic, (0.42, 0.5, 0.08))


@op("MelWeightMatrix")
def _mel(
    site: Site, bins: Ints, length: Ints, rate: Ints, low: Tensor, high: Tensor, *, output_datatype: int = 1
) -> Tensor:
    """Triangles that are evenly spaced on the mel scale, as columns over the bins of a spectrum."""
    spectrum = length[0] // 2 + 1

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    bottom, top = mel(float(low)), mel(float(high))
    step = (top - bottom) / (bins[0] + 2)
    hertz = [700 * (10 ** ((bottom + k * step) / 2595) - 1) for k in range(bins[0] + 2)]
    at = [math.floor((length[0] + 1) * h / rate[0]) for h in hertz]
    weights = torch.zeros(spectrum, bins[0])
    for k in range(bins[0]):
        first, peak, last = at[k : k + 3]
        if peak == first:
            weights[peak, k] = 1
        else:
            for j in range(first, peak + 1):
                weights[j, k] = (j - first) / (peak - first)
        if last > peak:
            for j in range(peak, last):
                weights[j, k] = (last - j) / (last - peak)
    return _typed(site, weights.to(site.device), output_datatype, torch.float32)
