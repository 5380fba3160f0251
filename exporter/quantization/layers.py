"""Which nodes are quantized: layers with constant weights, and what passes data on between them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from exporter.errors import ModelError, UsageError
from exporter.graph import op_of
from exporter.protos import all_nodes, graphs_of
from runtime.nouns import counted

PRODUCTS = ("Gemm", "MatMul")
"""Operators that multiply matrices."""

LAYERS = ("Conv", "ConvTranspose", *PRODUCTS)
"""Operators whose input 1 is the weight."""

TABLE = "Gather"
"""What reads rows of an embedding; its input 0 is the table."""

RECURRENT = ("GRU", "LSTM", "RNN")
"""Operators whose inputs 1 and 2 are weights; they compute in float whatever is quantized."""

QUANTIZED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
    "QLinearConv", "QGemm", "MatMulNBits",
)  # fmt: skip
"""Operators of models that are quantized already."""

_LARGE_TABLE = 1 << 12
"""Elements of a table from which on its scales and the nodes that multiply by them are worth it."""

PASSING = (
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Resize", "Slice", "Pad",
)  # fmt: skip
"""Operators that ONNX Runtime and TensorRT compute on 8-bit integers as well as on floats."""

_OWN_DATA = {"Reshape": 1, "Squeeze": 1, "Unsqueeze": 1, "Resize": 1, "Slice": 1, "Pad": 1, "Clip": 1, "Split": 1}
"""How many inputs of these are data; the others say how."""


@dataclass(frozen=True)
class Layer:
    """A layer with a constant weight.

    Attributes:
        node: its name.
        op: its operator.
        weight: name of the initializer.
        shape: of the weight.
        names: of the node and of all tensors it touches, for patterns.
        inner: whether it lies in a branch or a loop.
        many_scales: whether its bias has more elements than its weight has output channels: a transposed convolution
            of several groups, where onnxruntime.quantization takes one for the other.
    """

    node: str
    op: str
    weight: str
    shape: tuple[int, ...]
    names: frozenset[str]
    inner: bool = False
    many_scales: bool = False

    @property
    def ranged(self) -> bool:
        """Whether its tensors may be rounded by ranges that were found beforehand."""
        return self.op in LAYERS and not self.inner


def name_nodes(model: ModelProto) -> None:
    """Give nodes without a name one, and those in branches and loops one of their own: they are told apart by it."""
    taken: set[str] = set()
    for number, node in enumerate(all_nodes(model.graph)):
        name = node.name or f"{node.op_type}_{number}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


def layers_of(model: ModelProto, in_float: bool = False) -> list[Layer]:
    """Layers with a 32-bit constant weight of two axes or more, in the model's order.

    Args:
        model: the model; its constants lie in the main graph, and no name is used twice.
        in_float: take what computes in float whatever is quantized too: layers in branches and loops, recurrent ones,
            and Gathers of rows, where no layer has their table for its weight and it is no small one.
    """
    places = dict.fromkeys(LAYERS, 1) | (dict.fromkeys(RECURRENT, 1) if in_float else {})
    of_layers = {name for node in all_nodes(model.graph) if op_of(node) in LAYERS for name in node.input}
    weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    fed = {value.name for value in model.graph.input}
    found = []
    for graph in graphs_of(model.graph) if in_float else [model.graph]:
        inner = graph is not model.graph
        for node in graph.node:
            table = op_of(node) == TABLE and in_float and not inner
            place = 0 if table else places.get(op_of(node))
            if place is None or len(node.input) < 2:
                continue
            weight = weights.get(node.input[place])
            if weight is None or weight.name in fed or len(weight.dims) < 2 or 0 in weight.dims:
                continue
            if table and (weight.name in of_layers or not _is_table(node, weight)):
                continue
            names = frozenset({node.name, *(n for n in (*node.input, *node.output) if n)})
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            many = node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2 and bool(node.input[2])
            found.append(Layer(node.name, node.op_type, weight.name, tuple(weight.dims), names, inner, many))
    return found


def _is_table(node: NodeProto, weight: TensorProto) -> bool:
    rows = not any(a.name == "axis" and a.i for a in node.attribute)
    return rows and len(weight.dims) == 2 and weight.dims[0] * weight.dims[1] >= _LARGE_TABLE and weight.dims[1] > 1


def chosen_layers(layers: Sequence[Layer], only: Sequence[str], keep: Sequence[str]) -> list[Layer]:
    """The layers that may be quantized.

    Args:
        layers: all of them.
        only: take those that touch a matching name; all where there is none.
        keep: leave those that touch a matching name in float.

    Raises:
        UsageError: a pattern matches no layer.
        ModelError: nothing is left.
    """
    for option, patterns in (("--only", only), ("--keep", keep)):
        for pattern in patterns:
            if not any(_touches(layer, pattern) for layer in layers):
                raise UsageError(
                    f"{option} {pattern}: no layer with weights touches such a name. They are called "
                    f"{', '.join(layer.node for layer in layers[:6])}{', ...' if len(layers) > 6 else ''}."
                )
    found = [
        layer
        for layer in layers
        if (not only or any(_touches(layer, p) for p in only)) and not any(_touches(layer, p) for p in keep)
    ]
    if not layers:
        raise ModelError(
            f"nothing to quantize: no layer ({', '.join((*LAYERS, *RECURRENT))}) has 32-bit constant weights (with "
            "--profile tensorrt, outside of branches and loops)."
        )
    if not found:
        raise ModelError(
            f"nothing to quantize: of {counted(len(layers), 'layer')} with 32-bit constant weights "
            f"({', '.join(LAYERS)}), none is left."
        )
    return found


def _touches(layer: Layer, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in layer.names)


def passing_between(model: ModelProto, quantized: Iterable[str]) -> list[str]:
    """Nodes that pass data on in 8 bits: everything they read comes from such nodes, everything that reads them is one.

    Where a normalisation or a Softmax reads a sum, rounding the sum to 8 bits first would cost accuracy and save
    nothing.

    Args:
        model: with names on all nodes.
        quantized: names of the layers that are quantized.
    """
    nodes = {node.name: node for node in model.graph.node}
    constants = {t.name for t in model.graph.initializer}
    makers = {output: node.name for node in nodes.values() for output in node.output}
    readers: dict[str, set[str]] = {}
    for node in nodes.values():
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    outputs = {value.name for value in model.graph.output}
    found = set(quantized)
    candidates = {n for n, node in nodes.items() if op_of(node) in PASSING}
    while True:
        inside = found | candidates
        out = {n for n in candidates if not _stays(nodes[n], inside, makers, readers, constants, outputs)}
        if not out:
            return [n for n in nodes if n in candidates]
        candidates -= out


def _stays(
    node: NodeProto,
    inside: set[str],
    makers: dict[str, str],
    readers: dict[str, set[str]],
    constants: set[str],
    outputs: set[str],
) -> bool:
    data = [n for n in node.input[: _OWN_DATA.get(node.op_type, len(node.input))] if n]
    reads = [makers.get(n, "") in inside for n in data if n not in constants]
    users = [u for o in node.output for u in readers.get(o, ())]
    return bool(reads) and all(reads) and bool(users) and set(users) <= inside and not outputs & set(node.output)
