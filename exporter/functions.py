"""Local functions: inlined for the analysis, and folded back into calls wherever a cut left their inside alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from exporter.errors import ModelError
from exporter.protos import constant_of, reads, set_nodes, subgraphs
from runtime.calls import callee, check_calls
from runtime.model_files import graphs_in

_DEPTH_LIMIT = 32


@dataclass
class Calls:
    """The calls that were inlined.

    Attributes:
        nodes: the call nodes, as they stood in the file.
        bodies: for each call, the serialized nodes that replaced it.
        uncalled: names of the functions that nothing called in the file.
        inside: whether calls in subgraphs were inlined as well.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    bodies: list[list[bytes]] = field(default_factory=list)
    uncalled: frozenset[str] = frozenset()
    inside: bool = False


def inline(model: ModelProto) -> Calls:
    """Replace, in place, every call of a local function by the function's nodes, in subgraphs too.

    Calls in the main graph can be put back; those inside subgraphs stay as nodes. A function that imports another
    version of the standard operator set than the model is left as a call, because its nodes would mean something else
    outside. Definitions stay in the model.

    Raises:
        ModelError: a function calls itself, or the model would have too many nodes.
    """
    calls = Calls()
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    if not functions:
        return calls
    try:
        check_calls(model)
    except ValueError as error:
        raise ModelError(str(error)) from error
    calls.uncalled = frozenset(f.name for f in _uncalled(model))
    opsets = {o.domain: o.version for o in model.opset_import}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        body = _expand(node, functions, opsets, 0)
        if body is None:
            nodes.append(node)
        else:
            calls.nodes.append(node)
            calls.bodies.append([n.SerializeToString(deterministic=True) for n in body])
            nodes.extend(body)
    for node in nodes:
        calls.inside |= _expand_inside(node, functions, opsets, 0)
    if calls.nodes or calls.inside:
        copies = [NodeProto.FromString(n.SerializeToString()) for n in calls.nodes]
        calls.nodes = copies
        keep = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(keep)
        for function in model.functions:
            for imported in function.opset_import:
                if imported.domain not in opsets:
                    opsets[imported.domain] = imported.version
                    model.opset_import.add(domain=imported.domain, version=imported.version)
    return calls


def _expand_inside(
    node: NodeProto,
    functions: Mapping[tuple[str, str, str], FunctionProto],
    opsets: Mapping[str, int],
    depth: int,
) -> bool:
    """Replace, in place, the calls in the subgraphs of a node; returns whether there was one."""
    changed = False
    for graph in subgraphs(node) if depth <= _DEPTH_LIMIT else []:
        bodies = [_expand(inner, functions, opsets, depth) for inner in graph.node]
        if any(body is not None for body in bodies):
            changed = True
            pairs = zip(list(graph.node), bodies, strict=True)
            set_nodes(graph, [n for inner, body in pairs for n in ([inner] if body is None else body)])
        for inner in graph.node:
            changed |= _expand_inside(inner, functions, opsets, depth + 1)
    return changed


def restore(model: ModelProto, calls: Calls) -> None:
    """Put back, in place, each call whose nodes all stand unchanged; drop definitions that lost their last call."""
    if not calls.nodes and not calls.inside:
        return
    nodes = list(model.graph.node)
    at = {n.output[0]: i for i, n in enumerate(nodes) if n.output}
    constants = {t.name for t in model.graph.initializer}
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for name in reads(node):
            readers.setdefault(name, []).append(i)
    outputs = {v.name for v in model.graph.output}
    replaced: dict[int, NodeProto | None] = {}
    for call, body in zip(calls.nodes, calls.bodies, strict=True):
        places: set[int] = set()
        inner: set[str] = set()
        intact = True
        for want in body:
            made = [name for name in NodeProto.FromString(want).output if name]
            place = at.get(made[0]) if made else None
            if place is not None:
                intact &= nodes[place].SerializeToString(deterministic=True) == want
                places.add(place)
            # a node that is gone was unused, unless its result was folded into a constant
            intact &= not constants.intersection(made)
            inner.update(made)
        inner -= set(call.output)
        # a call hides its inside: nothing outside may read it
        intact &= not inner & outputs and all(i in places for name in inner for i in readers.get(name, ()))
        if intact and places:
            replaced |= dict.fromkeys(places)
            replaced[max(places)] = call
    if replaced:
        result = [NodeProto.FromString(n.SerializeToString()) for n in _with_calls(nodes, replaced)]
        del model.graph.node[:]
        model.graph.node.extend(result)
    for function in _uncalled(model):
        if function.name not in calls.uncalled:
            model.functions.remove(function)


def _with_calls(nodes: Sequence[NodeProto], replaced: Mapping[int, NodeProto | None]) -> list[NodeProto]:
    result = []
    for i, node in enumerate(nodes):
        kept = replaced.get(i, node)
        if kept is not None:
            result.append(kept)
    return result


def _expand(
    node: NodeProto,
    functions: Mapping[tuple[str, str, str], FunctionProto],
    opsets: Mapping[str, int],
    depth: int,
) -> list[NodeProto] | None:
    function = functions.get(callee(node))
    if function is None or depth > _DEPTH_LIMIT:
        return None
    if any(opsets.get(o.domain, o.version) != o.version for o in function.opset_import):
        return None
    prefix = f"{node.output[0]}/"
    names = dict(zip(function.input, list(node.input) + [""] * len(function.input), strict=False))
    names |= {inner: outer for inner, outer in zip(function.output, node.output, strict=False) if outer}
    values = {a.name: a for a in function.attribute_proto} | {a.name: a for a in node.attribute}
    body: list[NodeProto] = []
    for inner in function.node:
        fresh = NodeProto()
        fresh.CopyFrom(inner)
        _rename(fresh, names, prefix, values)
        constant_of(fresh)
        nested = _expand(fresh, functions, opsets, depth + 1)
        body.extend([fresh] if nested is None else nested)
    passed_through = [o for o in function.output if not any(o in n.output for n in function.node)]
    if passed_through:
        return None
    return body


def _rename(node: NodeProto, names: dict[str, str], prefix: str, values: Mapping[str, AttributeProto]) -> None:
    """Give the inner tensors of one inlined node their outer names, and its attributes the caller's values."""

    def outer(name: str) -> str:
        if not name:
            return name
        return names.setdefault(name, prefix + name)

    node.name = prefix + node.name if node.name else ""
    inputs, outputs = [outer(n) for n in node.input], [outer(n) for n in node.output]
    del node.input[:], node.output[:]
    node.input.extend(inputs)
    node.output.extend(outputs)
    attributes = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            given = values.get(attribute.ref_attr_name)
            if given is None:
                continue
            filled = AttributeProto()
            filled.CopyFrom(given)
            filled.name = attribute.name
            attributes.append(filled)
            continue
        for graph in graphs_in(attribute):
            _rename_graph(graph, names, prefix, values)
        attributes.append(AttributeProto.FromString(attribute.SerializeToString()))
    del node.attribute[:]
    node.attribute.extend(attributes)


def _rename_graph(graph: GraphProto, names: dict[str, str], prefix: str, values: Mapping[str, AttributeProto]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.setdefault(value.name, prefix + value.name)
    for node in graph.node:
        _rename(node, names, prefix, values)


def _uncalled(model: ModelProto) -> list[FunctionProto]:
    """Function definitions that no node of the model calls, directly or through other functions."""
    defined = {(f.domain, f.name, f.overload): f for f in model.functions}
    reached: set[tuple[str, str, str]] = set()
    stack = list(model.graph.node)
    while stack:
        node = stack.pop()
        key = callee(node)
        if key in defined and key not in reached:
            reached.add(key)
            stack.extend(defined[key].node)
        for attribute in node.attribute:
            for graph in graphs_in(attribute):
                stack.extend(graph.node)
    return [f for key, f in defined.items() if key not in reached]
