"""Subgraphs made part of the graph around them: every name unique in the model, every constant in the main graph.

A branch of an If or the body of a Loop may read whatever is defined around it, so nothing changes when its constants
move out; and once its names are unique, inner tensors can be told apart like outer ones. What a subgraph returns is
always the result of a node of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from exporter.protos import constant_of, key_of, set_nodes, subgraphs

_CONTROL = frozenset({"If", "Loop", "Scan"})


def flatten_scopes(model: ModelProto) -> None:
    """Make the names of all subgraphs unique and move their constants to the main graph, in place.

    Subgraphs without a node and an output are left alone: nothing runs them.
    """
    taken = set(_definitions(model.graph))
    hoisted: list[TensorProto] = []
    _enter(model.graph, {}, taken, hoisted)
    model.graph.initializer.extend(hoisted)


def _enter(graph: GraphProto, names: Mapping[str, str], taken: set[str], hoisted: list[TensorProto]) -> None:
    """Go through the nodes of a graph whose own names are final; ``names`` maps those of the file to them."""
    for node in graph.node:
        if names:
            for i, name in enumerate(node.input):
                node.input[i] = names.get(name, name)
        for inner in subgraphs(node):
            local = dict(names)
            owner = key_of(node) or node.op_type
            for name in _definitions(inner):
                local[name] = _unique(name, owner, taken)
            _rename_definitions(inner, local)
            _enter(inner, local, taken, hoisted)
            if node.op_type in _CONTROL:
                _drop_defaults(inner, 0 if node.op_type == "If" else len(node.input))
            _hoist(inner, hoisted)
            _return_own_results(inner, taken)


def _definitions(graph: GraphProto) -> list[str]:
    names = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    names += [t.values.name for t in graph.sparse_initializer]
    names += [name for node in graph.node for name in node.output if name]
    return list(dict.fromkeys(names))


def _unique(name: str, owner: str, taken: set[str]) -> str:
    wish, n = name, 1
    while wish in taken:
        wish, n = (f"{owner}/{name}" if n == 1 else f"{owner}/{name}.{n}"), n + 1
    taken.add(wish)
    return wish


def _rename_definitions(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename what a graph defines or declares; what its nodes read follows later."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)
    for node in graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = names.get(name, name)


def _drop_defaults(graph: GraphProto, given: int) -> None:
    """Before IR version 4 constants were declared as inputs; those beyond the ``given`` ones are nothing else."""
    constants = {t.name for t in graph.initializer}
    for value in [v for v in list(graph.input)[given:] if v.name in constants]:
        graph.input.remove(value)


def _hoist(graph: GraphProto, hoisted: list[TensorProto]) -> None:
    """Take the constants out of a subgraph, but for those that are also its inputs: a caller may set them."""
    inputs = {v.name for v in graph.input}
    hoisted.extend(t for t in graph.initializer if t.name not in inputs)
    kept = [t for t in graph.initializer if t.name in inputs]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes: list[NodeProto] = []
    for node in graph.node:
        tensor = constant_of(node)
        if tensor is None:
            nodes.append(node)
            continue
        made = TensorProto()
        made.CopyFrom(tensor)
        made.name = node.output[0]
        hoisted.append(made)
    if len(nodes) < len(graph.node):
        set_nodes(graph, nodes)


def _return_own_results(graph: GraphProto, taken: set[str]) -> None:
    """Put an Identity where a subgraph returns a constant, an input, an outer value, or one result twice."""
    made = {name for node in graph.node for name in node.output}
    for value in graph.output:
        if value.name in made:
            made.discard(value.name)
            continue
        name = _unique(f"{value.name}.result", graph.name, taken)
        graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
        value.name = name
