"""Proofs of quantized models: tensors of codes are handed over from the masked original, layer by layer.

Rounding turns a difference far below the tolerance into a whole step, and the next layer sees a different input: after
a few layers two equal models differ by several steps. So the pruned model's nodes read the codes of the masked original
in place of their own, which are compared with them. If every tensor of codes follows from those before it, within what
rounding does to a difference below the tolerance, the models are equal by induction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from exporter.graph import Graph, Node
from exporter.relative_difference import Array

CODES = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_ROUNDING = ("Round", "Floor", "Ceil")
"""Operators whose results are codes although their type is not (quantization simulated in training)."""
_QUANTIZED = ("Quantize", "Integer", "NBits", "QLinear", "QGemm", "QAttention", "QEmbed")
_GIVEN = "secateur.given."


ROOM = 1 << 28
"""Bytes of codes that are handed over."""


def code_tensors(graph: Graph, pruned: Graph, limit: int = ROOM) -> tuple[list[str], int]:
    """Tensors of codes that nodes of both main graphs compute, in their order.

    Args:
        graph: the dense graph.
        pruned: what was cut from it.
        limit: bytes of the dense graph's tensors up to which they are taken.

    Returns:
        Their names, and the number of those that were left out.
    """
    return shared_tensors(
        graph,
        pruned,
        lambda node, name: graph.inferred.dtype.get(name) in (FLOATS if node.op in _ROUNDING else CODES),
        limit,
    )


def shared_tensors(
    graph: Graph, pruned: Graph, wanted: Callable[[Node, str], bool], limit: int
) -> tuple[list[str], int]:
    """Tensors that nodes of both main graphs compute, in their order.

    Args:
        graph: the dense graph.
        pruned: what was cut from it.
        wanted: says of a node and one of its outputs whether that is taken.
        limit: bytes of the dense graph's tensors up to which they are taken.

    Returns:
        Their names, and the number of those that were left out.
    """
    chosen: list[str] = []
    left = 0
    for node in (n for n in graph.nodes if n.depth == 0):
        for name in node.outputs:
            shape = graph.shape(name) if name else None
            if shape is None or name in graph.constants or name not in pruned.producer or not wanted(node, name):
                continue
            limit -= math.prod(shape) * onnx.helper.tensor_dtype_to_np_dtype(graph.inferred.dtype[name]).itemsize
            if limit >= 0:
                chosen.append(name)
            else:
                left += 1
    return chosen, left


def is_quantized(graph: Graph) -> bool:
    """Say whether a graph quantizes activations or computes with codes; weights that are dequantized do not count."""
    return any(part in node.op for node in graph.nodes for part in _QUANTIZED)


def hand_over(model: ModelProto, names: Sequence[str], graph: Graph) -> None:
    """Make the nodes of a model, in place, read these tensors from new inputs; see ``given``."""
    renamed = {name: _GIVEN + name for name in names}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    for name, new in renamed.items():
        rank = len(graph.inferred.dims[name])
        model.graph.input.append(onnx.helper.make_tensor_value_info(new, graph.inferred.dtype[name], [None] * rank))


def given(codes: Mapping[str, Array]) -> dict[str, Array]:
    """Values of the inputs that ``hand_over`` made."""
    return {_GIVEN + name: values for name, values in codes.items()}


def code_error(got: Array, want: Array, tolerance: float) -> float:
    """How far two tensors of codes are apart, relative to the standard deviation of the codes.

    A difference of d steps before rounding becomes one step with probability d, so the mean difference of codes
    measures the mean difference before rounding; its spread is that of a count. It is taken over the whole tensor and
    over every slice along every axis. More than one step is never rounding.

    Args:
        got: codes that were computed from inputs equal up to rounding.
        want: what they should be.
        tolerance: accepted mean difference.

    Returns:
        The largest mean difference, no more than ``tolerance`` where the count can be explained by it; infinite where
        shapes differ or any code is more than one step off.
    """
    if got.shape != want.shape:
        return math.inf
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b))
    if not apart.max() <= 1:
        return math.inf
    spread = float(b[np.isfinite(b)].std()) or 1.0
    # whole, and along each axis: an error in one channel must not hide in the mean of all
    counts = [np.atleast_1d(apart.sum(tuple(k for k in range(apart.ndim) if k != axis))) for axis in range(apart.ndim)]
    return max(
        _excess(count, want.size / count.size, spread, tolerance) for count in [*counts, np.atleast_1d(apart.sum())]
    )


def _excess(counts: Array, members: float, spread: float, tolerance: float) -> float:
    """Largest mean difference among groups of codes, given how many of the ``members`` of each differ."""
    most, expected = int(counts.max()), tolerance * spread * members
    error = most / members / spread
    if most <= max(1.0, expected + 3 * math.sqrt(expected)):
        return min(error, tolerance)
    return max(error, 2 * tolerance)
