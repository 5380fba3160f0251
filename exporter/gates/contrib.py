"""Fused operators of ONNX Runtime (``com.microsoft``): what they multiply and sum, or normalise, inside."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.gates.masker import Masker, gate
from exporter.gates.normalisation import normalise

_SUM = {"SkipLayerNormalization": 3, "SkipSimplifiedLayerNormalization": 3, "EmbedLayerNormalization": 2}
"""The output that is the sum before it is normalised."""
_AFFINE = {
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
    "EmbedLayerNormalization": (5, 6),
}
_EPSILON = 1e-12
"""ONNX Runtime's default for these operators."""


@gate(*(f"com.microsoft::{op}" for op in _SUM))
def _sum_norm(masker: Masker, node: gs.Node) -> bool:
    """The node is asked for the sum it normalises; statistics are then over the slots of it that stay."""
    result = node.outputs[0]
    rank = masker.rank(result)
    if rank - 1 not in masker.cut.get(result.name, {}):
        return True
    place = _SUM[node.op]
    while len(node.outputs) <= place:
        node.outputs.append(gs.Variable.empty())
    if not node.outputs[place].name:
        node.outputs[place] = gs.Variable(masker.fresh())
    total = node.outputs[place]
    masker.behind[total.name] = result
    affine = [node.inputs[i] for i in _AFFINE[node.op] if i < len(node.inputs) and node.inputs[i].name]
    node.outputs[0] = gs.Variable(masker.fresh())
    masker.nodes.append(node)
    attributes = {"epsilon": node.attrs.get("epsilon", _EPSILON)}
    norm = gs.Node("LayerNormalization", masker.fresh(), attributes, [total], [result])
    normalise(masker, norm, [rank - 1], affine, node.op != "SkipSimplifiedLayerNormalization")
    return False


@gate("com.microsoft::QEmbedLayerNormalization")
def _sum_norm_of_codes(masker: Masker, node: gs.Node) -> bool:
    """The same where the node does not tell the sum: rows of the tables, which have one scale each, are added."""
    result = node.outputs[0]
    if masker.rank(result) - 1 not in masker.cut.get(result.name, {}):
        return True
    tokens, segments = node.inputs[:2]
    tables = [
        masker.op("DequantizeLinear", [node.inputs[i], node.inputs[i + 6], node.inputs[i + 11]])
        if node.inputs[i].name
        else None
        for i in range(2, 7)
    ]
    length = masker.op("Gather", [masker.op("Shape", [tokens]), masker.constant(np.array([1], np.int64))])
    start = masker.constant(np.array([0], np.int64))
    total = masker.op("Gather", [tables[0], tokens])
    total = masker.op("Add", [total, masker.op("Slice", [tables[1], start, length, start])])
    if tables[2] is not None:
        total = masker.op("Add", [total, masker.op("Gather", [tables[2], segments])])
    masker.behind[total.name] = result
    node.outputs[0] = gs.Variable(masker.fresh())
    masker.nodes.append(node)
    attributes = {"epsilon": node.attrs.get("epsilon", _EPSILON)}
    norm = gs.Node("LayerNormalization", masker.fresh(), attributes, [total], [result])
    normalise(masker, norm, [masker.rank(result) - 1], tables[3:])
    return False


@gate("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def _fused_matmul(masker: Masker, node: gs.Node) -> bool:
    for i, side in enumerate("AB"):
        rank = masker.rank(node.inputs[i])
        order = list(range(rank))
        if node.attrs.get(f"transBatch{side}", 0):
            order = [*order[1:-1], order[0], order[-1]]
        if node.attrs.get(f"trans{side}", 0):
            order[-2], order[-1] = order[-1], order[-2]
        masker.hide(node, i, [order[-1] if i == 0 else order[-2]])
    return True


@gate("com.microsoft::MultiHeadAttention", "com.microsoft::GroupQueryAttention")
def _attention(masker: Masker, node: gs.Node) -> bool:
    """Hidden dimensions of the queries, their bias included, are zero, so they add nothing to the scores.

    Heads do not mix, and hidden dimensions of the values go nowhere.
    """
    masker.hide(node, 0, [-1])
    if node.op == "MultiHeadAttention":
        masker.hide(node, 3, [0])
    return True


@gate("com.microsoft::Attention")
def _projected(masker: Masker, node: gs.Node) -> bool:
    """The same for queries made inside, from a hidden column of the weight and the bias; x is summed over."""
    masker.hide(node, 0, [2])
    masker.hide(node, 1, [1])
    masker.hide(node, 2, [0])
    return True


@gate("com.microsoft::QAttention")
def _projected_from_codes(masker: Masker, node: gs.Node) -> bool:
    """Hidden codes read as the zero point."""
    masker.hide(node, 0, [2], _zero_point(node, 6))
    masker.hide(node, 1, [1], _zero_point(node, 7))
    masker.hide(node, 2, [0])
    return True


@gate("com.microsoft::MoE")
def _experts(masker: Masker, node: gs.Node) -> bool:
    """Sums over the width of x, and over that inside each expert, which the second matrix reads."""
    masker.hide(node, 0, [-1])
    masker.hide(node, 4, [2])
    return True


@gate("com.microsoft::MatMulNBits", "com.microsoft::DynamicQuantizeMatMul")
def _quantized_weight(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1])
    return True


@gate("com.microsoft::MatMulIntegerToFloat")
def _codes(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1], _zero_point(node, 4))
    return True


@gate("com.microsoft::QGemm")
def _gemm(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [0 if node.attrs.get("transA", 0) else 1], _zero_point(node, 2))
    return True


@gate("com.microsoft::QLinearConv")
def _conv(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1 if node.attrs.get("channels_last", 0) else 1], _zero_point(node, 2))
    return True


def _zero_point(node: gs.Node, i: int) -> float | gs.Tensor:
    return node.inputs[i] if len(node.inputs) > i and node.inputs[i].name else 0.0
