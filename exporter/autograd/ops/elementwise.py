"""Arithmetic, comparisons and logic, element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from exporter.autograd.dtypes import UNSIGNED
from exporter.autograd.registry import Site, op

Binary = Callable[..., Tensor]
Unary = Callable[..., Tensor]


def widened(x: Tensor) -> Tensor:
    """Unsigned integers of more than a byte as int64, which torch computes with."""
    return x.to(torch.int64) if x.dtype in UNSIGNED else x


def root(x: Tensor, power: int = 2) -> Tensor:
    """The root of numbers. At zero, where its derivative is infinite, that is taken for zero: so is that of a norm."""
    zero = x == 0
    safe = torch.where(zero, torch.ones_like(x), x)
    return torch.where(zero, torch.zeros_like(x), safe.sqrt() if power == 2 else safe.pow(1 / power))


def _unary(name: str, function: Unary) -> None:
    def run(x: Tensor) -> Tensor:
        result = function(widened(x))
        return result if result.dtype == torch.bool else result.to(x.dtype)

    op(name)(run)


def _binary(name: str, function: Binary, *, same: bool = True) -> None:
    """``same``: the result has the type of the first operand."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        result = function(widened(a), widened(b))
        return result.to(a.dtype) if same else result

    op(name)(run)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return torch.pow(a, b.to(a.dtype))
    if b.is_floating_point():
        return torch.pow(a.to(torch.float64), b.to(torch.float64))
    return torch.pow(a, b)


def _plus(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def _minus(a: Tensor, b: Tensor) -> Tensor:
    return a - b


def _times(a: Tensor, b: Tensor) -> Tensor:
    return a * b


_UNARY: dict[str, Unary] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Ceil": torch.ceil,
    "Floor": torch.floor,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sqrt": root,
    "Exp": torch.exp,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Erf": torch.erf,
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "IsNaN": torch.isnan,
}
_ARITHMETIC: dict[str, Binary] = {
    "Add": _plus,
    "Sub": _minus,
    "Mul": _times,
    "Div": _divided,
    "Pow": _power,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_LOGIC: dict[str, Binary] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}

for _name, _function in _UNARY.items():
    _unary(_name, _function)
for _name, _function in _ARITHMETIC.items():
    _binary(_name, _function)
for _name, _function in _LOGIC.items():
    _binary(_name, _function, same=False)


@op("Mod")
def _mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    function = torch.fmod if fmod else torch.remainder
    return function(widened(a), widened(b)).to(a.dtype)


@op("BitShift")
def _bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    left, by = a.to(torch.int64), b.to(torch.int64)
    return (left << by if direction == "LEFT" else left >> by).to(a.dtype)


@op("IsInf")
def _is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    x = x.float() if x.element_size() == 1 else x
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


def _greatest(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(widened(a), widened(b)).to(a.dtype)


def _least(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(widened(a), widened(b)).to(a.dtype)


@op("Max")
def _max(*xs: Tensor) -> Tensor:
    return reduce(_greatest, xs)


@op("Min")
def _min(*xs: Tensor) -> Tensor:
    return reduce(_least, xs)


@op("Sum")
def _sum(*xs: Tensor) -> Tensor:
    return reduce(_plus, xs)


@op("Mean")
def _mean(*xs: Tensor) -> Tensor:
    return reduce(_plus, xs) / len(xs)


@op("Where")
def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``condition ? x : y``; the gradient of what is not chosen is zero even where it is not finite."""
    return torch.where(condition, widened(x), widened(y)).to(x.dtype)


@op("Clip")
def _clip(
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    """Bounds are inputs from operator set 11 on, attributes before; where they cross, the upper one holds."""
    result = widened(x)
    low = torch.tensor(min, dtype=x.dtype, device=x.device) if min is not None else low
    high = torch.tensor(max, dtype=x.dtype, device=x.device) if max is not None else high
    if low is not None:
        result = torch.maximum(result, widened(low))
    if high is not None:
        result = torch.minimum(result, widened(high))
    return result.to(x.dtype)


@op("Identity")
def _identity(x: Tensor) -> Tensor:
    return x


@op("com.microsoft::GatedAdd")
def _gated_add(a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
    return a + b * gate


@op("ai.onnx.ml::Binarizer")
def _binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    return (x > threshold).to(x.dtype)


@op("Dropout")
def _dropout(
    site: Site,
    x: Tensor,
    share: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    ratio: float = 0.5,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The identity, as in inference; a node that asks for training mode draws a mask."""
    part = ratio if share is None else float(share)
    if training_mode is not None and bool(training_mode) and part > 0:
        generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
        kept = torch.rand(x.shape, generator=generator, device=x.device) >= part
        return torch.where(kept, x / (1 - part), torch.zeros_like(x)), kept
    mask_type = torch.bool if site.opset >= 10 else x.dtype
    return x, torch.ones(x.shape, dtype=mask_type, device=x.device)


@op("Det")
def _det(x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.det(x)
    return found
