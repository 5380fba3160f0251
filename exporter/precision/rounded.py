"""The fp32 model with every half-precision result rounded: what bf16 gives, on machines that cannot compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from exporter.graph import Graph
from exporter.precision.lowering import Operands
from exporter.precision.values import Retyped, convert_values
from exporter.protos import fresh_names, key_of, set_nodes, subgraphs


def rounded_model(graph: Graph, lowered: Mapping[str, Operands], low: int) -> tuple[onnx.ModelProto, Retyped]:
    """A model of fp32 tensors whose lowered nodes read and give rounded numbers, and the constants left outside it.

    Args:
        graph: the graph; it stays as it is.
        lowered: operands that are half precision, by the node's first output.
        low: FLOAT16 or BFLOAT16.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    retyped = Retyped(graph, TensorProto.FLOAT, lambda values: convert_values(values, low).astype(np.float32))
    _round(model.graph, _Rounding(graph, model, lowered, low, fresh_names(model), retyped))
    return model, retyped


@dataclass(frozen=True)
class _Rounding:
    """What is rounded, and the rounded constants there are."""

    source: Graph
    model: onnx.ModelProto
    lowered: Mapping[str, Operands]
    low: int
    fresh: Callable[[str], str]
    retyped: Retyped
    constants: dict[str, str] = field(default_factory=dict)

    def constant(self, name: str) -> str:
        """Name of a constant's rounded values."""
        if name not in self.constants:
            made = self.constants[name] = self.fresh(f"{name}.rounded")
            self.model.graph.initializer.append(self.retyped.tensor(name, made))
        return self.constants[name]


def _round(graph: GraphProto, work: _Rounding) -> None:
    """Round in a graph and what lies in it, in place."""
    nodes: list[NodeProto] = []
    cut: dict[str, str] = {}

    def cast(name: str, result: str) -> str:
        inner = work.fresh(f"{result}.low")
        nodes.append(helper.make_node("Cast", [name], [inner], to=work.low))
        nodes.append(helper.make_node("Cast", [inner], [result], to=TensorProto.FLOAT))
        return result

    for node in graph.node:
        operands = work.lowered.get(key_of(node))
        made = NodeProto()
        made.CopyFrom(node)
        for body in subgraphs(made):
            _round(body, work)
        for k in operands.inputs if operands is not None else ():
            name = made.input[k]
            if name in work.source.constants:
                made.input[k] = work.constant(name)
                continue
            if name not in cut:
                cut[name] = cast(name, work.fresh(f"{name}.rounded"))
            made.input[k] = cut[name]
        nodes.append(made)
        for k in operands.outputs if operands is not None else ():
            name = made.output[k]
            made.output[k] = work.fresh(f"{name}.exact")
            cast(made.output[k], name)
    set_nodes(graph, nodes)
