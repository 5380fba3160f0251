"""Reductions: hidden slots read as the neutral element; means divide by the number of slots that stay."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from exporter.gates.masker import Masker, gate

_SUMMED: dict[str, float] = {
    "ReduceSum": 0.0,
    "ReduceMean": 0.0,
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceSumSquare": 0.0,
    "ReduceLogSum": 0.0,
    "ReduceLogSumExp": -math.inf,
    "ReduceMax": -math.inf,
    "ReduceMin": math.inf,
    "ReduceProd": 1.0,
}


def _axes(node: gs.Node, default: Sequence[int]) -> list[int]:
    if "axes" in node.attrs:
        return list(node.attrs["axes"])
    if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        return [int(a) for a in node.inputs[1].values]
    if len(node.inputs) > 1 and node.inputs[1].inputs and node.inputs[1].inputs[0].op == "Constant":
        return [int(a) for a in node.inputs[1].inputs[0].attrs["value"].values]
    return list(default)


@gate(*_SUMMED)
def _reduce(masker: Masker, node: gs.Node) -> bool:
    axes = _axes(node, range(masker.rank(node.inputs[0])))
    share = masker.hide(node, 0, axes, _SUMMED[node.op])
    if node.op == "ReduceMean" and share < 1:
        dtype = masker.dtype(node.outputs[0])
        masker.then(node, 0, "Mul", masker.constant(np.array(1 / share, dtype)))
    return True


@gate("CumSum", "DynamicQuantizeLinear")
def _cumsum(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, range(masker.rank(node.inputs[0])))
    return True


@gate("LpNormalization")
def _lp_norm(masker: Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [int(node.attrs.get("axis", -1))])
    return True
