"""Operators that compare the slots of an axis: hidden ones lose against all others."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from exporter.gates.masker import Masker, gate

_ONE_AXIS_OPSET = 13


@gate("Softmax", "LogSoftmax")
def _softmax(masker: Masker, node: gs.Node) -> bool:
    rank = masker.rank(node.inputs[0])
    flattened = masker.opset < _ONE_AXIS_OPSET
    at = int(node.attrs.get("axis", 1 if flattened else -1)) % rank
    masker.hide(node, 0, range(at, rank) if flattened else [at], -math.inf)
    return True


@gate("TopK")
def _top_k(masker: Masker, node: gs.Node) -> bool:
    dtype = masker.dtype(node.inputs[0])
    largest = bool(node.attrs.get("largest", 1))
    worst = -math.inf if largest else math.inf
    if dtype.kind != "f":
        worst = float(np.iinfo(dtype).min if largest else np.iinfo(dtype).max)
    masker.hide(node, 0, [int(node.attrs.get("axis", -1))], worst)
    return True
