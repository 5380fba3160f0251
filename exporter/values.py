"""Evaluate shape arithmetic: the few small integer nodes exporters put in front of Reshape, Slice and Expand.

Two levels of knowledge. A *known* tensor is a small numpy array. A *vector* is an integer tensor of rank one (or a
scalar, as a vector of one) whose elements are numbers or symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.protos import domain_of
from exporter.symbols import Dim, is_size, product, quotient

_EXACT = 2.0**53
LIMIT = 4096
"""Elements of the largest tensor treated as shape arithmetic."""

Known = NDArray[np.generic]
Vector = tuple[Dim, ...]
Attributes = Mapping[str, Any]

UNPREDICTABLE = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)


def _integer_division(a: Known, b: Known) -> Known:
    """ONNX Div: truncates toward zero on integers."""
    if np.issubdtype(a.dtype, np.integer):
        down = np.floor_divide(a, b)
        return np.asarray(down + ((down < 0) & (down * b != a)).astype(a.dtype))
    return np.asarray(np.true_divide(a, b))


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _integer_division,
    "Min": lambda *xs: np.minimum.reduce(np.broadcast_arrays(*xs)),
    "Max": lambda *xs: np.maximum.reduce(np.broadcast_arrays(*xs)),
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Sqrt": np.sqrt,
    "Where": np.where,
    "Identity": lambda x: x,
}


def is_standard(node: onnx.NodeProto) -> bool:
    """Say whether a node's operator belongs to the standard set."""
    return not domain_of(node)


def evaluate(node: onnx.NodeProto, attributes: Attributes, inputs: Sequence[Known | None]) -> list[Known] | None:
    """Run one node on known inputs.

    Returns:
        The outputs, or None where the node cannot be evaluated here (unknown domain, subgraph, random, too large).
    """
    if not is_standard(node) or node.op_type in UNPREDICTABLE:
        return None
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        return None
    try:
        with np.errstate(all="ignore"):
            results = _evaluate(node, attributes, inputs)
    except Exception:  # a node that fails here fails, or is handled, at run time; folding is only an optimisation
        return None
    if results is None or any(r.size > LIMIT or r.dtype == object for r in results):
        return None
    return results


def _evaluate(node: onnx.NodeProto, attributes: Attributes, inputs: Sequence[Known | None]) -> list[Known] | None:
    op, x = node.op_type, inputs[0] if inputs else None
    if x is None:
        return None if inputs else _reference(node, inputs)
    if op in _ELEMENTWISE:
        return [np.asarray(_ELEMENTWISE[op](*inputs))]
    if op == "Gather":
        return [np.asarray(np.take(x, _need(inputs[1]).astype(np.int64), axis=attributes.get("axis", 0)))]
    if op == "Cast":
        return [x.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))]
    if op == "Concat":
        return [np.concatenate([_need(i) for i in inputs], axis=attributes["axis"])]
    if op in ("Squeeze", "Unsqueeze"):
        axes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes")
        if op == "Unsqueeze":
            return [np.expand_dims(x, tuple(axes or ()))]
        return [np.squeeze(x, tuple(axes) if axes is not None else None)]
    if op == "Shape":
        return [np.array(x.shape, np.int64)[attributes.get("start", 0) : attributes.get("end", x.ndim)]]
    if op == "ConstantOfShape":
        return _constant_of_shape(attributes, x)
    if op == "Pow" and x.dtype.kind in "iu" and not _exact_power(x, _need(inputs[1])):
        return None
    if op in ("Expand", "Tile", "Range", "Pad", "Resize", "OneHot") and not _small_result(op, inputs):
        return None
    if op in _MOVING:  # importing the reference costs a tenth of a second
        return [np.array(_MOVING[op](attributes, *inputs))]
    return _reference(node, inputs)


def _range(_: Attributes, start: Known, limit: Known, delta: Known) -> Known:
    limits: list[Any] = [value.item() for value in (start, limit, delta)]
    return np.arange(*limits, dtype=start.dtype)


def _expand(_: Attributes, x: Known, shape: Known) -> Known:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _reshape(attributes: Attributes, x: Known, shape: Known | None = None) -> Known:
    wanted = attributes["shape"] if shape is None else shape.tolist()
    kept = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[i] if n == 0 and kept else n for i, n in enumerate(wanted)])


def _bounds(attributes: Attributes, given: Sequence[Known | None]) -> tuple[Any, Any, Any, Any]:
    """Starts, ends, axes and steps of a Slice, from its attributes or its inputs behind the first; None: not said."""
    names = ("starts", "ends", "axes", "steps")
    if "starts" in attributes:
        found = [attributes.get(name) for name in names]
    else:
        found = [i.tolist() if i is not None else None for i in (*given, *(None for _ in names))]
    return found[0], found[1], found[2], found[3]


def _part(attributes: Attributes, x: Known, *given: Known | None) -> Known:
    starts, ends, axes, steps = _bounds(attributes, given)
    parts = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        parts[axes[i] if axes is not None else i] = slice(start, end, steps[i] if steps is not None else 1)
    return x[tuple(parts)]


_MOVING: dict[str, Callable[..., Known]] = {
    "Range": _range,
    "Expand": _expand,
    "GatherElements": lambda attributes, x, indices: np.take_along_axis(x, indices, attributes.get("axis", 0)),
    "Reshape": _reshape,
    "Slice": _part,
    "Transpose": lambda attributes, x: np.transpose(x, attributes.get("perm")),
}


def _constant_of_shape(attributes: Attributes, shape: Known) -> list[Known] | None:
    dims = [int(d) for d in shape.ravel()]
    if any(d < 0 for d in dims) or np.prod(dims, dtype=np.float64) > LIMIT:
        return None
    fill = attributes.get("value")
    value = onnx.numpy_helper.to_array(fill).reshape(()) if fill is not None else np.float32(0)
    return [np.full(dims, value)]


def _small_result(op: str, inputs: Sequence[Known | None]) -> bool:
    """Bound the size of a result before it is made: models are untrusted."""
    if op == "Range":
        start, limit, delta = (float(_need(i)) for i in inputs)
        return delta != 0 and abs((limit - start) / delta) <= LIMIT
    if op in ("Expand", "Tile"):
        x, how = _need(inputs[0]), _need(inputs[1])
        return float(np.prod(np.maximum(how, 1), dtype=np.float64)) * x.size <= LIMIT
    return False


def _exact_power(base: Known, exponent: Known) -> bool:
    """Whether a power is one number in integers and in floating point; what does not fit every runtime makes its own
    way."""
    most = min(_EXACT, float(np.iinfo(base.dtype.name).max))
    return bool(np.all(np.abs(np.power(base.astype(np.float64), exponent.astype(np.float64))) <= most))


def _reference(node: onnx.NodeProto, inputs: Sequence[Known | None]) -> list[Known] | None:
    from onnx.reference import ReferenceEvaluator

    feeds = {name: value for name, value in zip(node.input, inputs, strict=False) if name}
    results = ReferenceEvaluator(node).run(None, feeds)
    return [np.asarray(r) for r in results] if all(isinstance(r, (np.ndarray, np.generic)) for r in results) else None


def _need(value: Known | None) -> Known:
    if value is None:
        raise ValueError("a required input is missing")
    return value


# -- vectors with symbols ---------------------------------------------------------------------------------------

_Element = Dim | None


def evaluate_vector(
    node: onnx.NodeProto, attributes: Attributes, inputs: Sequence[Vector | None], known: Sequence[Known | None]
) -> tuple[_Element, ...] | None:
    """Run one node on integer vectors with symbols.

    Args:
        node: the node; data movement, element-wise arithmetic and products are handled.
        attributes: its attributes.
        inputs: vector of every input (None: not a vector).
        known: full value of every input (None: not fully known).

    Returns:
        Elements of the single output, None for one that needs a symbol of its own; or None where nothing can be said.
    """
    if not is_standard(node) or not inputs or any(i is None for i in inputs[:1]):
        return None
    op, first = node.op_type, inputs[0]
    assert first is not None
    if op == "Concat":
        return None if any(i is None for i in inputs) else tuple(e for i in inputs if i is not None for e in i)
    if op == "Cast" and attributes.get("to") == onnx.TensorProto.BOOL:
        return tuple(int(e != 0) if isinstance(e, int) else None for e in first)
    if op in ("Identity", "Cast", "Squeeze", "Unsqueeze"):
        return first
    if op == "Reshape":
        target = known[1]
        return first if target is not None and target.size <= 1 else None
    if op == "ReduceProd":
        return (product(first),)
    if op == "OneHot":
        return _one_hot(attributes, inputs, known)
    if op == "Gather":
        indices = known[1]
        if indices is None or indices.ndim > 1:
            return None
        places = [int(i) for i in indices.ravel()]
        return tuple(first[i] for i in places) if all(-len(first) <= i < len(first) for i in places) else None
    if op == "Slice":
        return _slice(attributes, first, known)
    if op in _VECTOR_ELEMENTWISE:
        operands = [i for i in inputs if i is not None]
        size = max(len(o) for o in operands)
        if len(operands) != len(inputs) or any(len(o) not in (1, size) for o in operands):
            return None
        return tuple(_VECTOR_ELEMENTWISE[op](*(o[i % len(o)] for o in operands)) for i in range(size))
    return None


def _one_hot(
    attributes: Attributes, inputs: Sequence[Vector | None], known: Sequence[Known | None]
) -> tuple[_Element, ...] | None:
    """One index written as a row: repeats of an axis, as exported from ``repeat_interleave``."""
    index, depth, values = known[0], known[1], inputs[2]
    if index is None or depth is None or values is None or index.size != 1 or attributes.get("axis", -1) not in (-1, 1):
        return None
    length, at = int(depth.ravel()[0]), int(index.ravel()[0])
    if not 0 < length <= LIMIT or not -length <= at < length:
        return None
    return tuple(values[i == at % length] for i in range(length))


def _slice(attributes: Attributes, first: Vector, known: Sequence[Known | None]) -> Vector | None:
    starts, ends, _, steps = _bounds(attributes, known[1:])
    step = 1 if steps is None else steps[0]
    if starts is None or ends is None or len(starts) != 1 or step == 0:
        return None
    return first[starts[0] : ends[0] : step]


def _arithmetic(op: str) -> Callable[[Dim, Dim], _Element]:
    def apply(a: Dim, b: Dim) -> _Element:
        if isinstance(a, int) and isinstance(b, int):
            return None if op == "Div" and b == 0 else int(_ELEMENTWISE[op](np.int64(a), np.int64(b)))
        if op == "Mul":
            return product((a, b))
        if op == "Div":
            return quotient((a,), (b,))
        if b == 0:
            return a
        if op == "Add":
            return b if a == 0 else None
        return 0 if a == b else None

    return apply


def _equal(a: Dim, b: Dim) -> _Element:
    if a == b:
        return 1
    if isinstance(a, int) and isinstance(b, int):
        return 0
    negative = any(isinstance(v, int) and v < 0 for v in (a, b))
    # the size of an axis is never negative; the result of arithmetic may be
    size = any(isinstance(v, str) and is_size(v) for v in (a, b))
    return 0 if negative and size else None


def _where(condition: Dim, a: Dim, b: Dim) -> _Element:
    if isinstance(condition, int):
        return a if condition else b
    return a if a == b else None


_VECTOR_ELEMENTWISE: dict[str, Callable[..., _Element]] = {
    **{op: _arithmetic(op) for op in ("Add", "Sub", "Mul", "Div")},
    "Equal": _equal,
    "Where": _where,
}
