"""Carry out a plan: take the kept indices of every constant, and update the numbers in the file that count them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from exporter import external_parts, tensors
from exporter.fold import FreshName
from exporter.graph import Graph, opsets_of
from exporter.interface import pruned_shapes, shrunk
from exporter.normalise import normalise
from exporter.plan import ConstantTake, GatherEdit, Plan, SizeEdit
from exporter.plan_check import check_fits
from exporter.protos import all_nodes, constant_of, fresh_names, graphs_of, key_of, reads, set_nodes
from exporter.removal import forget_unmade, renewed_calls, take_out

_SLICE_INPUTS_OPSET = 10
_STAYS_OUTSIDE = 1 << 20
"""Bytes of an external constant from which what is cut from it is described, not made."""
IDS_KEY = "secateur.ids"
"""Metadata of a pruned model that says which ids its inputs' ids stand for, followed by the input's name."""


def rewrite(graph: Graph, plan: Plan) -> Graph:
    """Carry out a plan.

    Args:
        graph: the graph the plan was made for; it stays as it is.
        plan: as ``make_plan`` returned it, or read from a file.

    Returns:
        The pruned graph. It is not proved yet: see ``verify``.

    Raises:
        UsageError: the plan was made for another model.
    """
    check_fits(plan, graph)
    model = _without_constants(graph.model)
    nodes = {key_of(n): n for n in all_nodes(model.graph)}
    _rewire_clones(plan, nodes)
    for name, take in plan.take.items():
        if not take.removed:
            _take_constant(graph, model, nodes, name, take)
    for tensor in graph.model.graph.initializer:
        if tensor.name not in plan.take:
            model.graph.initializer.add().CopyFrom(tensor)
    _edit_sizes(model, nodes, plan.sizes)
    _replace_by_gathers(model, plan.gathers)
    take_out(model, plan.drop, graph.constants)
    _resize_declared(model, plan)
    _record_ids(model, graph, plan)
    source = dataclasses.replace(graph.source, path=None, size=0)
    pruned = normalise(model, graph.folder, source, pruned_shapes(plan, graph.binding.shapes))
    pruned.calls = renewed_calls(graph.calls, plan.drop)
    return pruned


def _without_constants(model: ModelProto) -> ModelProto:
    """A copy of everything but the initializers, which are large and about to be cut."""
    copy = ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        elif field.message_type is not None:
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name == "initializer":
            continue
        if hasattr(value, "extend"):
            getattr(copy.graph, field.name).extend(value)
        else:
            setattr(copy.graph, field.name, value)
    return copy


def _rewire_clones(plan: Plan, nodes: Mapping[str, NodeProto]) -> None:
    for name, take in plan.take.items():
        for key, index in take.uses:
            nodes[key].input[index] = name


def _take_constant(
    graph: Graph, model: ModelProto, nodes: Mapping[str, NodeProto], name: str, take: ConstantTake
) -> None:
    """Put what becomes of a constant where it was: into its Constant node, or among the initializers."""
    origin = take.clone_of or name
    unchanged = not take.axes and take.values is None
    if take.clone_of is None and name in graph.producer:
        held = constant_of(nodes[name])
        if not unchanged and held is not None:
            tensors.assign(held, _taken(graph, origin, take))
        return
    tensor, old = model.graph.initializer.add(), graph.constants[origin]
    if unchanged:
        tensor.CopyFrom(old)
    else:
        tensor.data_type = old.data_type
        tensor.doc_string = old.doc_string
        tensor.metadata_props.extend(old.metadata_props)
        if take.values is None and tensors.is_external(old) and tensors.nbytes(old) >= _STAYS_OUTSIDE:
            external_parts.describe(tensor, old, {axis: kept.keep for axis, kept in take.axes.items()})
        else:
            tensors.assign(tensor, _taken(graph, origin, take))
    tensor.name = name


def _taken(graph: Graph, name: str, take: ConstantTake) -> tensors.Array:
    values = graph.array(name)
    if take.values is not None:
        return np.array(take.values).astype(values.dtype).reshape(values.shape)
    return external_parts.take(values, {axis: kept.keep for axis, kept in take.axes.items()})


def _edit_sizes(model: ModelProto, nodes: Mapping[str, NodeProto], edits: tuple[SizeEdit, ...]) -> None:
    """Write new sizes into attributes, and into inputs the file left out."""
    fresh = fresh_names(model)
    for edit in edits:
        node = nodes[edit.node]
        if edit.attribute is not None:
            renewed = onnx.helper.make_attribute(edit.attribute, _plain(edit.value))
            present = [a for a in node.attribute if a.name == edit.attribute] or [node.attribute.add()]
            present[0].CopyFrom(renewed)
            continue
        assert edit.input is not None
        while len(node.input) <= edit.input:
            node.input.append("")
        node.input[edit.input] = fresh(f"{edit.node}.sizes")
        values = np.array(edit.value, np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, node.input[edit.input]))
        kept = [a for a in node.attribute if a.name != "num_outputs"]  # Split takes either that or sizes
        del node.attribute[:]
        node.attribute.extend(kept)


def _plain(value: tuple[int, ...] | int) -> list[int] | int:
    return list(value) if isinstance(value, tuple) else value


def _replace_by_gathers(model: ModelProto, edits: tuple[GatherEdit, ...]) -> None:
    """Put one Gather in place of the last node of each selection; nodes nothing reads any more go."""
    if not edits:
        return
    fresh = fresh_names(model)
    by_result = {edit.result: edit for edit in edits}
    dead = {key for edit in edits for key in edit.nodes} - set(by_result)
    for graph in reversed(list(graphs_of(model.graph))):  # a chain may start outside the subgraph it ends in
        _replace_in(graph, model, by_result, dead, fresh)


def _replace_in(
    graph: GraphProto, model: ModelProto, by_result: Mapping[str, GatherEdit], dead: set[str], fresh: FreshName
) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        edit = by_result.get(key_of(node))
        nodes.append(node if edit is None else _selection(model, edit, node, fresh))
    outputs = {v.name for v in graph.output}
    while True:  # a chain of several nodes dies from its end
        read = {name for node in nodes for name in reads(node)} | outputs
        kept = [n for n in nodes if not (n.output and n.output[0] in dead and n.output[0] not in read)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    set_nodes(graph, nodes)


def _selection(model: ModelProto, edit: GatherEdit, old: NodeProto, fresh: FreshName) -> NodeProto:
    """A Slice where the indices run on without a gap, which is cheaper, else a Gather."""

    def constant(values: list[int], wish: str) -> str:
        name = f"{edit.result}.{wish}"
        former = [t for t in model.graph.initializer if t.name == name] if _owns(model, old, name) else []
        if former:  # a cut before this one made it for the same node
            model.graph.initializer.remove(former[0])
        else:
            name = fresh(name)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    first, last = edit.indices[0], edit.indices[-1]
    opset = opsets_of(model).get("", 1)
    if edit.indices == tuple(range(first, last + 1)) and opset >= _SLICE_INPUTS_OPSET:
        inputs = [constant([first], "starts"), constant([last + 1], "ends"), constant([edit.axis], "axes")]
        node = onnx.helper.make_node("Slice", [edit.source, *inputs], [edit.result], old.name)
    else:
        indices = constant(list(edit.indices), "indices")
        node = onnx.helper.make_node("Gather", [edit.source, indices], [edit.result], old.name, axis=edit.axis)
    node.doc_string = old.doc_string
    node.metadata_props.extend(old.metadata_props)
    return node


def _owns(model: ModelProto, node: NodeProto, name: str) -> bool:
    """Say whether a node, and no other, reads a tensor."""
    return name in node.input and sum(list(n.input).count(name) for n in all_nodes(model.graph)) == 1


def _resize_declared(model: ModelProto, plan: Plan) -> None:
    """Bring declared shapes of inner tensors, inputs and outputs up to date; drop those of no tensor."""
    forget_unmade(model)
    sizes = {name: {axis: len(t.keep) for axis, t in axes.items()} for name, axes in plan.hide.items()}
    sizes |= {
        name: {axis: len(t.keep) for axis, t in take.axes.items()} for name, take in plan.take.items() if take.axes
    }
    for graph in graphs_of(model.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            for axis, size in sizes.get(value.name, {}).items():
                _declare(value, axis, size)


def _record_ids(model: ModelProto, graph: Graph, plan: Plan) -> None:
    """Write which ids of the first original an input's ids stand for into the model's metadata, as a JSON list."""
    for cut in shrunk(plan, graph):
        if cut.ids:
            key = f"{IDS_KEY}.{cut.name}"
            present = [p for p in model.metadata_props if p.key == key]
            former = json.loads(present[0].value) if present else range(cut.before)
            record = present[0] if present else model.metadata_props.add(key=key)
            record.value = json.dumps([former[k] for k in cut.keep])


def _declare(value: ValueInfoProto, axis: int, size: int) -> None:
    """Renew a declared size. An axis declared by a symbol, or not at all, depends on the inputs and stays so."""
    dims = value.type.tensor_type.shape.dim
    if axis < len(dims) and dims[axis].HasField("dim_value"):
        dims[axis].dim_value = size
