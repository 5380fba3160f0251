"""Tables of embeddings in 8 bits: a row is gathered as integers and multiplied by its scale, gathered alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporter.protos import drop_unread, fresh_names, read_instead, set_nodes
from exporter.quantization.layers import TABLE, Layer
from exporter.quantization.weights import per_channel


def tables_quantized(model: ModelProto, layers: Sequence[Layer]) -> None:
    """Store the tables that these layers look rows up in as integers, with a scale for each row.

    What else reads a table (a tied last layer, behind a Transpose) reads what the integers stand for; look-ups of it
    that are no layer of these keep the floats.

    Args:
        model: is changed.
        layers: those to take.
    """
    graph = model.graph
    chosen = {layer.node for layer in layers}
    tensors = {t.name: t for t in graph.initializer}
    unused = fresh_names(model)
    fresh: dict[str, tuple[str, str]] = {}
    before: list[NodeProto] = []
    for name in dict.fromkeys(layer.weight for layer in layers):
        integers, scale = per_channel(numpy_helper.to_array(tensors[name]), 0, 8)
        codes, by_row = unused(f"{name}_quantized"), unused(f"{name}_row_scale")
        fresh[name] = codes, by_row
        whole = [n for n in graph.node if name in n.input and n.name not in chosen and n.op_type != TABLE]
        if whole:
            plain, stands = unused(f"{name}_scale"), unused(f"{name}_float")
            graph.initializer.append(numpy_helper.from_array(scale, plain))
            before.append(helper.make_node("DequantizeLinear", [codes, plain], [stands], stands, axis=0))
            read_instead(whole, {name: stands})
        graph.initializer.append(numpy_helper.from_array(scale[:, np.newaxis], by_row))
        graph.initializer.append(numpy_helper.from_array(integers, codes))
    nodes = [
        made
        for node in graph.node
        for made in (_rows(node, *fresh[node.input[0]], unused) if node.name in chosen else [node])
    ]
    set_nodes(graph, [*before, *nodes])
    drop_unread(model, fresh)


def _rows(node: NodeProto, table: str, scales: str, unused: Callable[[str], str]) -> list[NodeProto]:
    """What a Gather becomes; the node that gives its output keeps its name."""
    ids, out = node.input[1], node.output[0]
    codes, scale, numbers = (unused(f"{out}_{part}") for part in ("quantized", "row_scale", "numbers"))
    return [
        helper.make_node(TABLE, [table, ids], [codes], codes),
        helper.make_node(TABLE, [scales, ids], [scale], scale),
        helper.make_node("Cast", [codes], [numbers], numbers, to=TensorProto.FLOAT),
        helper.make_node("Mul", [numbers, scale], [out], node.name),
    ]
