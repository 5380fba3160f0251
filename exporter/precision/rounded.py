"""The fp32 model with every half-precision result rounded: what bf16 gives, on machines that cannot compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from exporter import tensors
from exporter.graph import Graph
from exporter.normalise import fresh_names, is_large
from exporter.precision.lowering import Operands
from exporter.precision.values import convert_values, placeholder
from exporter.protos import key_of, set_nodes, subgraphs


def rounded_model(graph: Graph, lowered: Mapping[str, Operands], low: int) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A model of fp32 tensors whose lowered nodes read and give rounded numbers, and the constants still to be rounded.

    The latter are those of a model too large for one message: by name, with those of the file they are made from.

    Args:
        graph: the graph; it stays as it is.
        lowered: operands that are half precision, by the node's first output.
        low: FLOAT16 or BFLOAT16.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    work = _Rounding(graph, model, lowered, low, fresh_names(model), is_large(model))
    _round(model.graph, work)
    return model, work.later


def rounded(values: tensors.Array, low: int) -> tensors.Array:
    """Values as half precision holds them, in fp32."""
    return convert_values(values, low).astype(np.float32)


@dataclass(frozen=True)
class _Rounding:
    """What is rounded, and the rounded constants there are."""

    source: Graph
    model: onnx.ModelProto
    lowered: Mapping[str, Operands]
    low: int
    fresh: Callable[[str], str]
    large: bool
    constants: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)

    def constant(self, name: str) -> str:
        """Name of a constant's rounded values."""
        if name not in self.constants:
            old = self.source.constants[name]
            made = self.constants[name] = self.fresh(f"{name}.rounded")
            if self.large and tensors.is_external(old):
                tensor = placeholder(old, made, TensorProto.FLOAT)
                self.later[made] = name
            else:
                tensor = onnx.numpy_helper.from_array(rounded(tensors.read(old, self.source.folder), self.low), made)
            self.model.graph.initializer.append(tensor)
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
