"""Shapes through control flow: what an If, a Loop or a Scan returns, and what it gives to its subgraphs.

A value that a loop carries has one shape in the analysis. An axis whose size is not the same after an iteration as
before it gets a symbol of its own, and the body is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, TypeProto

from exporter.inferred import Dims, Inferred
from exporter.protos import graphs_of, reads, subgraphs
from exporter.symbols import Dim
from exporter.values import is_standard

Run = Callable[[GraphProto], None]

CONTROL = frozenset({"If", "Loop", "Scan"})
"""Standard operators that run subgraphs."""
_OLDEST_SCAN = 9
_DEEPEST = 6
"""Subgraphs within subgraphs that are looked into: a loop may be looked at several times, and so may each inside it."""


def infer_control(node: NodeProto, attributes: Mapping[str, Any], found: Inferred, opset: int, run: Run) -> bool:
    """Infer a node that runs subgraphs, and everything inside.

    Args:
        node: any node; its outputs are recorded in ``found``.
        attributes: its attributes.
        found: what is known so far, by names that are unique in the whole model.
        opset: version of its operator.
        run: infers the nodes of a graph into ``found``.

    Returns:
        Whether it is control flow. The outputs of which nothing is known are left out of ``found``.
    """
    if not is_standard(node) or any(a.graphs for a in node.attribute) or found.level >= _DEEPEST:
        return False
    found.level += 1
    try:
        if node.op_type == "If":
            _if(node, attributes, found, run)
        elif node.op_type == "Loop" and "body" in attributes:
            _loop(node, attributes["body"], found, run)
        elif node.op_type == "Scan" and "body" in attributes and opset >= _OLDEST_SCAN:
            _scan(node, attributes, found, run)
        else:
            return False
    finally:
        found.level -= 1
    return True


def of_varying_rank(graph: GraphProto, found: Inferred) -> set[str]:
    """Tensors of a main graph whose number of axes may differ from run to run, and what depends on them.

    That is what control flow returns in a shape nobody can tell, and all that follows without a known shape: a number
    of axes measured in one run says nothing of the next.
    """
    varying: set[str] = set()
    for node in graph.node:
        if subgraphs(node) or varying.intersection(reads(node)):
            varying.update(
                name for name in node.output if name and name not in found.dims and _may_be_tensor(name, found)
            )
    return varying


def _may_be_tensor(name: str, found: Inferred) -> bool:
    return name not in found.opaque or found.opaque[name].HasField("tensor_type")


def _if(node: NodeProto, attributes: Mapping[str, Any], found: Inferred, run: Run) -> None:
    branches: list[GraphProto] = [attributes[n] for n in ("then_branch", "else_branch") if n in attributes]
    inside: set[str] = set()
    taken = _taken(node, attributes, found)
    for branch in branches:
        failures = len(found.failed)
        run(branch)
        inside |= _names(branch)
        if taken and branch is not taken[0]:  # what is not taken at these sizes need not work out
            del found.failed[failures:]
    for o, name in enumerate(node.output):
        results = [b.output[o].name for b in taken or branches if o < len(b.output)]
        if name and len(results) == len(taken or branches) and all(found.is_typed(r) for r in results):
            _join(name, results, found, inside)


def _taken(node: NodeProto, attributes: Mapping[str, Any], found: Inferred) -> list[GraphProto]:
    """The branch that is taken at these sizes of the inputs; none where data decide."""
    condition = found.known.get(node.input[0]) if node.input else None
    name = "then_branch" if condition is not None and condition.any() else "else_branch"
    return [attributes[name]] if condition is not None and name in attributes else []


def _join(name: str, results: Sequence[str], found: Inferred, inside: set[str]) -> None:
    """A tensor that is one of several: what they have in common."""
    if not all(r in found.dims for r in results) or len({len(found.dims[r]) for r in results}) > 1:
        kinds = [kind for kind in map(found.type_of, results) if kind is not None]
        if len({kind.SerializeToString() for kind in kinds}) == 1:
            found.set_type(name, kinds[0])
        return
    dims: list[Dim] = []
    for axis, sizes in enumerate(zip(*(found.dims[r] for r in results), strict=True)):
        own = f"{name}:{axis}"
        dims.append(_outside(sizes[0], own, found, inside) if len(set(sizes)) == 1 else own)
    found.set_tensor(name, found.dtype[results[0]], dims)


def _outside(dim: Dim, own: str, found: Inferred, inside: set[str]) -> Dim:
    """A size as the graph around a subgraph can name it."""
    if isinstance(dim, int) or (dim in found.origins and found.origins[dim].tensor not in inside):
        return dim
    return own


def _names(graph: GraphProto) -> set[str]:
    """Everything defined in a subgraph and in those inside it."""
    names: set[str] = set()
    for each in graphs_of(graph):
        names |= {v.name for v in each.input}
        names |= {name for node in each.node for name in node.output}
    return names


def _loop(node: NodeProto, body: GraphProto, found: Inferred, run: Run) -> None:
    """Infer a body that takes (iteration, condition, state) and returns (condition, state, slices of scan outputs)."""
    carried = list(node.input)[2:]
    formal = [v.name for v in body.input]
    returned = [v.name for v in body.output]
    if len(formal) != len(carried) + 2 or len(returned) != len(node.output) + 1 or len(returned) <= len(carried):
        return
    count = found.known.get(node.input[0]) if node.input[0] else None
    always = len(node.input) < 2 or not node.input[1] or _is_true(node.input[1], found)

    def bind() -> None:
        for value, kind in zip(body.input, (TensorProto.INT64, TensorProto.BOOL), strict=False):
            # ONNX Runtime gives a vector of one where that is declared
            found.set_tensor(value.name, kind, (1,) if value.type.tensor_type.shape.dim else ())
        if always:
            found.known[formal[1]] = np.array(True)
            found.arithmetic.add(formal[1])

    inside = _settle(body, bind, list(zip(carried, formal[2:], returned[1:], strict=False)), found, run)
    if always and not _is_true(returned[0], found):
        always = False
        inside = _settle(body, bind, list(zip(carried, formal[2:], returned[1:], strict=False)), found, run)
    trips: Dim | None = int(count.reshape(-1)[0]) if count is not None and count.size == 1 and always else None
    _results(node, formal[2:], found, inside)
    for name, inner in zip(list(node.output)[len(carried) :], returned[1 + len(carried) :], strict=True):
        _stack(name, inner, 0, max(trips, 0) if isinstance(trips, int) else f"{name}:trips", found, inside)


def _is_true(name: str, found: Inferred) -> bool:
    value = found.known.get(name)
    return value is not None and value.size == 1 and bool(value.reshape(-1)[0])


def _scan(node: NodeProto, attributes: Mapping[str, Any], found: Inferred, run: Run) -> None:
    """Infer a body that takes (state, slices of scan inputs) and returns (state, slices of scan outputs)."""
    body: GraphProto = attributes["body"]
    formal, returned = [v.name for v in body.input], [v.name for v in body.output]
    states = len(node.input) - int(attributes["num_scan_inputs"])
    scanned = list(node.input)[states:]
    if len(formal) != len(node.input) or len(returned) != len(node.output) or not 0 <= states <= len(returned):
        return
    axes = list(attributes.get("scan_input_axes", [0] * len(scanned)))
    trips: Dim = f"{node.output[0]}:trips"
    for name, axis in zip(scanned, axes, strict=True):
        dims = found.dims.get(name)
        if dims is not None and -len(dims) <= axis < len(dims):
            trips = dims[axis]

    def bind() -> None:
        for name, axis, inner in zip(scanned, axes, formal[states:], strict=True):
            dims = found.dims.get(name)
            if dims is not None and -len(dims) <= axis < len(dims):
                found.set_tensor(inner, found.dtype[name], [d for k, d in enumerate(dims) if k != axis % len(dims)])

    inside = _settle(body, bind, list(zip(list(node.input)[:states], formal, returned, strict=False)), found, run)
    _results(node, formal[:states], found, inside)
    places = list(attributes.get("scan_output_axes", [0] * (len(returned) - states)))
    for name, inner, place in zip(list(node.output)[states:], returned[states:], places, strict=True):
        _stack(name, inner, place, trips, found, inside)


def _settle(
    body: GraphProto, bind: Callable[[], None], carried: Sequence[tuple[str, str, str]], found: Inferred, run: Run
) -> set[str]:
    """Infer a body until what it returns has the shape of what it was given; returns the names inside.

    Args:
        body: the subgraph.
        bind: records the inputs that are not carried.
        carried: names of (initial value, input, output).
        found: the record.
        run: infers nodes into it.
    """
    inside = _names(body)
    given: dict[str, tuple[int, Dims] | TypeProto] = {}
    for initial, inner, _ in carried:
        if initial in found.dims:
            given[inner] = (found.dtype[initial], found.dims[initial])
        elif initial in found.opaque:
            given[inner] = found.opaque[initial]
    while True:
        _forget(inside, found)
        bind()
        for inner, known in given.items():
            if isinstance(known, TypeProto):
                found.opaque[inner] = known
            else:
                found.set_tensor(inner, *known)
        run(body)
        changed = False
        for _, inner, after in carried:
            start = given.get(inner)
            if start is None or isinstance(start, TypeProto):
                continue
            dims = found.dims.get(after)
            if dims is None or len(dims) != len(start[1]):
                del given[inner]
                changed = True
                continue
            own = tuple(f"{inner}:{k}" for k in range(len(dims)))
            joined = tuple(a if a in (b, o) else o for a, b, o in zip(start[1], dims, own, strict=True))
            if joined != start[1]:
                given[inner] = (start[0], joined)
                changed = True
        if not changed:
            return inside


def _forget(names: set[str], found: Inferred) -> None:
    """Drop what was found of a body: it holds for the first iteration only."""
    for table in (found.dims, found.dtype, found.known, found.vectors, found.opaque):
        for name in names & table.keys():
            del table[name]
    found.arithmetic -= names
    for symbol in [s for s, origin in found.origins.items() if origin.tensor in names]:
        del found.origins[symbol]
    found.failed[:] = [n for n in found.failed if not names.intersection(n.output)]


def _results(node: NodeProto, carried: Sequence[str], found: Inferred, inside: set[str]) -> None:
    """What is carried comes out in the shape it has in every iteration."""
    for name, inner in zip(node.output, carried, strict=False):
        if name and inner in found.dims:
            dims = [_outside(d, f"{name}:{k}", found, inside) for k, d in enumerate(found.dims[inner])]
            found.set_tensor(name, found.dtype[inner], dims)
        elif name and inner in found.opaque:
            found.opaque[name] = found.opaque[inner]


def _stack(name: str, inner: str, place: int, trips: Dim, found: Inferred, inside: set[str]) -> None:
    """A scan output: one slice per iteration, along a new axis."""
    dims = found.dims.get(inner)
    if not name or dims is None or not -len(dims) - 1 <= place <= len(dims):
        return
    outer: list[Dim] = [_outside(d, f"{name}:{k}", found, inside) for k, d in enumerate(dims)]
    outer.insert(place % (len(dims) + 1), trips)
    found.set_tensor(name, found.dtype[inner], outer)
