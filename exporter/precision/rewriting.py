"""The file in two precisions: constants converted, casts where the two meet, interface kept or changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from exporter import tensors
from exporter.normalise import fresh_names
from exporter.precision.lowering import Operands
from exporter.protos import captured_names, reads, set_nodes, subgraphs

_DTYPES: dict[int, Any] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_ENDLESS = 1e30


@dataclass
class _Work:
    """What has been made so far.

    Attributes:
        low: the half-precision type.
        kinds: type of each tensor in the file as it was.
        stored: type in which each tensor exists now.
        other: name of the same tensor in the other type.
        nodes: the new list of nodes.
    """

    model: ModelProto
    folder: Path
    low: int
    kinds: Mapping[str, int]
    stored: dict[str, int]
    fresh: Callable[[str], str]
    constants: Mapping[str, TensorProto]
    other: dict[str, str]
    nodes: list[NodeProto]


def rewrite_types(
    model: ModelProto,
    folder: Path,
    low: int,
    lowered: Mapping[str, Operands],
    kinds: Mapping[str, int],
    constants: Mapping[str, TensorProto],
    keep_io: bool,
) -> int:
    """Change a model in place so that some nodes compute in half precision.

    Args:
        model: the model, without function calls.
        folder: where its external data lies.
        low: FLOAT16 or BFLOAT16.
        lowered: operands that become half precision, by the node's first output.
        kinds: types of all tensors.
        constants: initializers and outputs of Constant nodes.
        keep_io: the types of inputs and outputs stay.

    Returns:
        How many casts were added.
    """
    graph = model.graph
    work = _Work(model, folder, low, kinds, dict(kinds), fresh_names(model), constants, {}, [])
    named = {n for node in graph.node for inner in subgraphs(node) for n in captured_names(inner)}
    if keep_io:
        named |= {v.name for v in graph.output}
    else:
        _change_inputs(work, lowered, named)
    for node in list(graph.node):
        operands = lowered.get(next((o for o in node.output if o), ""))
        made = NodeProto()
        made.CopyFrom(node)
        operands = operands or Operands(frozenset(), frozenset())
        _feed(work, made, operands.inputs)
        _name_type(made, operands, low)
        for k in operands.outputs:
            work.stored[made.output[k]] = low
        work.nodes.append(made)
        for k in (k for k in operands.outputs if made.output[k] in named):  # somebody else reads fp32 by this name
            name = made.output[k]
            inner = work.fresh(f"{name}.{_suffix(low)}")
            made.output[k] = inner
            work.nodes.append(helper.make_node("Cast", [inner], [name], f"{name}.cast", to=TensorProto.FLOAT))
            work.stored[name], work.other[name] = TensorProto.FLOAT, inner
    _declare(work, keep_io)
    before = len(graph.node)
    set_nodes(graph, work.nodes)
    _drop_unused(model)
    return len(graph.node) - before


def convert_values(values: tensors.Array, low: int) -> tensors.Array:
    """Values in half precision; what stands for infinity becomes the largest number there is, with its sign.

    Args:
        values: of any shape.
        low: FLOAT16 or BFLOAT16.
    """
    wide = np.asarray(values, np.float32)
    if low == TensorProto.FLOAT16:
        endless = np.isfinite(wide) & (np.abs(wide) >= _ENDLESS)
        wide = np.where(endless, np.copysign(np.float32(np.finfo(np.float16).max), wide), wide)
    return wide.astype(_DTYPES[low])


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
        old = work.constants[name]
        tensor = onnx.numpy_helper.from_array(
            np.ascontiguousarray(convert_values(tensors.read(old, work.folder), wanted)).reshape(tuple(old.dims)), made
        )
        work.model.graph.initializer.append(tensor)
    else:
        work.nodes.append(helper.make_node("Cast", [name], [made], f"{made}.cast", to=wanted))
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


def _change_inputs(work: _Work, lowered: Mapping[str, Operands], named: set[str]) -> None:
    """Inputs that some node reads in half precision are given in it."""
    read = {
        node.input[k]
        for node in work.model.graph.node
        for k in lowered.get(next((o for o in node.output if o), ""), Operands(frozenset(), frozenset())).inputs
    }
    for value in work.model.graph.input:
        if value.name in read - named and value.name not in work.constants:
            value.type.tensor_type.elem_type = work.low
            work.stored[value.name] = work.low


def _declare(work: _Work, keep_io: bool) -> None:
    for value in work.model.graph.output:
        if not keep_io and value.type.HasField("tensor_type"):
            value.type.tensor_type.elem_type = work.stored.get(value.name, value.type.tensor_type.elem_type)
    del work.model.graph.value_info[:]  # their types have changed


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in reads(node)} | {v.name for v in model.graph.output}
    set_nodes(model.graph, [n for n in model.graph.node if n.op_type != "Constant" or n.output[0] in used])
    kept = [t for t in model.graph.initializer if t.name in used]
    if len(kept) < len(model.graph.initializer):
        copies = [TensorProto.FromString(t.SerializeToString()) for t in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
