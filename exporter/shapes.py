"""Shapes, types and shape arithmetic of every tensor, in one pass over the nodes.

The pass runs twice: once with dynamic axes as symbols (what it finds then holds for every input size) and once with
every dynamic axis bound to a number (what the analysis and the cost model use). Per-node type inference is onnx's own;
what this adds is the interplay of shapes and values that a whole-graph inference loses. An axis whose size onnx cannot
tell gets a symbol of its own, so that it can still be recognised where it turns up again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, TensorProto, TypeProto

from exporter.control_shapes import CONTROL, Run, infer_control
from exporter.inferred import INTEGERS, Dims, Inferred, are_numbers
from exporter.node_shapes import Schemas, View, record
from exporter.symbols import Dim, is_computed, product, quotient
from exporter.values import LIMIT, Known, evaluate, evaluate_vector


def infer(
    graph: GraphProto,
    schemas: Schemas,
    inputs: Mapping[str, tuple[int, Dims] | TypeProto],
    constants: Mapping[str, tuple[int, Dims, Known | None]],
    measured: Mapping[str, tuple[int, Dims]] | None = None,
) -> Inferred:
    """Infer every tensor of a graph.

    Args:
        graph: its nodes are in topological order.
        schemas: those of the operator sets; they remember nodes and answers from pass to pass.
        inputs: graph inputs, (dtype, dims) or a non-tensor type.
        constants: (dtype, dims, values or None if large) of initializers and Constant nodes.
        measured: (dtype, dims) taken from a real run, used for tensors that onnx cannot infer.

    Returns:
        Everything found; failures are recorded, never raised.
    """
    found = Inferred()
    for name, described in inputs.items():
        if isinstance(described, TypeProto):
            found.opaque[name] = described
        else:
            found.set_tensor(name, *described)
    for name, (dtype, dims, value) in constants.items():
        found.set_tensor(name, dtype, dims)
        if value is not None:
            found.known[name] = value
            if dtype in INTEGERS:
                found.arithmetic.add(name)

    def run(inner: GraphProto) -> None:
        for view in schemas.views(inner):
            if view.op == "Constant":
                continue
            try:
                _known_values(view, found)
                _types(view, schemas, found, measured or {}, run)
                _vector_values(view, found)
            except (LookupError, TypeError, ValueError, AttributeError):  # it lacks what its operator needs
                found.failed.append(view.proto)

    run(graph)
    return found


def _types(view: View, rules: Schemas, found: Inferred, measured: Mapping[str, tuple[int, Dims]], run: Run) -> None:
    special = _SPECIAL.get(view.op) if not view.domain else None
    if special is not None:
        dims, dtype = special(view.attributes, view.inputs, found), _dtype_of_special(view, found)
        if dims is not None and dtype is not None:
            name = view.outputs[0]
            found.set_tensor(name, dtype, dims)
            if not found.is_fixed(name) and name in measured and are_numbers(measured[name][1]):
                found.set_tensor(name, dtype, measured[name][1])
            return
    control = view.op in CONTROL and infer_control(view.proto, view.attributes, found, rules.opsets.get("", 1), run)
    results = {} if control else rules.results(view, found)
    missing = False
    for o, name in enumerate(view.outputs):
        if not name:
            continue
        if o in results:
            record(name, results[o], found)
        if name in found.known and name not in found.dims:
            value = found.known[name]
            found.set_tensor(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        if name in measured:
            seen, shape = measured[name]
            if name not in found.dims or (not found.is_fixed(name) and are_numbers(shape)):
                found.set_tensor(name, found.dtype.get(name, seen), shape)
        missing |= name not in found.dims or (control and not found.is_fixed(name))
    if missing:
        found.failed.append(view.proto)


def _known_values(view: View, found: Inferred) -> None:
    """Evaluate a node of shape arithmetic whose inputs are all known."""
    names, attributes = view.inputs, view.attributes
    if view.op in ("Shape", "Size") and not view.domain:
        if found.is_fixed(names[0]):
            whole = np.array(found.dims[names[0]], np.int64)
            part = whole[attributes.get("start", 0) : attributes.get("end", len(whole))]
            found.known[view.outputs[0]] = part if view.op == "Shape" else np.asarray(np.prod(whole))
            found.arithmetic.add(view.outputs[0])
        return
    if found.arithmetic.isdisjoint(names):
        return
    inputs = [found.known.get(n) if n else None for n in names]
    if any(v is None for v, n in zip(inputs, names, strict=True) if n):
        return
    for name, value in zip(view.outputs, evaluate(view.proto, attributes, inputs) or (), strict=False):
        if name:
            found.known[name] = value
            found.arithmetic.add(name)


def _vector_values(view: View, found: Inferred) -> None:
    """Carry integer vectors with symbols through a node."""
    if len(view.outputs) != 1 or view.domain:
        return
    output, names, attributes = view.outputs[0], view.inputs, view.attributes
    if found.dtype.get(output) not in INTEGERS or output in found.known:
        return
    if len(found.dims.get(output, (0, 0))) > 1 and (view.op != "OneHot" or found.dims[output][0] != 1):
        return
    if view.op != "Reshape" and any(len(found.dims.get(n, ())) > 1 for n in names if n in found.vectors):
        return  # of a row
    if view.op == "Size" and names[0] in found.dims:
        found.set_vector(output, (product(found.dims[names[0]]),))
        return
    if view.op == "Shape":
        dims = found.dims.get(names[0])
        if dims is not None:
            found.set_vector(output, dims[attributes.get("start", 0) : attributes.get("end", len(dims))])
        return
    known = [found.known.get(n) if n else None for n in names]
    elements = evaluate_vector(view.proto, attributes, [found.vector(n) if n else None for n in names], known)
    if elements is None or len(elements) > LIMIT:
        return
    numbers = [e for e in elements if isinstance(e, int)]
    if len(numbers) < len(elements):
        found.set_vector(output, elements)
        return
    shape = tuple(d for d in found.dims[output] if isinstance(d, int))
    if int(np.prod(shape)) == len(numbers):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(found.dtype[output])
        found.known[output] = np.array(numbers, dtype).reshape(shape)
        found.arithmetic.add(output)


def _dtype_of_special(view: View, found: Inferred) -> int | None:
    if view.op == "ConstantOfShape":
        fill = view.attributes.get("value")
        return fill.data_type if fill is not None else int(TensorProto.FLOAT)
    return found.dtype.get(view.inputs[0])


def _reshape(attributes: dict[str, Any], names: Sequence[str], found: Inferred) -> Dims | None:
    """Output shape of Reshape where symbols are involved (None: onnx handles it)."""
    target = found.vector(names[1]) if len(names) > 1 else None
    source = found.dims.get(names[0])
    if target is None or source is None or (are_numbers(target) and are_numbers(source)):
        return None
    out: list[Dim] = []
    rest = None
    for i, element in enumerate(target):
        if element == -1:
            rest = i
        elif element == 0 and not attributes.get("allowzero", 0) and i < len(source):
            element = source[i]
        out.append(element)
    if rest is not None:
        size = quotient(source, [d for d in out if d != -1])
        out[rest] = size if size is not None else f"{names[0]}~{names[1]}:{rest}"
    return tuple(out)


def _expand(_: dict[str, Any], names: Sequence[str], found: Inferred) -> Dims | None:
    target, source = found.vectors.get(names[1]), found.dims.get(names[0])
    if target is None or source is None:
        return None
    rank = max(len(target), len(source))
    padded_source = (1,) * (rank - len(source)) + source
    padded_target = (1,) * (rank - len(target)) + target
    out: list[Dim] = []
    for axis, (have, want) in enumerate(zip(padded_source, padded_target, strict=True)):
        if isinstance(have, int):
            out.append(want if have == 1 else have)
        elif want in (1, have):
            out.append(have)
        else:
            out.append(want if isinstance(want, int) else f"{names[0]}^{names[1]}:{axis}")
    return tuple(out)


def _constant_of_shape(_: dict[str, Any], names: Sequence[str], found: Inferred) -> Dims | None:
    return found.vectors.get(names[0])


def _tile(_: dict[str, Any], names: Sequence[str], found: Inferred) -> Dims | None:
    repeats, source = (found.vector(names[1]) if len(names) > 1 else None), found.dims.get(names[0])
    if repeats is None or source is None or len(repeats) != len(source):
        return None
    out: list[Dim] = []
    for axis, (d, r) in enumerate(zip(source, repeats, strict=True)):
        size = product((d, r))
        out.append(size if size is not None else f"{names[0]}*{names[1]}:{axis}")
    return tuple(out)


def _slice(_: dict[str, Any], names: Sequence[str], found: Inferred) -> Dims | None:
    """A table cut to the length of the input, ``table[:seq]``, has that length; axes that are not cut keep theirs.

    Where the input is longer than the table, the slice is shorter than the input and whatever follows fails anyway.
    """
    source = found.dims.get(names[0])
    if source is None or len(names) < 3 or names[2] not in found.vectors:
        return None
    known = [found.vector(n) if n else None for n in names[1:]]
    starts, ends = known[0], known[1]
    axes = known[2] if len(known) > 2 and known[2] is not None else tuple(range(len(ends or ())))
    steps = known[3] if len(known) > 3 and known[3] is not None else (1,) * len(axes)
    if starts is None or ends is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    out = list(source)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not isinstance(axis, int):
            return None
        size = _sliced(source[axis], end) if start == 0 and step == 1 else None
        out[axis] = size if size is not None else f"{names[0]}[{names[1]}:{names[2]}]:{axis % len(source)}"
    return tuple(out)


def _sliced(size: Dim, end: Dim) -> Dim | None:
    """Size of ``axis[:end]``; None where it cannot be told."""
    if isinstance(end, int):
        return max(0, min(end if end >= 0 else end + size, size)) if isinstance(size, int) else None
    return None if is_computed(end) or not (isinstance(size, int) or size == end) else end


_SPECIAL: dict[str, Callable[[dict[str, Any], Sequence[str], Inferred], Dims | None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Tile": _tile,
    "Slice": _slice,
}
