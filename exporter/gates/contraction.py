"""Sums over products: hidden slots of the summed axis read as zero."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from exporter.gates.masker import Masker, gate


@gate("Conv", "ConvTranspose", "com.microsoft::FusedConv")
def _channels(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [1])
    return True


@gate("ConvInteger")
def _conv_integer(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [1], node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else 0.0)
    return True


@gate("Gemm")
def _gemm(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [0 if node.attrs.get("transA", 0) else 1])
    masker.hide(node, 1, [1 if node.attrs.get("transB", 0) else 0])
    return True


@gate("MatMul")
def _matmul(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1])
    masker.hide(node, 1, [-2 if masker.rank(node.inputs[1]) > 1 else -1])
    return True


@gate("MatMulInteger")
def _matmul_integer(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1], node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else 0.0)
    return True


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
