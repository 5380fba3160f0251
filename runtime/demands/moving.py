"""Operators that keep axes, or move, join and split them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runtime.demands.facts import Dims, Node, broadcast, fixed, follows, known
from runtime.demands.terms import Extent, minus, over, plus, times

_KEEPING = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitwiseNot", "Cast", "Ceil", "Celu"),
    *("Clip", "Cos", "Cosh", "CumSum", "DequantizeLinear", "Dropout", "DynamicQuantizeLinear", "Elu", "Erf", "Exp"),
    *("FastGelu", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "IsInf", "IsNaN", "LRN"),
    *("LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Mish", "Neg", "Not"),
    *("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear", "QuickGelu", "Reciprocal", "Relu"),
    *("RotaryEmbedding", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu"),
)
_ELEMENTWISE = (
    *("Add", "And", "BiasGelu", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_END = 1 << 30
"""Ends of slices from here on mean all there is."""


@follows(*_KEEPING)
def kept(node: Node) -> Sequence[Dims]:
    """The axes of the first input."""
    return [node.dims()]


@follows(*_ELEMENTWISE)
def elementwise(node: Node) -> Sequence[Dims]:
    """All inputs broadcast."""
    return [broadcast(node.facts, *(node.dims(place) for place in range(len(node.proto.input))))]


@follows("QLinearAdd", "QLinearMul")
def elementwise_quantized(node: Node) -> Sequence[Dims]:
    """Two inputs broadcast, each with a scale and a zero point."""
    return [broadcast(node.facts, node.dims(0), node.dims(3))]


@follows("Transpose")
def transposed(node: Node) -> Sequence[Dims]:
    """Axes in another order."""
    dims = known(node.dims())
    order = node.attributes.get("perm") or range(len(dims))[::-1]
    return [tuple(dims[axis] for axis in order)]


@follows("Unsqueeze", "ExpandDims")
def unsqueezed(node: Node) -> Sequence[Dims]:
    """Axes of one put in between; they count those of the result."""
    found = list(known(node.dims()))
    axes = node.integers(1, "axes") or []
    rank = len(found) + len(axes)
    for axis in sorted(a % rank for a in axes):
        found.insert(axis, 1)
    return [tuple(found)]


@follows("Squeeze")
def squeezed(node: Node) -> Sequence[Dims]:
    """Axes of one left out: those that are named must be."""
    dims, axes = known(node.dims()), node.integers(1, "axes")
    ones = {k for k, size in enumerate(dims) if fixed(size) == 1} if axes is None else set()
    for axis in axes or ():
        node.facts.ask((dims[axis], 1))
    gone = ones | {a % len(dims) for a in axes or ()}
    return [tuple(size for k, size in enumerate(dims) if k not in gone)]


@follows("Flatten")
def flattened(node: Node) -> Sequence[Dims]:
    """Two axes: what lies before one, and from it on."""
    dims, axis = known(node.dims()), node.attributes.get("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return [(_product(dims[:axis]), _product(dims[axis:]))]


@follows("Reshape")
def reshaped(node: Node) -> Sequence[Dims]:
    """As many numbers in other axes: 0 keeps an axis, -1 is what is left."""
    target, dims = node.numbers(1), node.dims()
    if target is None:
        count = node.axis(1, 0)
        return [(None,) * count if isinstance(count, int) and count <= 16 else None]
    keeps = not node.attributes.get("allowzero")
    sizes = [node.axis(0, k) if keeps and size == 0 else size for k, size in enumerate(target)]
    if -1 in sizes:
        at = sizes.index(-1)
        sizes[at] = _left(list(dims), sizes[:at] + sizes[at + 1 :]) if dims is not None else None
    elif dims is not None:
        node.facts.ask((_product(dims), _product(sizes)))
    return [tuple(sizes)]


def _left(whole: list[Extent], parts: list[Extent]) -> Extent:
    """The product of the whole, divided by that of its parts; equal sizes cancel."""
    for size in list(parts):
        if size is not None and size in whole:
            whole.remove(size)
            parts.remove(size)
    above, below = (math.prod(s for s in sizes if isinstance(s, int)) for sizes in (whole, parts))
    if below and above % below == 0:
        above, below = above // below, 1
    left, right = (_product([s for s in sizes if not isinstance(s, int)]) for sizes in (whole, parts))
    return over(times(left, above), times(right, below))


def _product(sizes: Sequence[Extent]) -> Extent:
    total: Extent = 1
    for size in sizes:
        total = times(total, size)
    return total


@follows("Expand")
def expanded(node: Node) -> Sequence[Dims]:
    """Axes of one repeated, to a shape that is an input."""
    return [broadcast(node.facts, node.dims(), node.numbers(1))]


@follows("ConstantOfShape")
def filled(node: Node) -> Sequence[Dims]:
    """A shape that is an input."""
    return [node.numbers(0)]


@follows("Shape")
def shape(node: Node) -> Sequence[Dims]:
    """One number for each axis."""
    return [(len(known(node.dims())[slice(node.attributes.get("start"), node.attributes.get("end"))]),)]


@follows("Concat")
def joined(node: Node) -> Sequence[Dims]:
    """Behind one another along an axis; the others are equal."""
    shapes = [node.dims(place) for place in range(len(node.proto.input))]
    there = [s for s in shapes if s is not None]
    rank = len(known(there[0] if there else None))
    axis, found = node.attributes["axis"] % rank, list[Extent]()
    for k in range(rank):
        sizes = [s[k] if s is not None else None for s in shapes]
        if k == axis:
            total: Extent = 0
            for size in sizes:
                total = plus(total, size)
            found.append(total)
            continue
        sure = sorted((s for s in sizes if s is not None), key=lambda size: not isinstance(size, int))
        one = sure[0] if sure else None
        for size in sure:
            node.facts.ask((size, one))
        found.append(one)
    return [tuple(found)]


@follows("Split")
def split(node: Node) -> Sequence[Dims]:
    """Parts along an axis: of sizes that are given, or equal ones."""
    dims = known(node.dims())
    axis = node.attributes.get("axis", 0) % len(dims)
    count, sizes = len(node.proto.output), node.integers(1, "split")
    if sizes is not None:
        node.facts.ask((dims[axis], sum(sizes)))
    parts: Sequence[Extent] = sizes or [over(plus(dims[axis], count - 1), count)] * count
    return [(*dims[:axis], part, *dims[axis + 1 :]) for part in parts]


@follows("Slice")
def sliced(node: Node) -> Sequence[Dims]:
    """Part of some axes, from a start to an end that may be counted from behind."""
    dims = list(known(node.dims()))
    starts, ends = node.numbers(1), node.numbers(2)
    if not node.has(1):
        starts, ends = node.attributes["starts"], node.attributes["ends"]
    axes = node.integers(3, "axes") or range(len(starts or dims))
    steps = node.integers(4, "steps") or [1] * len(axes)
    for k, axis in enumerate(axes):
        known_ends = starts is not None and ends is not None
        dims[axis] = _cut(dims[axis], starts[k], ends[k], steps[k]) if known_ends and starts and ends else None
    return [tuple(dims)]


def _cut(size: Extent, start: Extent, end: Extent, step: int) -> Extent:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if step != 1 or not isinstance(start, int) or not isinstance(end, int) or size is None:
        return None
    if end >= _END:
        return minus(size, start) if start >= 0 else -start
    if end < 0 <= start:
        return minus(size, start - end)
    return end - start if start < end < 0 else None


@follows("Gather")
def gathered(node: Node) -> Sequence[Dims]:
    """Rows along an axis, which gives way to the axes of their numbers."""
    dims, indices = known(node.dims()), known(node.dims(1))
    axis = node.attributes.get("axis", 0) % len(dims)
    return [(*dims[:axis], *indices, *dims[axis + 1 :])]


@follows("Pad")
def padded(node: Node) -> Sequence[Dims]:
    """Numbers before and behind, for every axis or for those named."""
    dims, pads = list(known(node.dims())), node.numbers(1)
    if not node.has(1):
        pads = tuple(node.attributes["pads"])
    axes = node.integers(3, "axes") or range(len(dims))
    for k, axis in enumerate(axes):
        dims[axis] = plus(dims[axis], plus(pads[k], pads[len(axes) + k])) if pads is not None else None
    return [tuple(dims)]


@follows(
    *(f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"))
)
def reduced(node: Node) -> Sequence[Dims]:
    """Axes gone, or of one."""
    dims, axes = known(node.dims()), node.integers(1, "axes")
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return [dims]
    return [_without(dims, {a % len(dims) for a in axes or range(len(dims))}, node.attributes.get("keepdims", 1))]


@follows("ArgMax", "ArgMin")
def largest(node: Node) -> Sequence[Dims]:
    """One axis gone, or of one."""
    dims = known(node.dims())
    return [_without(dims, {node.attributes.get("axis", 0) % len(dims)}, node.attributes.get("keepdims", 1))]


def _without(dims: tuple[Extent, ...], gone: set[int], keep: int) -> Dims:
    return tuple(1 if k in gone else size for k, size in enumerate(dims) if keep or k not in gone)
