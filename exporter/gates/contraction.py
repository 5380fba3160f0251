"""Sums over products: hidden slots of the summed axis read as zero."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exporter.gates.masker import Masker, gate


@gate("Conv", "ConvTranspose", "DeformConv", "com.microsoft::FusedConv")
def _channels(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [1])
    return True


@gate("ConvInteger", "QLinearConv")
def _conv_integer(masker: Masker, node: gs.Node) -> bool:
    """A hidden channel of x reads as x's zero point, of which there is one."""
    masker.hide(node, 0, [1], _zero_point(node, 2))
    return True


@gate("Gemm", "com.microsoft::FusedGemm")
def _gemm(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [0 if node.attrs.get("transA", 0) else 1])
    masker.hide(node, 1, [1 if node.attrs.get("transB", 0) else 0])
    return True


@gate("MatMul")
def _matmul(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1])
    masker.hide(node, 1, [-2 if masker.rank(node.inputs[1]) > 1 else -1])
    return True


@gate("MatMulInteger", "QLinearMatMul")
def _matmul_integer(masker: Masker, node: gs.Node) -> bool:
    """A hidden column of a reads as a's zero point, of which ONNX Runtime takes one only."""
    masker.hide(node, 0, [-1], _zero_point(node, 2))
    return True


def _zero_point(node: gs.Node, i: int) -> float | gs.Tensor:
    return node.inputs[i] if len(node.inputs) > i and node.inputs[i].name else 0.0


@gate("Einsum")
def _einsum(masker: Masker, node: gs.Node) -> bool:
    left, _, right = node.attrs["equation"].replace(" ", "").partition("->")
    for i, term in enumerate(left.split(",")):
        before, dots, after = term.partition("...")
        for k, letter in enumerate(before):
            if letter not in right:
                masker.hide(node, i, [k])
        for k, letter in enumerate(after if dots else ""):
            if letter not in right:
                masker.hide(node, i, [k - len(after)])
    return True
