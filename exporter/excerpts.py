"""Some nodes of a graph as a model that runs alone: the tensors before them are its inputs, and so are large weights,
which then need no place in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from exporter import tensors
from exporter.ahead import made_ahead
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


class Room:
    """Memory for the weights of one excerpt after another: new memory costs more time than what is done in it."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.float32)

    def divided(self, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        """Arrays of some shapes side by side; what was in those before is gone."""
        ends = list(accumulate(map(math.prod, shapes), initial=0))
        if ends[-1] > self._numbers.size:
            self._numbers = np.empty(ends[-1], np.float32)
        return [self._numbers[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)]


def run_excerpt(
    model: ModelProto, part: Excerpt, names: Sequence[str], values: Sequence[Mapping[str, Array]], what: str, room: Room
) -> list[dict[str, Array]]:
    """Run a model on several sets of values.

    Args:
        model: that of the excerpt, or one made from it with the same inputs.
        part: says what is to be fed.
        names: outputs to return.
        values: for each run, the tensors before the excerpt.
        what: what messages call it.
        room: where weights of 16 bits are while it runs.

    Raises:
        ModelError: ONNX Runtime does not run it.
    """
    if not names:
        return [{} for _ in values]
    narrow = [n for n in part.weights if part.graph.constants[n].data_type in NARROW]
    places = dict(zip(narrow, room.divided([tuple(part.graph.constants[n].dims) for n in narrow]), strict=True))

    def weight(name: str) -> Array:
        values = part.graph.array(name)
        return numbers(values, places[name]) if name in places else values

    fed = dict(made_ahead(part.weights, weight))
    model = _without_gates(model, fed, set(narrow))
    session = open_own(model.SerializeToString(), what)
    wanted = {spec.name for spec in session.inputs}
    fed = {n: np.ascontiguousarray(v) for n, v in fed.items() if n in wanted}
    return [run_own(session, fed | {n: v[n] for n in part.inputs if n in wanted}, what, names) for v in values]


def _without_gates(model: ModelProto, fed: dict[str, Array], own: set[str]) -> ModelProto:
    """A model without what sets parts of a weight to zero: the weight that is fed has them, once for all runs.

    Args:
        model: stays as it is.
        fed: weights by name. One that only a gate reads is replaced by the gate's output.
        own: those of them that may be changed in place.
    """
    times = Counter(name for node in model.graph.node for name in reads(node))
    times.update(output.name for output in model.graph.output)
    constants = {t.name: t for t in model.graph.initializer}
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    inputs = {value.name: value for value in result.graph.input}
    for node in model.graph.node:
        hidden = None
        if node.op_type == "Where" and times[node.input[1]] == 1 and node.input[1] in fed:
            hidden = _hidden(fed[node.input[1]].shape, *(constants.get(node.input[i]) for i in (0, 2)))
        if hidden is None:
            result.graph.node.append(node)
            continue
        name, output = node.input[1], node.output[0]
        values = fed.pop(name) if name in own else np.array(fed.pop(name))
        bits = values.view(f"i{values.itemsize}")
        bits &= np.where(hidden, 0, -1).astype(bits.dtype)  # many times as fast as a copy of what is hidden
        fed[output] = values
        own.add(output)
        inputs[output] = inputs.pop(name)
        inputs[output].name = output
    return result


def _hidden(shape: tuple[int, ...], mask: TensorProto | None, fill: TensorProto | None) -> NDArray[np.bool_] | None:
    """Where a gate sets a weight of some shape to zero; None where it does something else."""
    if mask is None or fill is None or np.any(onnx.numpy_helper.to_array(fill)) or math.prod(fill.dims) != 1:
        return None
    stays = onnx.numpy_helper.to_array(mask)
    fits = len(fill.dims) <= len(shape) >= stays.ndim and np.broadcast_shapes(shape, stays.shape) == shape
    return ~stays if fits else None


def in_32_bits(values: Array) -> Array:
    """Values in 32 bits where they have 16."""
    return numbers(values) if is_float(values) and values.dtype.itemsize == 2 else values
