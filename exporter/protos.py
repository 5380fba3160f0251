"""Small questions to ONNX nodes and graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Set
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from runtime.model_files import graphs_in

_DENSE_LIMIT = 1 << 24


def reads(node: NodeProto) -> set[str]:
    """Names a node reads, those its subgraphs read from outside included."""
    names = set(node.input)
    names.discard("")
    for attribute in node.attribute:
        for graph in graphs_in(attribute):
            names |= captured_names(graph)
    return names


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values; strings decoded."""
    result: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        result[attribute.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return result


def domain_of(node: NodeProto) -> str:
    """The domain of a node's operator; empty for the standard ones, which have a longer name too."""
    return "" if node.domain == "ai.onnx" else node.domain


def key_of(node: NodeProto) -> str:
    """First output of a node, which names it in plans and graphs; empty for a node without one."""
    return next((o for o in node.output if o), "")


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Graphs a node runs: the branches of an If, the body of a Loop."""
    attributes = node.attribute
    if not attributes:
        return []
    return [g for a in attributes for g in ([a.g] if a.HasField("g") else a.graphs)]


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all its subgraphs, each before those inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_of(inner)


def scopes(graph: GraphProto, outside: Set[str] = frozenset()) -> Iterator[tuple[GraphProto, set[str]]]:
    """A graph and all its subgraphs, each before those inside it, with the names that its first node can read.

    Args:
        graph: its nodes are in topological order.
        outside: names it can read from the graphs around it.
    """
    seen = {*outside, *(v.name for v in graph.input), *(t.name for t in graph.initializer)}
    yield graph, set(seen)
    for node in graph.node:
        for inner in subgraphs(node):
            yield from scopes(inner, seen)
        seen.update(node.output)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of all its subgraphs."""
    for each in graphs_of(graph):
        yield from each.node


def drop_left_out(graph: GraphProto) -> None:
    """Take empty names off the ends of what nodes read, subgraphs included: what is left out there needs no name, and
    ONNX Runtime's optimiser ends the process at some that have one (LayerNormalization behind an Add, 1.31)."""
    for node in all_nodes(graph):
        while node.input and not node.input[-1]:
            del node.input[-1]


def set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make ``nodes`` the nodes of a graph, in place; they may be nodes of it."""
    given = list(nodes)
    if len(given) == len(graph.node) and all(a is b for a, b in zip(given, graph.node, strict=True)):
        return
    copies = [NodeProto.FromString(n.SerializeToString()) for n in given]
    del graph.node[:]
    graph.node.extend(copies)


def add_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Make tensors of a model outputs of it too, in place; those that are stay once."""
    present = {v.name for v in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Names a subgraph reads from the graphs around it."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own |= {t.values.name for t in graph.sparse_initializer}
    used: set[str] = {v.name for v in graph.output}
    for node in graph.node:
        used |= reads(node)
        own.update(node.output)
    return used - own


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node; other attribute forms are turned, in place, into ``value``."""
    if node.op_type != "Constant" or domain_of(node) or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        value: TensorProto = attribute.t
        return value
    if attribute.name == "sparse_value":
        return _set_value(node, _dense(attribute.sparse_tensor))
    plain = onnx.helper.get_attribute_value(attribute)
    kinds: dict[str, Any] = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    if attribute.name not in kinds:
        return None
    return _set_value(node, onnx.numpy_helper.from_array(np.array(plain, kinds[attribute.name])))


def constant_tensors(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Initializers and outputs of Constant nodes of the main graph, by name; they are the model's own."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        tensor = constant_of(node)
        if tensor is not None:
            found[node.output[0]] = tensor
    return found


def _set_value(node: NodeProto, tensor: TensorProto | None) -> TensorProto | None:
    if tensor is None:
        return None
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", tensor))
    made: TensorProto = node.attribute[0].t
    return made


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto | None:
    """A sparse tensor written out; None where it is too large for that."""
    count: int = math.prod(sparse.dims)
    if not 0 <= count <= _DENSE_LIMIT:
        return None
    values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(dense)


def remove_named(present: MutableSequence[Any], names: Set[str]) -> None:
    """Take tensors or declared values of these names out of a list of them."""
    for i in reversed([i for i, one in enumerate(present) if one.name in names]):
        del present[i]


def drop_unread(model: ModelProto, names: Iterable[str]) -> None:
    """Take those of these initializers out of a model that nothing reads any more, in place."""
    left = {value.name for value in model.graph.output}.union(*map(reads, model.graph.node))
    remove_named(model.graph.initializer, set(names) - left)


def read_instead(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Let nodes read other tensors, by the names of those they read; what is inside of them stays."""
    for node in nodes:
        if not names.keys().isdisjoint(node.input):
            node.input[:] = [names.get(name, name) for name in node.input]


def fresh_names(model: ModelProto) -> Callable[[str], str]:
    """Return a function that makes tensor names no part of the model uses yet."""
    taken: set[str] = set()
    for graph in graphs_of(model.graph):
        taken |= {v.name for v in graph.input} | {t.name for t in graph.initializer}
        taken |= {name for node in graph.node for name in node.output}

    def fresh(wish: str) -> str:
        name, n = wish, 1
        while name in taken:
            name, n = f"{wish}.{n}", n + 1
        taken.add(name)
        return name

    return fresh
