"""What constants in codes stand for: the numbers of a quantized weight or bias, for scores that compare magnitudes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from exporter.graph import Graph, Node
from exporter.tensors import Array

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Holder:
    """Where an operator has the codes of its weight and what turns them into numbers, by input.

    Attributes:
        codes: the codes.
        scale: their scale; None where the sums are multiplied with it later.
        zero: their zero point.
        axis: axis of the weight along which both may vary.
        bias: a bias in codes, whose scale is that of x times that of the weight.
        x_scale: the scale of x.
    """

    codes: int
    scale: int | None
    zero: int
    axis: int
    bias: int | None = None
    x_scale: int = 1


_HOLDERS: dict[str, Holder] = {
    "DequantizeLinear": Holder(0, 1, 2, 1),
    "ConvInteger": Holder(1, None, 3, 0),
    "MatMulInteger": Holder(1, None, 3, -1),
    "QLinearConv": Holder(3, 4, 5, 0, 8),
    "QLinearMatMul": Holder(3, 4, 5, -1),
    "com.microsoft::DequantizeLinear": Holder(0, 1, 2, 1),
    "com.microsoft::DynamicQuantizeMatMul": Holder(1, 2, 3, -1),
    "com.microsoft::GatherBlockQuantized": Holder(0, 2, 3, 1),
    "com.microsoft::MatMulIntegerToFloat": Holder(1, 3, 5, -1),
    "com.microsoft::MatMulNBits": Holder(1, 2, 3, 1),
    "com.microsoft::QAttention": Holder(1, 4, 7, -1),
    "com.microsoft::QGemm": Holder(3, 4, 5, 1, 6),
    "com.microsoft::QLinearConv": Holder(3, 4, 5, 0, 8),
}

_PACKED = ("com.microsoft::GatherBlockQuantized", "com.microsoft::MatMulNBits")


def numbers_of(graph: Graph, name: str) -> Numbers | None:
    """The numbers a constant stands for.

    Args:
        graph: the graph.
        name: of the constant.

    Returns:
        Its values, dequantized as its first user does it; where several share a byte, along a further last axis. None
        for a scale or a zero point, whose size says nothing of a unit, and for what is neither a number nor a code.
    """
    values = graph.array(name)
    if values.dtype.kind not in "fiu" and values.dtype.itemsize > 2:
        return None
    for node, i in graph.users.get(name, ()):
        holder = _HOLDERS.get(node.op)
        if holder is None:
            continue
        if i in (holder.scale, holder.zero):
            return None
        try:
            if i == holder.codes:
                return _dequantized(graph, node, holder, values)
            if i == holder.bias and holder.scale is not None:
                scales = [_constant(graph, node, k) for k in (holder.x_scale, holder.scale)]
                factors = [s.reshape(-1) for s in scales if s is not None]
                return np.asarray(values.astype(np.float64) * np.prod(np.broadcast_arrays(*factors, 1.0), axis=0))
        except (ValueError, TypeError, LookupError, ArithmeticError):  # sizes that do not fit: the codes as they are
            break
    return values.astype(np.float64)


def is_plain(graph: Graph, name: str) -> bool:
    """Say whether a constant holds floating-point numbers that no user takes for codes, scales or zero points."""
    kind = graph.constants[name].data_type
    return kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16) and not any(
        node.op in _HOLDERS for node, _ in graph.users.get(name, ())
    )


def in_blocks(graph: Graph, name: str, axis: int) -> bool:
    """Say whether an entry along an axis of a constant stands for several numbers: a block's scale, packed codes."""
    rank = len(graph.constants[name].dims)
    for node, i in graph.users.get(name, ()):
        holder = _HOLDERS.get(node.op)
        if holder is None:
            continue
        inputs: tuple[int | None, ...] = (holder.scale, holder.zero)
        if node.op in _PACKED:
            inputs, along = (holder.codes, *inputs), int(node.attributes.get("quantize_axis", holder.axis))
        elif node.attributes.get("block_size", 0):
            along = int(node.attributes.get("axis", holder.axis))
        else:
            continue
        if i in inputs and (rank == 1 or axis == along % rank):
            return True
    return False


def _constant(graph: Graph, node: Node, i: int | None) -> Array | None:
    known = i is not None and i < len(node.inputs) and node.inputs[i] in graph.constants
    return graph.array(node.inputs[i]) if known and i is not None else None


def _dequantized(graph: Graph, node: Node, holder: Holder, values: Array) -> Numbers:
    scale, zero = _constant(graph, node, holder.scale), _constant(graph, node, holder.zero)
    operator = node.op.rpartition("::")[2]
    if holder.scale is None:
        scale = _later_scale(graph, node)
    if node.op in _PACKED:
        return _unpacked(node, values, scale)
    axis = holder.axis
    if operator == "DequantizeLinear":
        axis = int(node.attributes.get("axis", 1))
    elif operator == "QGemm" and node.attributes.get("transB", 0):
        axis = 0
    numbers = values.astype(np.float64)
    block = int(node.attributes.get("block_size", 0))
    if zero is not None:
        numbers = numbers - _along(zero, numbers, axis, block)
    if scale is not None:
        numbers = numbers * _along(scale, numbers, axis, block)
    return numbers


def _later_scale(graph: Graph, node: Node) -> Array | None:
    """The scale of a weight whose sums are cast and multiplied with it, or with its product with the scale of x."""
    step: Node | None = node
    for op in ("Cast", "Mul"):
        users = graph.users.get(step.key, ()) if step is not None else ()
        step = users[0][0] if len(users) == 1 and users[0][0].op == op else None
    while step is not None and step.op == "Mul":
        constants = [name for name in step.inputs if name in graph.constants]
        if constants:
            return graph.array(constants[0]).reshape(-1)
        makers = [graph.producer.get(name) for name in step.inputs]
        step = next((m for m in makers if m is not None and m.op == "Mul"), None)
    return None


def _along(parameter: Array, like: Numbers, axis: int, block: int) -> Numbers:
    """A scale or zero point in a shape that broadcasts to the weight's."""
    wide = parameter.astype(np.float64)
    if wide.size == 1:
        return wide.reshape(())
    if block and wide.ndim == like.ndim:
        return np.repeat(wide, block, axis=axis).take(range(like.shape[axis]), axis=axis)
    if wide.ndim == 1:
        shape = [1] * like.ndim
        shape[axis] = -1
        return wide.reshape(shape)
    return wide


def _unpacked(node: Node, values: Array, scale: Array | None) -> Numbers:
    """Blocks of packed codes, their numbers along a last axis: [N, blocks, bytes, 8 / bits] or [rows, bytes, 8 / bits].

    Zero points, packed as well, differ little from the middle of the range, which stands for them.
    """
    packed = values.dtype == np.uint8
    bits = int(node.attributes.get("bits", 4)) if packed else 8
    if bits not in (2, 4, 8):
        raise ValueError(f"{bits} bits per code")
    shifts = np.arange(0, 8, bits)
    numbers = values.astype(np.float64)[..., None]
    if packed:
        numbers = ((values[..., None].astype(np.int64) >> shifts) & ((1 << bits) - 1)).astype(np.float64)
        numbers -= 1 << (bits - 1)
    if scale is None:
        return numbers
    wide = scale.astype(np.float64)
    if node.op.endswith("MatMulNBits"):
        return numbers * wide.reshape(numbers.shape[0], numbers.shape[1], 1, 1)
    per_block = numbers.shape[1] // wide.shape[1]
    return numbers * np.repeat(wide, per_block, axis=1)[..., None]
