"""Which layers behind a cut kept their weights, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exporter.calibration.fit import Refit
from exporter.calibration.readers import find_readers
from exporter.graph import Graph, Node
from exporter.plan import Plan
from exporter.protos import reads

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")
_OTHERS = (
    "DeformConv", "Einsum", "com.microsoft::FusedConv", "com.microsoft::FusedGemm", "com.microsoft::FusedMatMul",
)  # fmt: skip
_QUANTIZED = (
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "com.microsoft::QGemm",
    "com.microsoft::QLinearConv", "com.microsoft::MatMulNBits", "com.microsoft::DynamicQuantizeMatMul",
    "com.microsoft::MatMulIntegerToFloat",
)  # fmt: skip
_FLOATS = (1, 10, 11)
_CARRIERS = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Unfitted:
    """A layer whose weights stayed as they were.

    Attributes:
        layer: name of the node, or of its first output where it has none.
        weight: name of its weight; "" where it has none of its own.
        reason: why, in a few words.
    """

    layer: str
    weight: str
    reason: str


def find_unfitted(pruned: Graph, plan: Plan, refits: Iterable[Refit], why: str = "") -> list[Unfitted]:
    """List the layers with weights that read what a plan changed, and were not fitted anew.

    Args:
        pruned: the graph that is written.
        plan: what was carried out.
        refits: what became of the layers that can be fitted.
        why: the reason where none was to be fitted.
    """
    tried = {r.weight: r for r in refits}
    readers = {r.node.index: r for r in find_readers(pruned)}
    found = []
    for node in _behind(pruned, plan):
        weight = _weight(pruned, node)
        if weight is None:
            continue
        reader = readers.get(node.index)
        name = node.proto.name or node.key
        refit = tried.get(reader.weight if reader is not None else weight)
        if refit is not None:
            if refit.damping is None:
                found.append(Unfitted(name, weight, "no fit did better on the held-out inputs"))
        elif reader is None:
            found.append(Unfitted(name, weight, _reason(pruned, node, weight)))
        else:
            found.append(Unfitted(name, weight, why or "what it reads is what it was"))
    return found


def _behind(graph: Graph, plan: Plan) -> list[Node]:
    """Layers that read what does not hold what it held, those of subgraphs included."""
    touched = set(plan.hide)
    found = []
    for node in graph.nodes:
        if node.depth or not touched & reads(node.proto):
            continue
        touched.update(o for o in node.outputs if o)
        found += [node] if _layer(node) else []
        for body in node.bodies:  # what it is given lies among the inputs of the node
            touched.update(body.inputs)
            for inner in body.everything():
                if touched & reads(inner.proto):
                    touched.update(o for o in inner.outputs if o)
                    found += [inner] if _layer(inner) else []
    return found


def _layer(node: Node) -> bool:
    return node.op in (*_LINEAR, *_RECURRENT, *_OTHERS, *_QUANTIZED)


def _weight(graph: Graph, node: Node) -> str | None:
    """The constant behind an operand of a layer; None where both are activations."""
    for name in node.inputs[:3] if node.op in _QUANTIZED else node.inputs[:2] if node.op != "Einsum" else node.inputs:
        origin = _origin(graph, name)
        if origin is not None and graph.constants[origin].dims:
            return origin
    if node.op in ("QLinearConv", "QLinearMatMul") and len(node.inputs) > 3:
        origin = _origin(graph, node.inputs[3])
        return origin if origin is not None and len(graph.constants[origin].dims) > 1 else None
    return None


def _origin(graph: Graph, name: str) -> str | None:
    """The constant that a tensor is, or is made from."""
    while name and name not in graph.constants:
        node = graph.producer.get(name)
        if node is None or (node.op not in _CARRIERS and not node.op.endswith("DequantizeLinear")):
            return None
        name = node.inputs[0]
    return name or None


def _reason(graph: Graph, node: Node, weight: str) -> str:
    if node.depth:
        return "inside a subgraph (If, Loop or Scan)"
    if node.op in _QUANTIZED or graph.constants[weight].data_type not in (*_FLOATS, 16):
        return "its weight is quantized"
    if graph.constants[weight].data_type not in _FLOATS:
        return "its weight is bfloat16"
    if node.op in _RECURRENT:
        return "a recurrent layer"
    users = len(graph.users.get(weight, ()))
    if users > 1:
        return f"its weight is shared by {users} nodes"
    if weight in graph.outputs:
        return "its weight is an output of the model"
    if node.op in _OTHERS:
        return f"{node.op} is not fitted"
    if weight not in node.inputs:
        return "its weight is computed from another tensor"
    if node.inputs[0] == weight:
        return "its weight multiplies from the left"
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if bias:
        if bias not in graph.constants:
            return "its bias is computed"
        if len(graph.users.get(bias, ())) > 1:
            return "its bias is shared with other nodes"
    if node.op == "MatMul" and len(graph.constants[weight].dims) != 2:
        return "a product of more than two axes"
    return "this form of the operator is not fitted"
