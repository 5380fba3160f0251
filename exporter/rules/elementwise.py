"""Operators that work element by element: output slot = input slot, and the operands' slots are tied."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed, SlotError


def broadcast(site: Site, operands: Sequence[Sequence[Axis]], sizes: Sequence[int]) -> list[Axis]:
    """Tie operands under numpy broadcasting and return the slots of the result.

    Axes are matched from the right. An axis of size one meets every slot of the others and is tied to none.
    """
    result: list[Axis] = []
    rank = len(sizes)
    for k, size in enumerate(sizes):
        present = [o[k - rank] for o in operands if len(o) >= rank - k]
        wide: list[Axis] = []
        lead: Axis = Fixed(size, ONE)
        for axis in present:
            site.mention(axis)
            if axis.size == 1:
                continue
            if axis.size != size:
                own = [a.size for a in present if a.size != 1]
                raise SlotError(f"operands of sizes {own} do not broadcast to {size}")
            # an operand with ids of its own carries on; a Fixed one would hide the ids behind it
            if not wide or (isinstance(lead, Fixed) and not isinstance(axis, Fixed)):
                lead = axis
            wide.append(axis)
        for axis in wide:
            if axis is not lead:
                site.facts.tie(lead, axis)
        result.append(lead)
    return result


@rule(
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitCast",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "ai.onnx.ml::Binarizer",
    "com.microsoft::FastGelu",
    "com.microsoft::Gelu",
    "com.microsoft::QuickGelu",
    "com.microsoft::ScaledSiLU",
)
def unary(site: Site) -> None:
    """y[i] = f(x[i]): every slot passes through."""
    axes = site.axes(0)
    if site.has(1):  # FastGelu's bias, along the last axis
        axes = broadcast(site, [axes, site.axes(1)], site.out_shape(0))
    site.give(0, axes)


@rule("Clip", "CastLike")
def first_only(site: Site) -> None:
    """y[i] = f(x[i]; scalars): every slot passes through."""
    site.give(0, site.axes(0))


@rule("Dropout")
def dropout(site: Site) -> None:
    """Identity in a deployed model; the mask has x's slots."""
    for o in range(2):
        if site.has_output(o):
            site.give(o, site.axes(0))


@rule(
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "SwiGLU",
    "Where",
    "Xor",
    "com.microsoft::BiasGelu",
    "com.microsoft::GatedAdd",
)
def n_ary(site: Site) -> None:
    """y[i] = f(a[i], b[i], ...) with broadcasting: the operands' slots are tied."""
    operands = [site.axes(i) for i in range(len(site.node.inputs)) if site.has(i)]
    site.give(0, broadcast(site, operands, site.out_shape(0)))
