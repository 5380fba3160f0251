"""A graph followed from its inputs on: what it asks of the sizes of their dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from runtime.demands import attention, meeting, moving  # noqa: F401 - they register what is followed
from runtime.demands.facts import FOLLOWED, Dims, Facts, Node
from runtime.demands.numbers import MOST, constant, numbers
from runtime.demands.settling import Demand
from runtime.demands.terms import Extent, check, size_of

_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_NONSENSE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading a node raises that is not as its operator wants it."""


def demands_of(graph: GraphProto, inputs: Mapping[str, Sequence[int | str]]) -> tuple[Demand, ...]:
    """Find what a graph asks of the sizes of dynamic axes.

    An axis is followed through operators that keep it to where its size must be another's: the channels of a kernel,
    the rows of a weight, the length of a table of positions, the heads of an attention. Nodes of subgraphs may never
    run, so they ask nothing. Where nobody knows an operator, the file may say what it returns.

    Args:
        graph: its nodes in the order in which they run.
        inputs: by name of the input, a number or a symbol for each axis.

    Returns:
        What must hold between the symbols: (1) where axes must be equal, (2) where they must be equal or 1.
    """
    return tuple(followed(graph, inputs).demands)


def followed(graph: GraphProto, inputs: Mapping[str, Sequence[int | str]]) -> Facts:
    """What is known of the tensors of a graph, and what it asks of its inputs; arguments as for ``demands_of``."""
    facts, symbols = Facts(), frozenset(d for dims in inputs.values() for d in dims if isinstance(d, str))
    for tensor in graph.initializer:
        _take(tensor.name, tensor, facts)
    for name, dims in inputs.items():
        facts.dims[name] = tuple(size_of(d) if isinstance(d, str) else d for d in dims)
    declared = {value.name: value for value in graph.value_info}
    for proto in graph.node:
        _follow(proto, facts)
        for name in proto.output:
            if facts.dims.get(name) is None and name in declared:
                facts.dims[name] = _declared(declared[name], symbols)
    return facts


def _take(name: str, tensor: TensorProto, facts: Facts) -> None:
    """Record a constant."""
    facts.dims[name] = tuple(tensor.dims)
    found = constant(tensor)
    if found is not None:
        facts.numbers[name] = found


def _follow(proto: NodeProto, facts: Facts) -> None:
    """Record what is known of the outputs of a node."""
    if proto.domain not in _DOMAINS:
        return
    node = Node(proto, facts)
    try:
        if proto.op_type == "Constant":
            _take_constant(node)
            return
        follow = FOLLOWED.get(proto.op_type)
        found = follow(node) if follow is not None else ()
        for name, dims in zip(proto.output, found, strict=False):
            check(*(dims or ()))
            facts.dims[name] = dims
    except _NONSENSE:
        pass
    try:
        small = numbers(node)
    except _NONSENSE:
        small = None
    if small is not None and len(small) <= MOST and proto.output:
        facts.numbers[proto.output[0]] = small


def _take_constant(node: Node) -> None:
    name, attributes = node.proto.output[0], node.attributes
    if "value" in attributes:
        _take(name, attributes["value"], node.facts)
    elif "value_int" in attributes:
        node.facts.dims[name], node.facts.numbers[name] = (), (attributes["value_int"],)
    elif "value_ints" in attributes:
        values = tuple(attributes["value_ints"])
        node.facts.dims[name], node.facts.numbers[name] = (len(values),), values[: MOST + 1]
    elif "value_float" in attributes:
        node.facts.dims[name] = ()
    elif "value_floats" in attributes:
        node.facts.dims[name] = (len(attributes["value_floats"]),)


def _declared(value: ValueInfoProto, symbols: frozenset[str]) -> Dims:
    """Axes as a file declares them: numbers, and symbols of inputs."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    found: list[Extent] = []
    for dim in kind.shape.dim:
        known = size_of(dim.dim_param) if dim.dim_param in symbols else None
        found.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else known)
    return tuple(found)
