"""Reductions: hidden slots read as the neutral element; means divide by the number of slots that stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
_FAR = 1 << 62
"""Beyond any whole number that is met, and exact in floating point."""


def _axes(node: gs.Node, rank: int) -> list[int]:
    """Axes a node reduces; all where it names none, unless it then does nothing."""
    given: Sequence[int] | None = node.attrs.get("axes")
    if given is None and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        given = node.inputs[1].values.ravel().tolist()
    elif given is None and len(node.inputs) > 1 and node.inputs[1].inputs and node.inputs[1].inputs[0].op == "Constant":
        given = node.inputs[1].inputs[0].attrs["value"].values.ravel().tolist()
    if not given and node.attrs.get("noop_with_empty_axes", 0):
        return []
    return [int(a) for a in given or range(rank)]


def _neutral(value: float, dtype: np.dtype[Any]) -> float:
    """The neutral element in a type; whole numbers know no infinity."""
    if dtype.kind not in "iub" or math.isfinite(value):
        return value
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return float(max(low, -_FAR) if value < 0 else min(high, _FAR))


@gate(*_SUMMED)
def _reduce(masker: Masker, node: gs.Node) -> bool:
    axes = _axes(node, masker.rank(node.inputs[0]))
    share = masker.hide(node, 0, axes, _neutral(_SUMMED[node.op], masker.dtype(node.inputs[0])))
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
