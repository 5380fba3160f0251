"""Outputs that an operator need not give, and that nothing reads, are left out: some writers of files name them all,
and the indices of a MaxPool, for one, would hold all its channels."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import ModelProto, NodeProto
from onnx.defs import OpSchema

from exporter.protos import all_nodes, graphs_of
from exporter.values import is_standard

_GIVES_ALL = ("Attention", "BatchNormalization")
"""What ONNX Runtime does not run without: the cache that goes with a past one, running statistics."""


def leave_out_unread(model: ModelProto, opsets: Mapping[str, int]) -> bool:
    """Leave out optional outputs that nothing reads, in place; one output of every node stays.

    Args:
        model: names are unique in all its graphs.
        opsets: version of each domain.

    Returns:
        Whether there was one.
    """
    several = [(n, _optional(n, opsets)) for n in all_nodes(model.graph) if len(n.output) > 1]
    several = [(node, optional) for node, optional in several if optional]
    if not several:
        return False
    read = {name for node in all_nodes(model.graph) for name in node.input}
    read |= {value.name for graph in graphs_of(model.graph) for value in graph.output}
    done = False
    for node, optional in several:
        unread = [i for i in optional if i < len(node.output) and node.output[i] and node.output[i] not in read]
        if not unread or len(unread) == sum(map(bool, node.output)):
            continue
        for i in unread:
            node.output[i] = ""
        while not node.output[-1]:
            del node.output[-1]
        done = True
    return done


def _optional(node: NodeProto, opsets: Mapping[str, int]) -> list[int]:
    """Places of the outputs that an operator need not give."""
    if not is_standard(node) or node.op_type in _GIVES_ALL:
        return []
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get("", 1), "")
    except onnx.defs.SchemaError:
        return []
    return [i for i, o in enumerate(schema.outputs) if o.option == OpSchema.FormalParameterOption.Optional]
