"""Some nodes of a graph as a model that runs alone: the tensors before them are its inputs, and so are large weights,
which then need no place in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from exporter import tensors
from exporter.errors import ModelError
from exporter.external_parts import is_described
from exporter.fed_weights import NARROW, Room, in_room
from exporter.graph import Graph, bare_model
from exporter.halves import numbers
from exporter.protos import reads
from exporter.relative_difference import Array, is_float
from exporter.sessions import open_own, run_own
from exporter.side_by_side import in_run, side_by_side
from exporter.widened import widen

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *NARROW)

_FED_BYTES = 1 << 16
_READ_ONCE = 1 << 24
"""Elements of weights from which all runs are done at once."""


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
    model, before = bare_model(graph, nodes, outputs)
    inputs, weights = [], []
    for name in before:
        tensor = graph.constants.get(name)
        if tensor is None:
            if name not in known:
                raise ModelError(f"'{name}' is read before it is made; the model cannot be proved piece by piece.")
            inputs.append(name)
            _declare(model, name, graph, known[name])
        elif tensor.dims and tensors.nbytes(tensor) >= _FED_BYTES and tensor.data_type in FLOATS:
            weights.append(name)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        else:
            copy = model.graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = name
            tensors.take_in(copy, graph.folder)
    widen(model, NARROW)
    return Excerpt(model, tuple(inputs), tuple(weights), graph)


def _declare(model: ModelProto, name: str, graph: Graph, values: Array) -> None:
    value, kind = model.graph.input.add(name=name), graph.inferred.type_of(name)
    if kind is not None:
        value.type.CopyFrom(kind)
    else:
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(values).dtype)
    if value.type.HasField("tensor_type"):
        value.type.tensor_type.ClearField("shape")
        for _ in range(np.ndim(values)):
            value.type.tensor_type.shape.dim.add(dim_value=graph.fixed_length(name))


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
    constants = {name: part.graph.constants[name] for name in part.weights}
    model, gated = _without_gates(model, {name: tuple(tensor.dims) for name, tensor in constants.items()})
    shapes = {gated[name].name: tuple(tensor.dims) for name, tensor in constants.items()}
    joined = side_by_side(model, shapes, len(values), _READ_ONCE) if len(values) > 1 else None
    session = open_own((joined or model).SerializeToString(), what)
    wanted = {spec.name for spec in session.inputs}
    hidden = {name: weight.hidden for name, weight in gated.items()}
    made = {n: t for n, t in constants.items() if t.data_type in NARROW or hidden[n] or is_described(t)}
    values_of = in_room(made, part.graph.folder, room, hidden)
    values_of |= {n: np.ascontiguousarray(part.graph.array(n)) for n in constants.keys() - made.keys()}
    fed = {gated[n].name: v for n, v in values_of.items() if gated[n].name in wanted}
    if joined is None:
        return [run_own(session, fed | {n: v[n] for n in part.inputs if n in wanted}, what, names) for v in values]
    fed |= {in_run(n, k): v[n] for k, v in enumerate(values) for n in part.inputs if in_run(n, k) in wanted}
    found = run_own(session, fed, what, [in_run(n, k) for k in range(len(values)) for n in names])
    return [{n: found[in_run(n, k)] for n in names} for k in range(len(values))]


@dataclass
class _Gated:
    """A weight and the gates on it.

    Attributes:
        name: what the model calls the result.
        hidden: for each gate where it sets the weight to zero, of a shape that broadcasts to the weight's.
    """

    name: str
    hidden: list[NDArray[np.bool_]] = field(default_factory=list)


def _without_gates(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ModelProto, dict[str, _Gated]]:
    """A model without what sets parts of a weight to zero: the weight that is fed is to have them, once for all runs.

    Args:
        model: stays as it is.
        shapes: of the weights that are fed. For one that only a gate reads, the gate's output is fed.

    Returns:
        The model, and its weights by the names they have in ``shapes``.
    """
    times = Counter(name for node in model.graph.node for name in reads(node))
    times.update(output.name for output in model.graph.output)
    constants = {t.name: t for t in model.graph.initializer}
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    inputs = {value.name: value for value in result.graph.input}
    weights = {name: _Gated(name) for name in shapes}
    by_name = {weight.name: (weight, shapes[name]) for name, weight in weights.items()}
    for node in model.graph.node:
        hidden = None
        if node.op_type == "Where" and times[node.input[1]] == 1 and node.input[1] in by_name:
            hidden = _hidden(by_name[node.input[1]][1], *(constants.get(node.input[i]) for i in (0, 2)))
        if hidden is None:
            result.graph.node.append(node)
            continue
        name, output = node.input[1], node.output[0]
        by_name[output] = by_name.pop(name)
        by_name[output][0].name = output
        by_name[output][0].hidden.append(hidden)
        inputs[output] = inputs.pop(name)
        inputs[output].name = output
    return result, weights


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
