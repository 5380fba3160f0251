"""Some nodes of a graph as a model that runs alone: the tensors before them are its inputs, and so are large weights,
which then need no place in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from exporter import tensors
from exporter.errors import ModelError
from exporter.graph import Graph
from exporter.halves import numbers
from exporter.protos import reads
from exporter.relative_difference import Array, is_float
from exporter.sessions import open_own, run_own
from exporter.widened import widen

NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *NARROW)

_FED_BYTES = 1 << 16


@dataclass(frozen=True)
class Excerpt:
    """Some nodes as a model whose inputs are the tensors before them, and large weights.

    Attributes:
        model: the model.
        inputs: tensors to be fed.
        weights: constants to be fed, by name.
        graph: what they are of.
    """

    model: ModelProto
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    graph: Graph


def excerpt(graph: Graph, nodes: Sequence[NodeProto], outputs: Sequence[str], known: Mapping[str, Array]) -> Excerpt:
    """Make a model of some nodes, 16-bit numbers in 32 bits.

    Args:
        graph: the graph; ``inferred`` has such tensors as float32 ones already.
        nodes: in order.
        outputs: tensors to return.
        known: values of the tensors before them.

    Raises:
        ModelError: a node reads what is not known.
    """
    model = ModelProto(ir_version=graph.model.ir_version)
    model.opset_import.extend(graph.model.opset_import)
    model.functions.extend(graph.model.functions)
    model.graph.name = "piece"
    made = {o for node in nodes for o in node.output}
    inputs, weights = [], []
    for name in sorted({n for node in nodes for n in reads(node)} - made):
        tensor = graph.constants.get(name)
        if tensor is None:
            if name not in known:
                raise ModelError(f"'{name}' is read before it is made; the model cannot be proved piece by piece.")
            inputs.append(name)
            _declare(model, name, graph.inferred.type_of(name), known[name])
        elif tensors.nbytes(tensor) >= _FED_BYTES and tensor.data_type in FLOATS:
            weights.append(name)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        else:
            copy = model.graph.initializer.add()
            if tensors.is_external(tensor):
                copy.CopyFrom(onnx.numpy_helper.from_array(tensors.read(tensor, graph.folder)))
            else:
                copy.CopyFrom(tensor)
            copy.name = name
    model.graph.node.extend(nodes)
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs)
    widen(model, NARROW)
    return Excerpt(model, tuple(inputs), tuple(weights), graph)


def _declare(model: ModelProto, name: str, kind: TypeProto | None, values: Array) -> None:
    value = model.graph.input.add(name=name)
    if kind is not None:
        value.type.CopyFrom(kind)
    else:
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(values).dtype)
    if value.type.HasField("tensor_type"):
        value.type.tensor_type.ClearField("shape")
        for _ in range(np.ndim(values)):
            value.type.tensor_type.shape.dim.add()


def run_excerpt(
    model: ModelProto, part: Excerpt, names: Sequence[str], values: Sequence[Mapping[str, Array]], what: str
) -> list[dict[str, Array]]:
    """Run a model on several sets of values.

    Args:
        model: that of the excerpt, or one made from it with the same inputs.
        part: says what is to be fed.
        names: outputs to return.
        values: for each run, the tensors before the excerpt.
        what: what messages call it.

    Raises:
        ModelError: ONNX Runtime does not run it.
    """
    if not names:
        return [{} for _ in values]
    session = open_own(model.SerializeToString(), what)
    wanted = {spec.name for spec in session.inputs}
    fed = {n: np.ascontiguousarray(in_32_bits(part.graph.array(n))) for n in part.weights if n in wanted}
    return [run_own(session, fed | {n: v[n] for n in part.inputs if n in wanted}, what, names) for v in values]


def in_32_bits(values: Array) -> Array:
    """Values in 32 bits where they have 16."""
    return numbers(values) if is_float(values) and values.dtype.itemsize == 2 else values
