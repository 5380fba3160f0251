"""The fp32 model with every half-precision result rounded: what GPUs give, on machines that do not compute so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from exporter.graph import Graph
from exporter.precision.lowering import Operands
from exporter.precision.rewriting import limit_fills
from exporter.precision.values import Retyped, convert_values
from exporter.protos import all_nodes, fresh_names, key_of, read_instead, set_nodes, subgraphs

SWITCHED_SINCE = 9
"""The operator set from which nodes can be rounded by choice: that of Where."""


def rounded_model(
    graph: Graph, lowered: Mapping[str, Operands], low: int, keep_io: bool = True
) -> tuple[onnx.ModelProto, Retyped]:
    """A model of fp32 tensors whose lowered nodes read and give rounded numbers, and the constants left outside it.

    Args:
        graph: the graph; it stays as it is.
        lowered: operands that are half precision, by the node's first output.
        low: FLOAT16 or BFLOAT16.
        keep_io: inputs keep their types; else one that any lowered node reads is rounded for all.
    """
    model, retyped = _copied(graph, low)
    fresh = fresh_names(model)
    _round(model.graph, _Rounding(graph, model, lowered, low, fresh, retyped))
    if not keep_io:
        read = {node.inputs[k] for node in graph.nodes if node.key in lowered for k in lowered[node.key].inputs}
        names = {name: fresh(f"{name}.given") for name in graph.inputs if name in read}
        read_instead(list(all_nodes(model.graph)), names)
        nodes = [node for name, given in names.items() for node in _casts(name, given, fresh(f"{given}.low"), low)]
        set_nodes(model.graph, [*nodes, *model.graph.node])
    return model, retyped


def switched_model(graph: Graph, lowered: Mapping[str, Operands], low: int) -> tuple[onnx.ModelProto, str]:
    """The same, but that each run chooses which nodes round.

    Args:
        graph: a graph that fits into one message, of operator set ``SWITCHED_SINCE`` or later; it stays as it is.
        lowered, low: as for ``rounded_model``.

    Returns:
        The model, and the name of its input more: booleans in the order of ``lowered``.
    """
    model, retyped = _copied(graph, low)
    fresh = fresh_names(model)
    switch = fresh("secateur.switch")
    flags = {key: fresh(f"{switch}.{number}") for number, key in enumerate(lowered)}
    _round(model.graph, _Rounding(graph, model, lowered, low, fresh, retyped, flags))
    nodes: list[NodeProto] = []
    for number, flag in enumerate(flags.values()):
        position = fresh(f"{flag}.position")
        model.graph.initializer.append(helper.make_tensor(position, TensorProto.INT64, [], [number]))
        nodes.append(helper.make_node("Gather", [switch, position], [flag]))
    set_nodes(model.graph, [*nodes, *model.graph.node])
    model.graph.input.append(helper.make_tensor_value_info(switch, TensorProto.BOOL, [len(flags)]))
    return model, switch


def _copied(graph: Graph, low: int) -> tuple[onnx.ModelProto, Retyped]:
    """A copy of the model, and its constants rounded."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    limit_fills(model, low)
    return model, Retyped(graph, TensorProto.FLOAT, lambda values: convert_values(values, low).astype(np.float32))


@dataclass(frozen=True)
class _Rounding:
    """What is rounded, the booleans that say whether it is (none: always), and the rounded constants there are."""

    source: Graph
    model: onnx.ModelProto
    lowered: Mapping[str, Operands]
    low: int
    fresh: Callable[[str], str]
    retyped: Retyped
    flags: Mapping[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def constant(self, name: str) -> str:
        """Name of a constant's rounded values."""
        if name not in self.constants:
            made = self.constants[name] = self.fresh(f"{name}.rounded")
            self.model.graph.initializer.append(self.retyped.tensor(name, made))
        return self.constants[name]


def _casts(name: str, result: str, between: str, low: int) -> list[NodeProto]:
    """A tensor rounded: to half precision and back."""
    return [
        helper.make_node("Cast", [name], [between], to=low),
        helper.make_node("Cast", [between], [result], to=TensorProto.FLOAT),
    ]


def _round(graph: GraphProto, work: _Rounding) -> None:
    """Round in a graph and what lies in it, in place."""
    nodes: list[NodeProto] = []
    cut: dict[tuple[str, str | None], str] = {}

    def choose(flag: str, rounded: str, exact: str, result: str) -> None:
        nodes.append(helper.make_node("Where", [flag, rounded, exact], [result]))

    def cast(flag: str | None, name: str, result: str) -> None:
        wide = result if flag is None else work.fresh(f"{result}.wide")
        nodes.extend(_casts(name, wide, work.fresh(f"{result}.low"), work.low))
        if flag is not None:
            choose(flag, wide, name, result)

    def read(flag: str | None, name: str) -> str:
        """What stands for an operand that a node reads; as many nodes as have the same flag share it."""
        constant = name in work.source.constants
        if constant and flag is None:
            return work.constant(name)
        if (name, flag) not in cut:
            result = cut[name, flag] = work.fresh(f"{name}.read")
            if constant and flag is not None:
                choose(flag, work.constant(name), name, result)
            else:
                cast(flag, name, result)
        return cut[name, flag]

    for node in graph.node:
        operands, flag = work.lowered.get(key_of(node)), work.flags.get(key_of(node))
        made = NodeProto()
        made.CopyFrom(node)
        for body in subgraphs(made):
            _round(body, work)
        for k in operands.inputs if operands is not None else ():
            made.input[k] = read(flag, made.input[k])
        nodes.append(made)
        for k in operands.outputs if operands is not None else ():
            name = made.output[k]
            made.output[k] = work.fresh(f"{name}.exact")
            cast(flag, made.output[k], name)
    set_nodes(graph, nodes)
