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
    "TransposeMatMul": 1,
    "QLinearMatMul": 3,
    "Gemm": 1,
    "FusedGemm": 1,
    "QGemm": 3,
    "DynamicQuantizeMatMul": 1,
    "MatMulIntegerToFloat": 1,
}
"""Operators whose every output sums over the last axis of the first input (the first, where it is transposed)."""
_RECURRENT = ("LSTM", "GRU", "RNN")
_ATTENTION = {"Attention": 4, "MultiHeadAttention": 6, "GroupQueryAttention": 3}
"""Operators, and which input holds the keys of past positions, [..., positions, head size]."""
_PROJECTING = {"Attention": 4, "QAttention": 8}
"""The same of those that make queries, keys and values with a second input, (in, queries + keys + values)."""


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
    if first is not None and op in _RECURRENT:  # its first output may be left out
        return _recurrent(first, inputs)
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
    if op == "Einsum":
        return _einsum(node, inputs)
    if op == "MoE":
        return _experts(node, first, inputs)
    if node.domain == "com.microsoft" and op in _PROJECTING:
        return _projecting(node, inputs, out)
    return _attention(node, inputs, out) if op in _ATTENTION else 0


def _at(shapes: Sequence[Shape | None], place: int) -> Shape | None:
    return shapes[place] if place < len(shapes) else None


def _summed(node: NodeProto, first: Shape) -> int:
    given = {a.name for a in node.attribute if a.name in ("transA", "transBatchA") and a.i}
    if "transA" in given and len(first) > 1:
        return first[0] if "transBatchA" in given else first[-2]
    return first[-1] if first else 1


def _recurrent(first: Shape, inputs: Sequence[Shape | None]) -> int:
    matrices = [s for s in (_at(inputs, 1), _at(inputs, 2)) if s]
    return math.prod(first[:2]) * sum(math.prod(s) for s in matrices)


def _experts(node: NodeProto, first: Shape, inputs: Sequence[Shape | None]) -> int:
    """Every row goes through the matrices [experts, out, in] of ``k`` experts."""
    chosen = next((a.i for a in node.attribute if a.name == "k"), 1)
    matrices = [s for s in (_at(inputs, place) for place in (2, 4, 6)) if s]
    return chosen * math.prod(first[:-1]) * sum(math.prod(s[1:]) for s in matrices)


def _einsum(node: NodeProto, inputs: Sequence[Shape | None]) -> int:
    """One for each combination of the letters' values; the axes of an ellipsis are counted from behind."""
    equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) < 2 or len(terms) != len(inputs):
        return 0
    sizes: dict[str | int, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        if shape is None:
            return 0
        front, dots, back = term.partition("...")
        between = range(len(front) + len(back) - len(shape), 0) if dots else ()
        for letter, size in zip((*front, *between, *back), shape, strict=False):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return math.prod(sizes.values())


def _attention(node: NodeProto, inputs: Sequence[Shape | None], out: Shape) -> int:
    """Scores and their use: every element of queries and results meets every position. Projections are nodes of their
    own; queries may hold keys and values too.
    """
    query, key, past = (_at(inputs, k) for k in (0, 1, _ATTENTION[node.op_type]))
    if not query or len(query) not in (3, 4):
        return 0
    keys = (key or query)[-2]
    if past:
        shared = node.op_type == "MultiHeadAttention" and _at(inputs, 8) is not None  # room for all positions
        keys = past[-2] if shared else past[-2] + keys
    return keys * ((math.prod(query) if key else math.prod(out)) + math.prod(out))


def _projecting(node: NodeProto, inputs: Sequence[Shape | None], out: Shape) -> int:
    """Attention of what it projects itself."""
    query, weight, past = (_at(inputs, k) for k in (0, 1, _PROJECTING[node.op_type]))
    if not query or not weight:
        return 0
    given = {a.name: a for a in node.attribute}
    sizes = given["qkv_hidden_sizes"].ints if "qkv_hidden_sizes" in given else ()
    keys = query[1]
    if past:
        shared = "past_present_share_buffer" in given and given["past_present_share_buffer"].i
        keys = past[-2] if shared else past[-2] + keys
    rows = math.prod(query[:2])
    return rows * (math.prod(weight) + keys * ((sizes[0] if sizes else weight[1] // 3) + out[-1]))
