"""The axis resolver: which constants are weights of layers, seen through whatever lies between, and along which axis.

Every constant is followed forwards through Transpose, Reshape, Cast, QuantizeLinear, DequantizeLinear and the like to
the nodes that compute with it. In the constant as it is stored, a run along the summed axis is a number of elements a
fixed step apart: two readers agree on a pattern exactly when they agree on the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from exporter.graph import RETURNED, Graph, Node
from exporter.sparsity.layouts import Layout, stored
from exporter.sparsity.operators import Operand, operand
from exporter.sparsity.patterns import Pattern
from runtime.nouns import counted

WORTH = 256
"""Inputs and outputs from which sparse kernels tend to pay."""

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_CODES = frozenset(
    getattr(TensorProto, name)
    for name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")
    if hasattr(TensorProto, name)
)
_SAME = frozenset({"Identity", "Cast", "Dropout"})
_QUANTIZE = frozenset({"QuantizeLinear", "com.microsoft::QuantizeLinear"})
_DEQUANTIZE = frozenset({"DequantizeLinear", "com.microsoft::DequantizeLinear"})
_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_SELECT = frozenset({"Gather", "com.microsoft::EmbedLayerNormalization"})
_MEASURE = frozenset({"Shape", "Size"})
_SPARSE_KERNELS = Pattern(2, 4, 0.5)


@dataclass(frozen=True)
class Coding:
    """How codes become numbers: ``(code - zero) * scale``.

    Attributes:
        scale, zero: names of the constants; "" where there is none.
        axis: axis of the constant along which they vary.
        block: so many neighbours along it share one; 0 where each has its own.
    """

    scale: str
    zero: str
    axis: int
    block: int = 0


@dataclass(frozen=True)
class Use:
    """A layer that reads a constant as its weight.

    Attributes:
        node: the node.
        index: the input it reads it with.
        layout: how it sees the constant; None where a reshape mixes its axes.
        operand: what it does with it.
        coding: what turns codes into numbers on the way.
    """

    node: Node
    index: int
    layout: Layout | None
    operand: Operand
    coding: Coding | None

    @property
    def inputs(self) -> int:
        """Number of weights that are summed for one output at one kernel position; 0 where that cannot be told."""
        axis = self.operand.axis
        if self.layout is None or axis is None:
            return 0
        return self.layout.dims[axis] // max(self.operand.groups, 1)

    @property
    def outputs(self) -> int:
        """Number of outputs; 0 where that cannot be told."""
        axis = self.operand.outputs
        return self.layout.dims[axis] if self.layout is not None and axis is not None else 0

    @property
    def step(self) -> int:
        """Distance between neighbours along the summed axis, in the constant as it is stored."""
        axis = self.operand.axis
        assert self.layout is not None
        assert axis is not None
        return self.layout.strides[axis]


@dataclass(frozen=True)
class Weight:
    """A constant that layers read as their weight.

    Attributes:
        name: of the constant.
        dims: its shape.
        dtype: its ONNX type.
        uses: the layers, in the order of the graph.
        others: what else is done with it, in words; a pattern is not applied there.
        tied: the nodes that select rows of it.
    """

    name: str
    dims: tuple[int, ...]
    dtype: int
    uses: tuple[Use, ...]
    others: tuple[str, ...]
    tied: tuple[Node, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def coding(self) -> Coding | None:
        """What turns its codes into numbers; None for floating-point numbers."""
        return next((u.coding for u in self.uses if u.coding is not None), None)

    @property
    def names(self) -> set[str]:
        """What patterns of ``--keep`` and ``--only`` are compared with."""
        return {self.name} | {n for u in self.uses for n in (u.node.proto.name, u.node.key) if n}


def find_weights(graph: Graph) -> list[Weight]:
    """All constants that some layer reads as its weight, in the order of the layers."""
    found = []
    for name, tensor in graph.constants.items():
        if tensor.data_type in _FLOATS | _CODES and math.prod(tensor.dims) > 1:
            weight = _weight(graph, name)
            if weight is not None:
                found.append(weight)
    return sorted(found, key=lambda w: w.uses[0].node.index)


def _weight(graph: Graph, name: str) -> Weight | None:
    tensor = graph.constants[name]
    uses: list[Use] = []
    others: list[str] = []
    tied: list[Node] = []
    origin = _Seen(stored(tensor.dims), None, tensor.data_type in _CODES)
    for node, index, seen in _readers(graph, name, origin):
        what = operand(node, index, len(seen.layout.dims) if seen.layout is not None else 2)
        if what is not None:
            own, fault = (seen.coding, "") if seen.coding else _own_coding(graph, node, what, seen.layout, tensor.dims)
            uses.append(Use(node, index, seen.layout, what, own))
            others += [seen.fault or fault] if seen.fault or fault else []
        elif node.op in _SELECT and index == 0 and not seen.fault:
            tied.append(node)
        elif node.op not in _MEASURE:
            others.append(seen.fault or f"{node.label} reads it too")
    if name in graph.outputs:
        others.append("it is an output of the model")
    if not uses:
        return None
    uses.sort(key=lambda u: u.node.index)
    others += [
        f"{uses[0].node.label} and {use.node.label} read it with different zero points"
        for use in uses[1:]
        if _zero(graph, use.coding) != _zero(graph, uses[0].coding)
    ]
    return Weight(name, tuple(tensor.dims), tensor.data_type, tuple(uses), tuple(others), tuple(tied))


@dataclass(frozen=True)
class _Seen:
    """A constant as it is seen from somewhere.

    Attributes:
        layout: None where a reshape mixes its axes.
        coding: what turned its codes into numbers.
        codes: whether these are codes still.
        fault: what no pattern gets past.
    """

    layout: Layout | None
    coding: Coding | None
    codes: bool
    fault: str = ""


def _readers(graph: Graph, name: str, seen: _Seen) -> Iterator[tuple[Node, int, _Seen]]:
    """The nodes that compute with a tensor, the input they read it with, and how they see the constant."""
    for node, index in graph.users.get(name, ()):
        passes = node.op in _SAME | _QUANTIZE | _DEQUANTIZE or node.op in _MOVES
        if index != 0 or not passes:
            yield node, index, seen
            continue
        after = _after(graph, node, seen)
        if node.outputs[0] in graph.outputs:
            yield node, RETURNED, replace(after, fault=f"{node.label} makes it an output of the model")
        yield from _readers(graph, node.outputs[0], after)


def _after(graph: Graph, node: Node, seen: _Seen) -> _Seen:
    """How a constant is seen behind a node that hands it on."""
    layout = seen.layout
    if node.op in _DEQUANTIZE and seen.codes:
        if layout is None or layout != stored(layout.dims):
            return replace(seen, fault=f"{node.label} dequantizes it after its axes were moved")
        missing = [n for n in node.inputs[1:] if n and n not in graph.constants]
        if missing:
            return replace(seen, fault=f"the scale or zero point of {node.label} is computed")
        scale, zero = (node.inputs[k] if len(node.inputs) > k else "" for k in (1, 2))
        axis = int(node.attributes.get("axis", 1))
        coding = Coding(scale, zero, axis % len(layout.dims), int(node.attributes.get("block_size", 0)))
        return replace(seen, coding=coding, codes=False)
    if node.op in _QUANTIZE and not seen.codes:
        return replace(seen, coding=Coding("", "", 0))  # the constant holds numbers, whatever reads their codes
    if layout is None or node.op not in _MOVES:
        return seen
    if node.op == "Transpose":
        axes = range(len(layout.dims))
        order = node.attributes.get("perm", axes[::-1])
        if sorted(order) != list(axes):
            return replace(seen, layout=None, fault=f"{node.label} names axes that its input does not have")
        return replace(seen, layout=layout.transposed(order))
    shape = graph.shape(node.outputs[0])
    return replace(seen, layout=layout.reshaped(shape) if shape is not None else None)


def _own_coding(
    graph: Graph, node: Node, what: Operand, layout: Layout | None, dims: Sequence[int]
) -> tuple[Coding | None, str]:
    """The coding of an operator that takes codes as they are, and why none is known where it has one.

    Args:
        graph: the graph.
        node: the operator.
        what: how it reads the constant.
        layout: how it sees it.
        dims: shape of the constant as it is stored.
    """
    scale, zero = (node.inputs[k] if k is not None and k < len(node.inputs) else "" for k in (what.scale, what.zero))
    factors = [name for name in (scale, zero) if name]
    if not factors:
        return None, ""
    if not graph.constants.keys() >= set(factors):
        return None, f"the scale or zero point of {node.label} is computed"
    counts = {math.prod(graph.constants[name].dims) for name in factors} - {1}
    if not counts:
        return Coding(scale, zero, 0), ""
    steps = stored(dims).strides
    axes = [
        k
        for k, (size, step) in enumerate(zip(dims, steps, strict=True))
        if layout is not None and (size, step) == (layout.dims[what.coded], layout.strides[what.coded])
    ]
    if not axes or counts != {dims[axes[0]]}:
        return None, f"the scale or zero point of {node.label} varies along no axis of the constant"
    return Coding(scale, zero, axes[0]), ""


def _zero(graph: Graph, coding: Coding | None) -> tuple[object, ...]:
    """What stands for zero: one number, or several and where each of them holds."""
    if coding is None or not coding.zero:
        return (0,)
    values = graph.array(coding.zero).reshape(-1).astype(np.float32)
    alike = values.size and (values == values[0]).all()
    return (values[0].item(),) if alike else (values.tobytes(), coding.axis, coding.block)


def refusal(weight: Weight, pattern: Pattern) -> str:
    """Why a pattern cannot be put on a weight; "" where it can."""
    if weight.others:
        return weight.others[0]
    packed = [u.operand.doubt for u in weight.uses if u.operand.packed]
    if packed:
        return packed[0]
    if not pattern.grouped:
        return ""
    for use in weight.uses:
        if use.operand.axis is None:
            return use.operand.doubt
        if use.layout is None:
            return f"a Reshape in front of {use.node.label} mixes the axes"
        if use.inputs % pattern.of:
            return f"{counted(use.inputs, 'input is', 'inputs are')} no multiple of {pattern.of}"
    first = weight.uses[0]
    for use in weight.uses[1:]:
        if use.step != first.step:
            return f"{first.node.label} and {use.node.label} share it and sum over different axes"
    return ""


def reservation(weight: Weight, pattern: Pattern) -> str:
    """Why a pattern is not put on a weight unless it is asked for by name (``--also``); "" where it is."""
    if weight.tied:
        return f"{weight.tied[0].label} selects rows of it (a tied embedding)"
    doubts = [u.operand.doubt for u in weight.uses if u.operand.doubt] if pattern.grouped else []
    return doubts[0] if doubts else ""


def benefit(weight: Weight) -> str:
    """What sparse kernels may gain there, by its sizes alone; no claim replaces a measurement."""
    use = weight.uses[0]
    if reservation(weight, _SPARSE_KERNELS):
        return "none known"
    if min(use.inputs, use.outputs) < WORTH:
        return f"little: fewer than {WORTH} inputs or outputs"
    if use.inputs % 16 or use.outputs % 8:
        return "little: sizes no multiple of 16 and 8"
    return "likely"
