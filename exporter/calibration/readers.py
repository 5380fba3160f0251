"""Readers: the nodes whose output is a linear function of an activation and of weights in the file.

For a reader ``Y = X W + b``: each row of X [rows, K] holds what one position of the output sees of the input (for a
convolution the window under the kernel: all channels of its first position, then all of the next), W [K, outputs] the
weights, b the bias. Where the operator works in groups there is one such product for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from exporter.graph import Graph, Node
from exporter.tensors import Array

Matrix = NDArray[np.float64]
Rows = NDArray[np.float32]
Places = tuple[NDArray[np.int64], ...]

_FLOATS = (1, 10, 11)
_DEAD = 1e-6
"""Of the largest factor of a BatchNormalization: what multiplies by less lets nothing through."""

_FEW_ROWS = 0.1
"""Share of an activation's positions below which they are picked where they lie."""


@dataclass(frozen=True)
class Norm:
    """What a BatchNormalization behind does to a layer's outputs, which have their bias then: ``factor`` times the
    product, plus ``offset``, plus the stored bias; shapes (outputs,)."""

    factor: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """A linear layer, with the BatchNormalization behind it.

    Attributes:
        node: the node.
        source: name of the activation it reads.
        axis: the axis of the activation it contracts.
        weight: name of the weight.
        bias: name of the bias; None where there is none that can be changed.
        result: name of the output, after the bias.
        groups: number of independent products.
        scale: what the product is multiplied by.
        norm: the BatchNormalization that alone reads the layer itself; ``bias`` and ``result`` are its then.
    """

    node: Node
    source: str
    axis: int
    weight: str
    bias: str | None
    result: str
    groups: int = 1
    scale: float = 1.0
    norm: Norm | None = field(default=None, compare=False)

    @property
    def spatial(self) -> bool:
        """Whether it slides a kernel."""
        return self.node.op in ("Conv", "ConvTranspose")

    @property
    def channel_axis(self) -> int:
        """Axis of the outputs in the result."""
        return 1 if self.spatial else -1


def find_readers(graph: Graph) -> list[Reader]:
    """Readers among the top-level nodes, in order.

    A weight that others read too makes no reader, nor does a bias that cannot be changed, unless it is zero.
    """
    found = []
    for node in graph.nodes:
        reader = _reader(graph, node) if node.depth == 0 else None
        if reader is not None:
            found.append(_normalised(graph, reader))
    return found


def _reader(graph: Graph, node: Node) -> Reader | None:
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    source, weight = node.inputs[:2]
    shape = graph.shape(source)
    if source in graph.constants or shape is None or not _own(graph, weight):
        return None
    dims = tuple(graph.constants[weight].dims)
    if node.op == "MatMul":
        return _product(graph, node) if len(dims) == 2 and len(shape) > 1 and shape[-1] == dims[0] else None
    if node.op == "Gemm":
        groups, scale = 1, float(node.attributes.get("alpha", 1.0))
        if len(dims) != 2 or not scale or node.attributes.get("transA", 0) or node.attributes.get("beta", 1.0) != 1:
            return None
        inputs, outputs = dims[::-1] if node.attributes.get("transB", 0) else dims
    else:
        groups, scale = int(node.attributes.get("group", 1)), 1.0
        if len(dims) < 3 or len(shape) != len(dims) or groups < 1 or dims[0] % groups:
            return None
        inputs, outputs = (dims[1] * groups, dims[0]) if node.op == "Conv" else (dims[0], dims[1] * groups)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    usable = _own(graph, bias) and _is_bias(graph, bias, outputs)
    if bias and not usable and (bias not in graph.constants or graph.array(bias).any()):
        return None
    axis = -1 if node.op == "Gemm" else 1
    if shape[axis] != inputs:
        return None
    return Reader(node, source, axis, weight, bias if usable else None, node.outputs[0], groups, scale)


def _normalised(graph: Graph, reader: Reader) -> Reader:
    """The reader with the BatchNormalization behind it, where that alone reads its result."""
    users = graph.users.get(reader.result, [])
    shape = graph.shape(reader.result)
    if len(users) != 1 or reader.result in graph.outputs or shape is None or (not reader.spatial and len(shape) != 2):
        return reader
    behind, place = users[0]
    if behind.op != "BatchNormalization" or place or behind.depth or behind.attributes.get("training_mode"):
        return reader
    scale, bias, mean, variance = behind.inputs[1:5]
    constants = all(n in graph.constants and _is_bias(graph, n, shape[1]) for n in (scale, bias, mean, variance))
    if not constants or not _own(graph, bias):
        return reader
    gain, middle, spread = (np.asarray(graph.array(n), np.float64) for n in (scale, mean, variance))
    factor = gain / np.sqrt(spread + behind.attributes.get("epsilon", 1e-5))
    own = np.asarray(graph.array(reader.bias), np.float64).ravel() if reader.bias is not None else 0.0
    norm = Norm(factor, np.asarray((own - middle) * factor))
    return replace(reader, bias=bias, result=behind.outputs[0], norm=norm)


def plain(reader: Reader) -> Reader:
    """The reader with weights and bias that hold what its BatchNormalization does."""
    return replace(reader, norm=None)


def bias_of(reader: Reader, constant: Array) -> Matrix:
    """What is added to a reader's product, shape [groups, outputs], from the constant that holds its bias."""
    values = np.asarray(constant, np.float64).ravel()
    return (values if reader.norm is None else values + reader.norm.offset).reshape(reader.groups, -1)


def bias_constant(reader: Reader, bias: Matrix, old: Array) -> Array:
    """The constant that holds a bias [groups, outputs], in the shape and type of the present one.

    Args:
        reader: the reader.
        bias: what is to be added to the product.
        old: the constant as it is.
    """
    values = bias.ravel() if reader.norm is None else bias.ravel() - reader.norm.offset
    return values.reshape(old.shape).astype(old.dtype)


def _product(graph: Graph, node: Node) -> Reader:
    """A MatMul, with the bias an Add puts on it."""
    result = node.outputs[0]
    users = graph.users.get(result, [])
    width = graph.constants[node.inputs[1]].dims[1]
    if len(users) == 1 and users[0][0].op == "Add" and users[0][0].depth == 0 and result not in graph.outputs:
        add, i = users[0]
        other = add.inputs[1 - i]
        if _own(graph, other) and _is_bias(graph, other, width) and len(graph.constants[other].dims) == 1:
            return Reader(node, node.inputs[0], -1, node.inputs[1], other, add.outputs[0])
    return Reader(node, node.inputs[0], -1, node.inputs[1], None, result)


def _is_bias(graph: Graph, name: str, outputs: int) -> bool:
    """Say whether a constant holds one number for each output."""
    dims = graph.constants[name].dims
    return len(dims) > 0 and dims[-1] == outputs and int(np.prod(dims)) == outputs


def _own(graph: Graph, name: str) -> bool:
    """Say whether a name is a floating-point constant that one node reads."""
    return (
        name in graph.constants
        and graph.constants[name].data_type in _FLOATS
        and len(graph.users.get(name, ())) == 1
        and name not in graph.shared
        and name not in graph.outputs
    )


def columns(reader: Reader, weight: Sequence[int]) -> int:
    """K: what one output sees of the input, for a weight of that shape."""
    if reader.node.op == "Conv":
        return int(np.prod(weight[1:]))
    if reader.node.op == "ConvTranspose":
        return int(np.prod([weight[0] // reader.groups, *weight[2:]]))
    return int(weight[1] if reader.node.op == "Gemm" and reader.node.attributes.get("transB", 0) else weight[0])


def positions(reader: Reader, graph: Graph) -> int:
    """How often one output sees each channel: the positions of the kernel."""
    return int(np.prod(graph.constants[reader.weight].dims[2:])) if reader.spatial else 1


# -- weights as matrices ----------------------------------------------------------------------------------------


def matrix(reader: Reader, weight: Array) -> Matrix:
    """A weight as matrices, shape [groups, K, outputs]."""
    w = np.asarray(weight, np.float64)
    g = reader.groups
    if reader.node.op == "Conv":
        found = w.reshape(g, w.shape[0] // g, w.shape[1], -1).transpose(0, 3, 2, 1).reshape(g, -1, w.shape[0] // g)
    elif reader.node.op == "ConvTranspose":
        blocks = w.reshape(g, w.shape[0] // g, w.shape[1], -1)
        found = blocks.transpose(0, 3, 1, 2).reshape(g, -1, w.shape[1])
    else:
        transposed = reader.node.op == "Gemm" and reader.node.attributes.get("transB", 0)
        found = (w.T if transposed else w)[None] * reader.scale
    return found if reader.norm is None else found * reader.norm.factor.reshape(g, 1, -1)


def dead_outputs(reader: Reader) -> NDArray[np.bool_]:
    """Outputs that a BatchNormalization lets nothing through of, shape [groups, outputs] where it has one."""
    if reader.norm is None:
        return np.zeros((reader.groups, 1), bool)
    factor = np.abs(reader.norm.factor)
    return np.asarray(factor <= _DEAD * factor.max()).reshape(reader.groups, -1)


def weight_of(reader: Reader, matrices: Matrix, like: Array) -> Array:
    """The inverse of ``matrix``: the weight in its shape and type.

    Args:
        reader: the reader.
        matrices: shape [groups, K, outputs].
        like: the present weight, which stays where a BatchNormalization lets nothing of it through.
    """
    g, _, outputs = matrices.shape
    if reader.norm is not None:
        dead = dead_outputs(reader)[:, None]
        divided = matrices / np.where(dead, 1.0, reader.norm.factor.reshape(g, 1, -1))
        matrices = np.where(dead, matrix(plain(reader), like), divided)
    if reader.spatial:
        split = matrices.reshape(g, int(np.prod(like.shape[2:])), -1, outputs)
        values = split.transpose((0, 3, 2, 1) if reader.node.op == "Conv" else (0, 2, 3, 1))
    else:
        values = matrices[0] / reader.scale
        if reader.node.op == "Gemm" and reader.node.attributes.get("transB", 0):
            values = values.T
    return np.ascontiguousarray(values.reshape(like.shape)).astype(like.dtype)


def constants_of(
    reader: Reader, graph: Graph, matrices: Matrix, bias: Matrix | None, like: Array | None = None
) -> dict[str, Array]:
    """The constants that hold weights and bias, in the shapes and types of the present ones.

    Args:
        reader: of the graph.
        graph: holds the present ones.
        matrices: the weights, shape [groups, K, outputs].
        bias: shape [groups, outputs]; None leaves it out.
        like: the weight for ``weight_of``; None stands for the present one.
    """
    values = {reader.weight: weight_of(reader, matrices, graph.array(reader.weight) if like is None else like)}
    if reader.bias is not None and bias is not None:
        values[reader.bias] = bias_constant(reader, bias, graph.array(reader.bias))
    return values


# -- activations as rows ----------------------------------------------------------------------------------------


def places(reader: Reader, shape: tuple[int, ...], rows: int, rng: np.random.Generator) -> Places:
    """Positions of a result of that shape, at most ``rows`` of them, drawn without replacement."""
    free = [n for k, n in enumerate(shape) if k != reader.channel_axis % len(shape)]
    total = int(np.prod(free))
    chosen = np.arange(total) if total <= rows else np.sort(rng.choice(total, rows, replace=False))
    return tuple(np.asarray(i) for i in np.unravel_index(chosen, free))


def outputs_at(reader: Reader, result: Array, at: Places) -> Rows:
    """Outputs at some positions, shape [rows, outputs]."""
    moved = np.moveaxis(np.asarray(result), reader.channel_axis, -1)
    return np.asarray(moved[at], np.float32)


def grouped_outputs_at(reader: Reader, result: Array, at: Places) -> Rows:
    """Outputs at some positions, shape [groups, rows, outputs of a group]."""
    rows = outputs_at(reader, result, at)
    return rows.reshape(len(rows), reader.groups, -1).transpose(1, 0, 2)


def inputs_at(reader: Reader, source: Array, at: Places, kernel: tuple[int, ...], spatial: tuple[int, ...]) -> Rows:
    """What the outputs at some positions see, shape [groups, rows, K].

    Args:
        reader: the reader.
        source: its activation.
        at: positions of its result.
        kernel: kernel sizes; empty for a matrix product.
        spatial: spatial sizes of its result.
    """
    moved = np.moveaxis(np.asarray(source), reader.axis, -1)
    if not reader.spatial:
        return np.asarray(moved[at], np.float32)[None]
    shape, channels = moved.shape[:-1], moved.shape[-1]
    attributes = reader.node.attributes
    rank = len(kernel)
    stride = list(attributes.get("strides", [1] * rank))
    dilation = list(attributes.get("dilations", [1] * rank))
    before = _pads(reader, shape[1:], kernel, spatial)
    batch, *where = at
    offsets = np.array(list(np.ndindex(*kernel)))
    valid = np.ones((len(batch), len(offsets)), bool)
    index = batch[:, None]
    for k in range(rank):
        if reader.node.op == "Conv":
            place = where[k][:, None] * stride[k] + offsets[:, k] * dilation[k] - before[k]
        else:
            whole = where[k][:, None] + before[k] - offsets[:, k] * dilation[k]
            valid &= whole % stride[k] == 0
            place = whole // stride[k]
        valid &= (place >= 0) & (place < shape[1 + k])
        index = index * shape[1 + k] + place
    index[~valid] = 0
    if index.size > _FEW_ROWS * math.prod(shape):  # rows read in order are read faster
        rows = np.ascontiguousarray(moved, np.float32).reshape(-1, channels).take(index, 0)
    else:
        flat = np.unravel_index(index.reshape(-1), shape)  # wrong beyond 8,192 for a column (numpy's issue 31980)
        rows = np.asarray(moved[flat], np.float32).reshape(*index.shape, channels)
    rows[~valid] = 0
    split = rows.reshape(len(batch), len(offsets), reader.groups, -1)
    return np.ascontiguousarray(split.transpose(2, 0, 1, 3)).reshape(reader.groups, len(batch), -1)


def _pads(reader: Reader, source: tuple[int, ...], kernel: tuple[int, ...], result: tuple[int, ...]) -> list[int]:
    """Padding in front of each spatial axis."""
    attributes = reader.node.attributes
    rank = len(kernel)
    auto = attributes.get("auto_pad", "NOTSET")
    if auto == "NOTSET" and not attributes.get("output_shape"):
        return list(attributes.get("pads", [0] * 2 * rank))[:rank]
    if auto == "VALID" and not attributes.get("output_shape"):
        return [0] * rank
    stride = attributes.get("strides", [1] * rank)
    dilation = attributes.get("dilations", [1] * rank)
    extra = attributes.get("output_padding", [0] * rank)
    found = []
    for k in range(rank):
        extent = (kernel[k] - 1) * dilation[k] + 1
        if reader.node.op == "Conv":
            total = max(0, (result[k] - 1) * stride[k] + extent - source[k])
        else:
            total = max(0, stride[k] * (source[k] - 1) + extra[k] + extent - result[k])
        found.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return found


def channel_of_column(reader: Reader, channels: int, columns: int) -> NDArray[np.int64]:
    """Index along the contracted axis of every column, shape [groups, K]."""
    inside = channels // reader.groups
    each = np.tile(np.arange(inside), columns // inside)
    return np.asarray(np.arange(reader.groups)[:, None] * inside + each[None])
