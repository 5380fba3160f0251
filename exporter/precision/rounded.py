"""The fp32 model with every half-precision result rounded: what bf16 gives, on machines that cannot compute it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from exporter import tensors
from exporter.graph import Graph
from exporter.normalise import fresh_names
from exporter.precision.lowering import Operands
from exporter.precision.rewriting import convert_values
from exporter.protos import set_nodes


def rounded_model(graph: Graph, lowered: Mapping[str, Operands], low: int) -> onnx.ModelProto:
    """A model of fp32 tensors whose lowered nodes read and give rounded numbers.

    Args:
        graph: the graph; it stays as it is.
        lowered: operands that are half precision, by the node's first output.
        low: FLOAT16 or BFLOAT16.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    fresh = fresh_names(model)
    nodes: list[NodeProto] = []
    rounded: dict[str, str] = {}

    def cast(name: str, result: str) -> str:
        inner = fresh(f"{result}.low")
        nodes.append(helper.make_node("Cast", [name], [inner], to=low))
        nodes.append(helper.make_node("Cast", [inner], [result], to=TensorProto.FLOAT))
        return result

    for node in list(model.graph.node):
        operands = lowered.get(next((o for o in node.output if o), ""))
        made = NodeProto()
        made.CopyFrom(node)
        for k in operands.inputs if operands is not None else ():
            name = made.input[k]
            if name not in rounded and name in graph.constants:
                values = convert_values(tensors.read(graph.constants[name], graph.folder), low).astype(np.float32)
                rounded[name] = fresh(f"{name}.rounded")
                values = np.ascontiguousarray(values).reshape(tuple(graph.constants[name].dims))
                model.graph.initializer.append(onnx.numpy_helper.from_array(values, rounded[name]))
            elif name not in rounded:
                rounded[name] = cast(name, fresh(f"{name}.rounded"))
            made.input[k] = rounded[name]
        nodes.append(made)
        for k in operands.outputs if operands is not None else ():
            name = made.output[k]
            made.output[k] = fresh(f"{name}.exact")
            cast(made.output[k], name)
    set_nodes(model.graph, nodes)
    return model
