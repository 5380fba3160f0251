"""Multiply-accumulates of a node, from its operator and the shapes it ran with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import NodeProto

Shape = tuple[int, ...]

_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
"""Operators, and which input holds the kernel of shape (out channels, in channels of a group, window)."""
_MATRICES = {
    "MatMul": 1,
    "MatMulInteger": 1,
    "FusedMatMul": 1,
    "FusedMatMulActivation": 1,
    "QLinearMatMul": 3,
    "Gemm": 1,
    "FusedGemm": 1,
    "QGemm": 3,
    "DynamicQuantizeMatMul": 1,
    "MatMulIntegerToFloat": 1,
}
"""Operators whose every output sums over the last axis of the first input (the first, where it is transposed)."""
_RECURRENT = ("LSTM", "GRU", "RNN")
_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")


def macs_of(node: NodeProto, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None]) -> int:
    """Multiply-accumulates of one run of a node; 0 for one that multiplies no matrices, or whose shapes are not known.

    A convolution takes (elements of the output) x (elements of a kernel); a matrix product (elements of the output) x
    (length of the sum); a recurrent layer (steps x batch) x (elements of its matrices); attention that multiplies
    queries, keys and values takes two products over the positions.

    Args:
        node: the node.
        inputs, outputs: shapes by position; None for one that is left out or not known.
    """
    op = node.op_type
    out = outputs[0] if outputs else None
    first = inputs[0] if inputs else None
    if first is None or out is None:
        return 0
    if op in _CONVOLUTIONS:
        kernel = _at(inputs, _CONVOLUTIONS[op])
        return math.prod(out) * math.prod(kernel[1:]) if kernel else 0
    if op == "ConvTranspose":
        kernel = _at(inputs, 1)
        return math.prod(first) * math.prod(kernel[1:]) if kernel else 0
    if op in _MATRICES or op == "MatMulNBits":
        return math.prod(out) * _summed(node, first)
    if op in _RECURRENT:
        return _recurrent(first, inputs)
    if op == "Einsum":
        return _einsum(node, inputs)
    return _attention(node, inputs) if op in _ATTENTION else 0


def _at(shapes: Sequence[Shape | None], place: int) -> Shape | None:
    return shapes[place] if place < len(shapes) else None


def _summed(node: NodeProto, first: Shape) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return first[-2] if transposed and len(first) > 1 else first[-1] if first else 1


def _recurrent(first: Shape, inputs: Sequence[Shape | None]) -> int:
    matrices = [s for s in (_at(inputs, 1), _at(inputs, 2)) if s]
    return math.prod(first[:2]) * sum(math.prod(s) for s in matrices)


def _einsum(node: NodeProto, inputs: Sequence[Shape | None]) -> int:
    equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if "." in equation or len(terms) < 2 or len(terms) != len(inputs):
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        sizes.update(zip(term, shape or (), strict=False))
    return math.prod(sizes.values())


def _attention(node: NodeProto, inputs: Sequence[Shape | None]) -> int:
    """Scores and their use: two products of (queries x keys) x width. Fused projections are counted where they are."""
    query, key, value = (_at(inputs, k) for k in range(3))
    if not query or len(query) not in (3, 4):
        return 0
    if node.domain == "com.microsoft" and node.op_type == "Attention":  # input, weights (in, q + k + v), bias
        batch, length, _ = query
        width = key[1] // 3 if key else 0
        return batch * length * math.prod(key or (0,)) + 2 * batch * length * length * width
    keys = (key or query)[-2] if len(query) == 4 else (key or query)[1]
    queries = math.prod(query)  # batch x queries x width, heads wherever they are
    widths = (value or key or query)[-1] / max((key or query)[-1], 1)
    return round(queries * keys * (1 + widths))
