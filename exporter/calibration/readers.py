"""Readers: the nodes whose output is a linear function of an activation and of weights in the file.

For a reader ``Y = X W + b``: each row of X [rows, K] holds what one position of the output sees of the input (for a
convolution the window under the kernel), W [K, outputs] the weights, b the bias. Where the operator works in groups
there is one such product for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.graph import Graph, Node
from exporter.tensors import Array

Matrix = NDArray[np.float64]
Rows = NDArray[np.float32]
Places = tuple[NDArray[np.int64], ...]

_FLOATS = (1, 10, 11)
_FEW_ROWS = 0.1
"""Share of an activation's positions below which they are picked where they lie."""


@dataclass(frozen=True)
class Reader:
    """A linear layer.

    Attributes:
        node: the node.
        source: name of the activation it reads.
        axis: the axis of the activation it contracts.
        weight: name of the weight.
        bias: name of the bias; None where there is none that can be changed.
        result: name of the output, after the bias.
        groups: number of independent products.
        scale: what the product is multiplied by.
        shifted: whether the bias stands as the mean that a BatchNormalization behind takes off the output.
    """

    node: Node
    source: str
    axis: int
    weight: str
    bias: str | None
    result: str
    groups: int = 1
    scale: float = 1.0
    shifted: bool = False

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
            found.append(reader)
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
    mean = _mean_behind(graph, node, outputs) if not bias and axis == 1 else ""
    name = bias if usable else mean or None
    return Reader(node, source, axis, weight, name, node.outputs[0], groups, scale, bool(mean))


def _mean_behind(graph: Graph, node: Node, outputs: int) -> str:
    """The stored mean of the BatchNormalization that alone reads a convolution without a bias; else ""."""
    result = node.outputs[0]
    users = graph.users.get(result, [])
    if len(users) != 1 or result in graph.outputs:
        return ""
    norm, place = users[0]
    if norm.op != "BatchNormalization" or place or norm.depth or norm.attributes.get("training_mode"):
        return ""
    mean = norm.inputs[3]
    return mean if _own(graph, mean) and _is_bias(graph, mean, outputs) else ""


def bias_of(reader: Reader, constant: Array) -> Matrix:
    """What a reader's bias adds to its result, shape [groups, outputs], from the constant that holds it.

    A mean that is taken off behind the result adds nothing to it.
    """
    values = np.asarray(constant, np.float64).reshape(reader.groups, -1)
    return np.zeros_like(values) if reader.shifted else values


def bias_constant(reader: Reader, bias: Matrix, old: Array) -> Array:
    """The constant that holds a bias [groups, outputs], in the shape and type of the present one.

    Args:
        reader: the reader.
        bias: what is to be added to the result.
        old: the constant as it is.
    """
    values = bias.reshape(old.shape)
    return np.asarray(np.asarray(old, np.float64) - values if reader.shifted else values).astype(old.dtype)


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
        return w.reshape(g, w.shape[0] // g, -1).transpose(0, 2, 1)
    if reader.node.op == "ConvTranspose":
        blocks = w.reshape(g, w.shape[0] // g, w.shape[1], -1)
        return blocks.transpose(0, 1, 3, 2).reshape(g, -1, w.shape[1])
    if reader.node.op == "Gemm" and reader.node.attributes.get("transB", 0):
        w = w.T
    return w[None] * reader.scale


def weight_of(reader: Reader, matrices: Matrix, like: Array) -> Array:
    """The inverse of ``matrix``: the weight in its shape and type."""
    g, _, outputs = matrices.shape
    if reader.node.op == "Conv":
        values = matrices.transpose(0, 2, 1)
    elif reader.node.op == "ConvTranspose":
        kernel = int(np.prod(like.shape[2:]))
        values = matrices.reshape(g, -1, kernel, outputs).transpose(0, 1, 3, 2)
    else:
        values = matrices[0] / reader.scale
        if reader.node.op == "Gemm" and reader.node.attributes.get("transB", 0):
            values = values.T
    return np.ascontiguousarray(values.reshape(like.shape)).astype(like.dtype)


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
    if len(at[0]) * int(np.prod(kernel)) > _FEW_ROWS * moved[..., 0].size:  # rows read in order are read faster
        moved = np.ascontiguousarray(moved, np.float32)
    attributes = reader.node.attributes
    rank = len(kernel)
    stride = list(attributes.get("strides", [1] * rank))
    dilation = list(attributes.get("dilations", [1] * rank))
    before = _pads(reader, moved.shape[1:-1], kernel, spatial)
    batch, *where = at
    channels = moved.shape[-1]
    rows = np.empty((len(batch), int(np.prod(kernel)), channels), np.float32)
    for q, offset in enumerate(np.ndindex(*kernel)):
        valid = np.ones(len(batch), bool)
        index = []
        for k in range(rank):
            if reader.node.op == "Conv":
                place = where[k] * stride[k] + offset[k] * dilation[k] - before[k]
            else:
                whole = where[k] + before[k] - offset[k] * dilation[k]
                valid &= whole % stride[k] == 0
                place = whole // stride[k]
            valid &= (place >= 0) & (place < moved.shape[1 + k])
            index.append(np.clip(place, 0, moved.shape[1 + k] - 1))
        rows[:, q] = moved[(batch, *index)]
        if not valid.all():
            rows[~valid, q] = 0
    groups = reader.groups
    split = rows.reshape(len(batch), rows.shape[1], groups, channels // groups)
    return np.ascontiguousarray(split.transpose(2, 0, 3, 1)).reshape(groups, len(batch), -1)


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
    each = np.arange(inside).repeat(columns // inside)
    return np.asarray(np.arange(reader.groups)[:, None] * inside + each[None])
