"""The file in two precisions: constants converted, casts where the two meet, interface kept or changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from exporter.precision.lowering import Operands
from exporter.precision.values import LARGEST, Retyped, convert_values
from exporter.protos import all_nodes, fresh_names, key_of, reads, set_nodes, subgraphs

_NOTHING = Operands(frozenset(), frozenset())


@dataclass
class _Work:
    """What has been made so far.

    Attributes:
        low: the half-precision type.
        kinds: type of each tensor in the file as it was.
        stored: type in which each tensor exists now.
        other: name of the same tensor in the other type.
        top: the new list of nodes of the main graph.
        home: the new list of nodes of the graph a tensor belongs to, where that is a subgraph.
    """

    model: ModelProto
    low: int
    kinds: Mapping[str, int]
    stored: dict[str, int]
    fresh: Callable[[str], str]
    constants: Mapping[str, TensorProto]
    retyped: Retyped
    other: dict[str, str]
    top: list[NodeProto]
    home: dict[str, list[NodeProto]]


def rewrite_types(
    model: ModelProto,
    low: int,
    lowered: Mapping[str, Operands],
    kinds: Mapping[str, int],
    constants: Mapping[str, TensorProto],
    retyped: Retyped,
    keep_io: bool,
) -> int:
    """Change a model in place so that some nodes compute in half precision.

    Args:
        model: the model, without function calls.
        low: FLOAT16 or BFLOAT16.
        lowered: operands that become half precision, by the node's first output.
        kinds: types of all tensors.
        constants: initializers and outputs of Constant nodes.
        retyped: makes them half precision.
        keep_io: the types of inputs and outputs stay.

    Returns:
        How many casts were added.
    """
    work = _Work(model, low, kinds, dict(kinds), fresh_names(model), constants, retyped, {}, [], {})
    named = {v.name for v in model.graph.output} if keep_io else set()
    if not keep_io:
        _change_inputs(work, lowered)
    before = _casts(model)
    limit_fills(model, low)
    _rewrite(work, model.graph, lowered, named, work.top)
    if not keep_io:
        _declare(work)
    _drop_unused(model)
    return _casts(model) - before


def limit_fills(model: ModelProto, low: int) -> None:
    """Fills of the lowest fp32 number are the lowest there is in bf16, in place: cast they would be infinite, and
    ConstantOfShape makes bf16 itself only from operator set 20 on."""
    if low != TensorProto.BFLOAT16:
        return
    for node in all_nodes(model.graph):
        for attribute in node.attribute if node.op_type == "ConstantOfShape" else ():
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                number = onnx.numpy_helper.to_array(attribute.t)
                fitting = convert_values(number, low).astype(np.float32)
                if np.all(np.isfinite(number) & (np.abs(number) > LARGEST[low])):
                    attribute.t.CopyFrom(onnx.numpy_helper.from_array(fitting))


def _casts(model: ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in all_nodes(model.graph))


def _rewrite(
    work: _Work, graph: GraphProto, lowered: Mapping[str, Operands], named: set[str], nodes: list[NodeProto]
) -> None:
    """Rewrite a graph and what lies in it. What enters and leaves a subgraph stays fp32 under its name.

    Args:
        work: what has been made so far.
        graph: changed in place.
        lowered: operands that become half precision, by the node's first output.
        named: tensors that somebody else reads in fp32 by this name.
        nodes: receives the new nodes, casts of tensors that subgraphs read among them.
    """
    if nodes is not work.top:
        work.home.update((value.name, nodes) for value in graph.input)
    for node in graph.node:
        operands = lowered.get(key_of(node), _NOTHING)
        made = NodeProto()
        made.CopyFrom(node)
        for inner in subgraphs(made):
            _rewrite(work, inner, lowered, {v.name for v in inner.output}, [])
        _feed(work, made, operands.inputs)
        _name_type(made, operands, work.low)
        if nodes is not work.top:
            work.home.update((name, nodes) for name in node.output)
        for k in operands.outputs:
            work.stored[made.output[k]] = work.low
        nodes.append(made)
        for k in (k for k in operands.outputs if made.output[k] in named):
            name = made.output[k]
            inside = work.fresh(f"{name}.{_suffix(work.low)}")
            made.output[k] = inside
            nodes.append(helper.make_node("Cast", [inside], [name], f"{name}.cast", to=TensorProto.FLOAT))
            work.stored[name], work.other[name] = TensorProto.FLOAT, inside
    set_nodes(graph, nodes)
    del graph.value_info[:]  # their types have changed


def _suffix(kind: int) -> str:
    return "fp32" if kind == TensorProto.FLOAT else "fp16" if kind == TensorProto.FLOAT16 else "bf16"


def _feed(work: _Work, node: NodeProto, low_inputs: frozenset[int]) -> None:
    """Give a node its inputs in the types it takes; what was half precision in the file stays that."""
    for k, name in enumerate(node.input):
        if not name or work.kinds.get(name) != TensorProto.FLOAT:
            continue
        wanted = work.low if k in low_inputs else TensorProto.FLOAT
        if wanted != work.stored[name]:
            node.input[k] = _in_type(work, name, wanted)


def _in_type(work: _Work, name: str, wanted: int) -> str:
    if name in work.other:
        return work.other[name]
    made = work.fresh(f"{name}.{_suffix(wanted)}")
    if name in work.constants:
        work.model.graph.initializer.append(work.retyped.tensor(name, made))
    else:
        nodes = work.home.get(name, work.top)  # what reads it in a subgraph is part of a node that comes later
        nodes.append(helper.make_node("Cast", [name], [made], f"{made}.cast", to=wanted))
    work.other[name] = made
    return made


def _name_type(node: NodeProto, operands: Operands, low: int) -> None:
    if node.op_type == "Cast" and operands.outputs:
        next(a for a in node.attribute if a.name == "to").i = low
    elif node.op_type == "ConstantOfShape" and operands.outputs:
        value = next((a for a in node.attribute if a.name == "value"), None)
        number = onnx.numpy_helper.to_array(value.t) if value is not None else np.zeros(1, np.float32)
        if value is not None:
            node.attribute.remove(value)
        node.attribute.append(helper.make_attribute("value", onnx.numpy_helper.from_array(convert_values(number, low))))


def _change_inputs(work: _Work, lowered: Mapping[str, Operands]) -> None:
    """Inputs that some node reads in half precision are given in it."""
    nodes = all_nodes(work.model.graph)
    read = {node.input[k] for node in nodes for k in lowered.get(key_of(node), _NOTHING).inputs}
    for value in work.model.graph.input:
        if value.name in read and value.name not in work.constants:
            value.type.tensor_type.elem_type = work.low
            work.stored[value.name] = work.low


def _declare(work: _Work) -> None:
    for value in work.model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.elem_type = work.stored.get(value.name, value.type.tensor_type.elem_type)


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in reads(node)} | {v.name for v in model.graph.output}
    set_nodes(model.graph, [n for n in model.graph.node if n.op_type != "Constant" or n.output[0] in used])
    gone = {t.name for t in model.graph.initializer} - used
    for value in [v for v in model.graph.input if v.name in gone]:  # it was a default, and is no input without
        model.graph.input.remove(value)
    kept = [t for t in model.graph.initializer if t.name in used]
    if len(kept) < len(model.graph.initializer):
        copies = [TensorProto.FromString(t.SerializeToString()) for t in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
