"""Elements of small integer tensors: shapes read off tensors, computed with, and given to Reshape and Expand."""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto, numpy_helper

from runtime.demands.facts import Node, fixed
from runtime.demands.terms import Extent, larger, minus, over, plus, times

Numbers = tuple[Extent, ...] | None

MOST = 64
"""Elements of the largest tensor whose numbers are followed."""
_INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})


def constant(tensor: TensorProto) -> Numbers:
    """The elements of a small integer tensor; None for any other."""
    count = 1
    for size in tensor.dims:
        count *= size
    if tensor.data_type not in _INTEGERS or count > MOST or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return tuple(int(n) for n in numpy_helper.to_array(tensor).ravel())


def numbers(node: Node) -> Numbers:
    """The elements of a node's first output, where they are numbers or terms."""
    compute = _COMPUTED.get(node.proto.op_type)
    return compute(node) if compute is not None else None


def _same(node: Node) -> Numbers:
    return node.numbers(0)


def _cast(node: Node) -> Numbers:
    return node.numbers(0) if node.attributes["to"] in _INTEGERS else None


def _shape(node: Node) -> Numbers:
    dims = node.dims()
    return None if dims is None else dims[slice(node.attributes.get("start"), node.attributes.get("end"))]


def _gather(node: Node) -> Numbers:
    data, indices = node.numbers(0), node.numbers(1)
    if data is None or indices is None or len(node.dims(0) or ()) != 1:
        return None
    return tuple(data[fixed(i)] for i in indices)


def _slice(node: Node) -> Numbers:
    data, parts = node.numbers(0), [node.numbers(place) for place in (1, 2, 4)]
    if not node.has(1):
        parts = [tuple(node.attributes[name]) for name in ("starts", "ends")] + [None]
    if data is None or parts[0] is None or parts[1] is None or len(node.dims(0) or ()) != 1:
        return None
    step = fixed(parts[2][0]) if parts[2] is not None else 1
    return data[slice(fixed(parts[0][0]), fixed(parts[1][0]), step)]


def _concat(node: Node) -> Numbers:
    found: list[Extent] = []
    for place in range(len(node.proto.input)):
        part, count = node.numbers(place), node.axis(place, 0)
        if part is None and (not isinstance(count, int) or count > MOST):
            return None
        found += part if part is not None else (None,) * fixed(count)
    return tuple(found)


def _filled(node: Node) -> Numbers:
    shape = node.numbers(0)
    count = 1
    for size in shape if shape is not None else (None,):
        count *= fixed(size)
    value = node.attributes.get("value")
    number = constant(value) if value is not None else None
    return number * count if number is not None and count <= MOST else None


def _pairwise(combine: Callable[[Extent, Extent], Extent]) -> Callable[[Node], Numbers]:
    def compute(node: Node) -> Numbers:
        left, right = node.numbers(0), node.numbers(1)
        if left is None or right is None:
            return None
        count = max(len(left), len(right))
        left, right = (side * count if len(side) == 1 else side for side in (left, right))
        return tuple(combine(a, b) for a, b in zip(left, right, strict=True))

    return compute


def _equal(left: Extent, right: Extent) -> Extent:
    """Whether two numbers are equal; a size is never negative, nor is what is computed with sizes here."""
    if left is None or right is None:
        return None
    if left == right:
        return 1
    negative = any(isinstance(side, int) and side < 0 for side in (left, right))
    return 0 if negative or (isinstance(left, int) and isinstance(right, int)) else None


def _where(node: Node) -> Numbers:
    sides = [node.numbers(place) for place in range(3)]
    count = max(len(side or ()) for side in sides)
    chosen, left, right = (
        (None,) * count if side is None else side * count if len(side) == 1 else side for side in sides
    )
    return tuple(
        a if flag == 1 else b if flag == 0 else (a if a == b else None)
        for flag, a, b in zip(chosen, left, right, strict=True)
    )


_COMPUTED: dict[str, Callable[[Node], Numbers]] = {
    "Identity": _same,
    "Unsqueeze": _same,
    "Squeeze": _same,
    "Reshape": _same,
    "Cast": _cast,
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Where": _where,
    "Add": _pairwise(plus),
    "Sub": _pairwise(minus),
    "Mul": _pairwise(times),
    "Div": _pairwise(over),
    "Max": _pairwise(larger),
    "Equal": _pairwise(_equal),
}
