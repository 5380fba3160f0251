"""The float model to start from: BatchNormalization folded, weights that are constants, nodes named, an operator set
that is high enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from exporter.atomic import scratch
from exporter.computed_weights import fold_weights
from exporter.errors import ModelError
from exporter.graph import IR_WITH_FREE_INITIALIZERS, Graph, op_of
from exporter.normalise import serialize_with_data
from exporter.protos import (
    all_nodes,
    attributes_of,
    constant_of,
    fresh_names,
    graphs_of,
    read_instead,
    reads,
    remove_named,
    set_nodes,
)
from exporter.quantization.layers import QUANTIZED, name_nodes
from exporter.quantization.loops import free_constants
from exporter.quantization.precisions import Precision
from runtime.backends import SessionOptions, open_session
from runtime.errors import RunError

_MOST_BYTES = 2_000_000_000

Moved = Mapping[str, Sequence[NodeProto]]
"""Constants that are others from another side, and the nodes that made them of these."""


def float_model(graph: Graph, kind: Precision) -> tuple[ModelProto, Moved, list[str]]:
    """The model, its weights that were nodes, and what is to be said of it.

    A layer that is to compute on integers has a weight of its own then, also where an embedding reads the same from
    another side. Where it computes in float it does not, since that would only make the file larger.

    Raises:
        ModelError: it is quantized already, has no 32-bit weights, is too large, or cannot be brought there.
    """
    size = sum(len(t.raw_data) or 4 * len(t.float_data) for t in graph.model.graph.initializer)
    if max(size, graph.source.size) > _MOST_BYTES:
        raise ModelError(
            f"the model takes {graph.source.size / 1e9:.1f} GB; onnxruntime.quantization handles up to 2 GB. Prune it "
            "first."
        )
    model = ModelProto()
    model.ParseFromString(serialize_with_data(graph.model, graph.folder))  # in which functions are written out
    _lift_constants(model)
    free_constants(model)
    operators = {node.op_type for node in all_nodes(model.graph)}
    if found := [op for op in QUANTIZED if op in operators]:
        raise ModelError(f"the model is quantized already: it holds {found[0]}. Start from the float model.")
    kinds = {t.data_type for t in model.graph.initializer}
    if TensorProto.FLOAT not in kinds and kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        raise ModelError("the weights have 16 bits; quantization starts from 32. Start from the model before.")
    notes = []
    if "BatchNormalization" in operators:
        model = _folded(model)
        notes.append("BatchNormalization was folded into the layers before, by ONNX Runtime")
    _free_initializers(model)
    model = _upgraded(model, kind.opset)
    _see_through(model)
    moved = fold_weights(model, Path(), graph.static, moved=True, tied=not kind.weights_only)
    _once(model, moved)
    _full_biases(model)
    name_nodes(model)
    return _with_true_shapes(model), moved, notes


def tied_again(model: ModelProto, moved: Moved) -> None:
    """Compute copies again that stayed in float, of what stayed in float too, in place."""
    floats = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    there = {t.name for t in model.graph.initializer}.union(*(node.output for node in model.graph.node))
    added: dict[str, NodeProto] = {}
    for name, nodes in moved.items():
        made = {out for node in nodes for out in node.output}
        if name in floats & made and {at for node in nodes for at in node.input if at} - made <= there:
            added |= {node.output[0]: node for node in nodes if node.output[0] == name or node.output[0] not in there}
    if added:
        remove_named(model.graph.initializer, added.keys())
        set_nodes(model.graph, [*added.values(), *model.graph.node])


def _lift_constants(model: ModelProto) -> None:
    """Make initializers of Constant nodes, where onnxruntime.quantization looks for weights, and of weights inside."""
    for graph in reversed(list(graphs_of(model.graph))):
        found = [(node, constant_of(node)) for node in graph.node]
        if graph is not model.graph:
            found = [(node, tensor if tensor is not None and _is_weight(tensor) else None) for node, tensor in found]
        for node, tensor in found:
            if tensor is not None:
                model.graph.initializer.add().CopyFrom(tensor)
                model.graph.initializer[-1].name = node.output[0]
        set_nodes(graph, [node for node, tensor in found if tensor is None])


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2


def _see_through(model: ModelProto) -> None:
    """Let nodes read constants themselves that come through an Identity: layers that share a weight."""
    constants = {tensor.name for tensor in model.graph.initializer}
    seen: dict[str, str] = {}
    for node in model.graph.node:
        read_instead([node], seen)
        if op_of(node) == "Identity" and node.input[0] in constants:
            seen[node.output[0]] = node.input[0]
    read = {value.name for value in model.graph.output}.union(*map(reads, model.graph.node))
    unread = seen.keys() - read
    set_nodes(model.graph, [node for node in model.graph.node if unread.isdisjoint(node.output)])


def _once(model: ModelProto, names: Iterable[str]) -> None:
    """Keep one of several constants that are equal: layers may turn the same weight, each for itself."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    of = {name: tensors[name] for name in names}
    seen: dict[tuple[object, ...], str] = {}
    first = {name: seen.setdefault((*t.dims, t.data_type, t.raw_data), name) for name, t in of.items()}
    copies = {name: one for name, one in first.items() if name != one}
    read_instead(model.graph.node, copies)
    remove_named(model.graph.initializer, copies.keys())


def _full_biases(model: ModelProto) -> None:
    """Give a Gemm a bias for each output, or none: onnxruntime.quantization knows no other."""
    tensors = {t.name: t for t in model.graph.initializer}
    unused, made = fresh_names(model), dict[tuple[str, int], str]()
    for node in model.graph.node:
        if op_of(node) != "Gemm" or len(node.input) < 3 or node.input[2] not in tensors:
            continue
        values = numpy_helper.to_array(tensors[node.input[2]])
        factor = attributes_of(node).get("beta", 1.0)
        if not factor or not values.any():
            del node.input[2]
        elif values.ndim < 2 and node.input[1] in tensors:
            turned = attributes_of(node).get("transB")
            outputs = tensors[node.input[1]].dims[0 if turned else 1]
            if values.size != outputs:
                key = node.input[2], outputs
                if key not in made:
                    full, made[key] = np.full(outputs, values, np.float32), unused(f"{node.input[2]}_full")
                    model.graph.initializer.append(numpy_helper.from_array(full, made[key]))
                node.input[2] = made[key]


def _with_true_shapes(model: ModelProto) -> ModelProto:
    """The model with what onnx infers of its tensors in place of what the file says, which may be wrong."""
    said = list(model.graph.value_info)
    del model.graph.value_info[:]
    found = onnx.shape_inference.infer_shapes(model)
    known = {value.name for value in found.graph.value_info} | {tensor.name for tensor in found.graph.initializer}
    found.graph.value_info.extend(value for value in said if value.name not in known)
    return found


def _free_initializers(model: ModelProto) -> None:
    """Take initializers out of the inputs, where old files declare all of them: integers cannot be fed as floats."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, IR_WITH_FREE_INITIALIZERS)


def _folded(model: ModelProto) -> ModelProto:
    """The model after ONNX Runtime's basic optimisation, which keeps to standard operators."""
    with scratch() as folder:
        file = folder / "folded.onnx"
        try:
            open_session(model.SerializeToString(), options=SessionOptions(level="basic", save=file))
        except RunError as error:
            raise ModelError(f"the model cannot be loaded: {error}") from error
        return onnx.load(file)


def _upgraded(model: ModelProto, opset: int) -> ModelProto:
    """The model in an operator set that knows the numbers needed."""
    now = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), opset)
    if now >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        raise ModelError(
            f"operator set {opset} is needed, and onnx cannot bring the model from {now} there: {error}"
        ) from error
