"""Which nodes compute in half precision: those whose operands may, unless their numbers do not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from onnx import TensorProto

from exporter.ahead import MANY, made_ahead
from exporter.graph import Graph, Node
from exporter.normalise import is_large
from exporter.precision.lowering import Operands, lowered_operands
from exporter.precision.ranges import Extent
from exporter.precision.types import types_of
from exporter.precision.values import LARGEST, largest

HEADROOM = 2.0
"""Numbers seen on calibration inputs may be so much larger on others."""

_WHOLE: dict[int, int] = {TensorProto.FLOAT16: 2048, TensorProto.BFLOAT16: 256}
"""Up to here every whole number exists."""
_VANISHING = 2.0**-25
"""Half of the smallest fp16 number: less is rounded to 0."""
_SQUARING = frozenset({"ReduceL2", "ReduceSumSquare", "LpNormalization", "ReduceLogSumExp", "LpPool", "GlobalLpPool"})
"""Operators that square inside, where nobody sees how large the numbers get."""
_ADDING = frozenset({"Sum", "Mean"})
"""Operators that add up their inputs one after another."""
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_WEIGHTY = 16
"""Constants of more elements are weights: some of them may become zero."""


@dataclass(frozen=True)
class Stays:
    """A node that stays in fp32.

    Attributes:
        node: its label.
        reason: why.
        asked: whether its numbers or the user say so; else the operator leaves no choice.
    """

    node: str
    reason: str
    asked: bool


def choose_nodes(
    graph: Graph, low: int, extents: Mapping[str, Extent], keep: Sequence[str] = (), refused: Sequence[str] = ()
) -> tuple[dict[str, Operands], list[Stays]]:
    """Choose the nodes that compute in half precision, those of subgraphs included.

    Args:
        graph: the graph.
        low: FLOAT16 or BFLOAT16.
        extents: of fp32 activations.
        keep: globs of node names, outputs and operators that stay in fp32.
        refused: names of the same that what is to run them does not take in half precision.

    Returns:
        Their operands, by the node's first output, and the nodes that stay with the reason.
    """
    kinds = types_of(graph)
    weights = [n for n, kind in kinds.items() if kind == TensorProto.FLOAT and n in graph.constants]
    ahead = MANY if is_large(graph.model) else 0
    sizes = dict(made_ahead(weights, lambda n: largest(graph.array(n)), ahead))
    sizes |= {name: extent.largest for name, extent in extents.items()}
    lowered: dict[str, Operands] = {}
    stay: list[Stays] = []
    for node in graph.nodes:
        if node.op == "Constant" or node.key in graph.constants:
            continue
        floats = [n for n in (*node.inputs, *node.outputs) if n and kinds.get(n) == TensorProto.FLOAT]
        if not floats:
            continue
        found = lowered_operands(node.proto, graph.opsets, kinds, low)
        if isinstance(found, str):
            stay.append(Stays(node.label, found, False))
            continue
        if not found.inputs and not found.outputs:
            continue
        reason = (
            _asked(node, keep, refused)
            or _not_seen(graph, node, found, extents)
            or _too_large(node, found, low, sizes)
            or _too_fine(graph, node, low, extents, kinds)
        )
        if reason:
            stay.append(Stays(node.label, reason, True))
        else:
            lowered[node.key] = found
    return _with_quantized(graph, lowered, stay), stay


def _asked(node: Node, keep: Sequence[str], refused: Sequence[str]) -> str:
    names = (node.proto.name, *node.outputs, node.op)
    if any(name in refused for name in names if name):
        return "TensorRT refuses it in half precision"
    match = next((glob for glob in keep if any(fnmatchcase(name, glob) for name in names)), None)
    return f"--keep-fp32 {match}" if match is not None else ""


def _not_seen(graph: Graph, node: Node, operands: Operands, extents: Mapping[str, Extent]) -> str:
    """A node in a branch that no input led to, or that was not looked into."""
    names = [node.outputs[k] for k in sorted(operands.outputs)]
    if node.depth and any(math.isnan(extents.get(name, Extent(math.nan)).largest) for name in names):
        why = (
            "branches of so large a model are not looked into"
            if is_large(graph.model)
            else "no input led to its branch"
        )
        return f"{why}: how large its numbers get is not known"
    return ""


def _too_large(node: Node, operands: Operands, low: int, sizes: Mapping[str, float]) -> str:
    most = LARGEST[low] / HEADROOM
    names = [node.inputs[k] for k in sorted(operands.inputs)] + [node.outputs[k] for k in sorted(operands.outputs)]
    for name in names:
        size = sizes.get(name, math.nan)
        if size > most:
            return f"'{name}' reaches {size:.3g}, half precision ends at {LARGEST[low]:.3g}"
        if node.op in _SQUARING and size * size > most:
            return f"'{name}' reaches {size:.3g}, its square does not fit"
    if node.op in _ADDING and sum(sizes.get(name, math.nan) for name in node.inputs) > most:
        return f"the sum of its inputs may reach {sum(sizes[name] for name in node.inputs):.3g}"
    return ""


def _too_fine(graph: Graph, node: Node, low: int, extents: Mapping[str, Extent], kinds: Mapping[str, int]) -> str:
    """Small constants that vanish, and whole numbers that are rounded."""
    for name in node.inputs:
        if name not in graph.constants or kinds.get(name) != TensorProto.FLOAT or low != TensorProto.FLOAT16:
            continue
        tensor = graph.constants[name]
        if math.prod(tensor.dims) <= _WEIGHTY:
            sizes = np.abs(np.asarray(graph.array(name), np.float32))
            if np.any((sizes != 0) & (sizes < _VANISHING)):
                return f"its constant {float(sizes[sizes != 0].min()):.3g} would become 0"
    if node.op != "Cast":
        return ""
    source, result = kinds.get(node.inputs[0]), kinds.get(node.outputs[0])
    name = node.outputs[0] if result == TensorProto.FLOAT else node.inputs[0]
    size = extents.get(name, Extent(math.nan)).largest
    if TensorProto.FLOAT in (source, result) and source != result and size > _WHOLE[low]:
        return f"its whole numbers reach {size:.0f}, half precision holds them all up to {_WHOLE[low]}"
    return ""


def _with_quantized(graph: Graph, lowered: dict[str, Operands], stay: list[Stays]) -> dict[str, Operands]:
    """Layers between QuantizeLinear and DequantizeLinear stay with them: a cast between would keep TensorRT from
    computing them as one."""
    fixed = {n.key for n in graph.nodes if n.op in _QUANTIZING and n.key not in lowered}
    if not fixed:
        return lowered
    kept = {}
    for node in graph.nodes:
        if node.key not in lowered:
            continue
        makers = [graph.producer.get(name) for name in node.inputs]
        if any(m is not None and m.op == "DequantizeLinear" and m.key in fixed for m in makers):
            stay.append(Stays(node.label, "it is quantized, and QuantizeLinear of this version takes fp32 only", False))
        else:
            kept[node.key] = lowered[node.key]
    return kept
