"""Which operators multiply an activation by a weight, and along which axis of the weight they sum.

Runs of a pattern lie along that axis: for Conv ``[K, C / g, R, S]`` along C at every kernel position, for a matrix
product along the rows that are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exporter.graph import Node


@dataclass(frozen=True)
class Operand:
    """A weight as an operator reads it.

    Attributes:
        axis: the axis it sums over; None where it cannot be told.
        outputs: axis of the outputs, None where there are several.
        doubt: why the pattern brings nothing there as far as is known; "" where it does.
        scale, zero: inputs that hold the scale and the zero point of codes, where the operator has them.
        coded: axis of the weight along which these vary.
        groups: number of equal parts of ``axis`` that are summed apart.
        packed: whether an element of the constant holds several codes, so that no weight can be made zero by itself.
    """

    axis: int | None
    outputs: int | None
    doubt: str = ""
    scale: int | None = None
    zero: int | None = None
    coded: int = 0
    groups: int = 1
    packed: bool = False


_GROUPED = "a grouped convolution: no sparse kernels of TensorRT are known for it"
_LEFT = "the left operand of a product: no sparse kernels of TensorRT are known for it"
_STACKED = "a stack of matrices: no sparse kernels of TensorRT are known for it"


def operand(node: Node, index: int, rank: int) -> Operand | None:
    """What a node does with its input ``index``, a constant of that rank; None where it is no weight of it."""
    rule = _RULES.get(node.op)
    return rule(node, index, rank) if rule is not None and rank >= 2 else None


Rule = Callable[[Node, int, int], Operand | None]


def _convolution(weight: int, scale: int | None = None, zero: int | None = None) -> Rule:
    def rule(node: Node, index: int, rank: int) -> Operand | None:
        if index != weight or rank < 3:
            return None
        doubt = _GROUPED if int(node.attributes.get("group", 1)) > 1 else ""
        return Operand(1, 0, doubt, scale, zero)

    return rule


def _transposed(node: Node, index: int, rank: int) -> Operand | None:
    doubt = "a transposed convolution: no sparse kernels of TensorRT are known for it"
    groups = int(node.attributes.get("group", 1))
    return Operand(0, 1, doubt, groups=groups) if index == 1 and rank >= 3 else None


Codes = tuple[int | None, int | None]
"""Inputs that hold the scale and the zero point of an operand; None where the operator has none."""


def _product(right: int, codes: Codes = (None, None), left: Codes = (None, None)) -> Rule:
    def rule(node: Node, index: int, rank: int) -> Operand | None:
        if index == right:
            turned = _flag(node, "transB")
            axes = (rank - 1, rank - 2) if turned else (rank - 2, rank - 1)
            return Operand(*axes, "" if rank == 2 else _STACKED, *codes, axes[1])
        if index == 0:
            axes = (rank - 2, rank - 1) if _flag(node, "transA") else (rank - 1, rank - 2)
            return Operand(*axes, _LEFT, *left, axes[1])
        return None

    return rule


def _flag(node: Node, name: str) -> bool:
    value: Any = node.attributes.get(name, 0)
    return bool(value)


def _at(indices: tuple[int, ...], axis: int, outputs: int | None, doubt: str) -> Rule:
    return lambda _node, index, rank: Operand(axis, outputs, doubt) if index in indices and rank > axis else None


def _packed(index: int, doubt: str) -> Rule:
    return lambda _node, i, _rank: Operand(None, None, doubt, packed=True) if i == index else None


def _einsum(_node: Node, index: int, _rank: int) -> Operand | None:
    return Operand(None, None, "an Einsum: no sparse kernels of TensorRT are known for it") if index else None


_RECURRENT = _at((1, 2), 2, 1, "a recurrent layer: no sparse kernels of TensorRT are known for it")

_RULES: dict[str, Rule] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1, None, 3),
    "ConvTranspose": _transposed,
    "Einsum": _einsum,
    "GRU": _RECURRENT,
    "Gemm": _product(1),
    "LSTM": _RECURRENT,
    "MatMul": _product(1),
    "MatMulInteger": _product(1, (None, 3), (None, 2)),
    "QLinearConv": _convolution(3, 4, 5),
    "QLinearMatMul": _product(3, (4, 5), (1, 2)),
    "RNN": _RECURRENT,
    "com.microsoft::Attention": _at((1,), 0, 1, "a fused attention: no sparse kernels of TensorRT are known for it"),
    "com.microsoft::FusedConv": _convolution(1),
    "com.microsoft::FusedGemm": _product(1),
    "com.microsoft::FusedMatMul": _product(1),
    "com.microsoft::MatMulNBits": _packed(1, "packed codes of less than a byte"),
    "com.microsoft::QGemm": _product(3, (4, 5), (1, 2)),
    "com.microsoft::QLinearConv": _convolution(3, 4, 5),
}
