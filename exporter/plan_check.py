"""Whether a plan fits a model: made for it, and naming only what it has."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.interface import rows_selected
from exporter.plan import AxisTake, ConstantTake, Fingerprint, Plan
from exporter.removal import links, stand_ins, sum_fault, survivors
from runtime.nouns import counted


def fingerprint(graph: Graph) -> Fingerprint:
    """What tells this model from another."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        if node.op == "Constant":
            continue
        digest.update(node.proto.SerializeToString(deterministic=True))
    for name, tensor in sorted(graph.constants.items()):
        digest.update(f"{name}:{tensor.data_type}:{list(tensor.dims)};".encode())
    name = graph.source.path.name if graph.source.path is not None else ""
    return Fingerprint(name, graph.source.sha256, digest.hexdigest(), dict(graph.binding.shapes))


def check_fits(plan: Plan, graph: Graph) -> str | None:
    """Check that a plan was made for this graph, loaded under the shapes that the plan was made with.

    Returns:
        A warning where only the weights differ, else None.

    Raises:
        UsageError: it was made for another model, and the text says what differs; or it has been changed so that it no
            longer fits.
    """
    warning = check_model(plan, graph)
    _check_content(plan, graph)
    return warning


def check_model(plan: Plan, graph: Graph) -> str | None:
    """Check that a plan was made for this model, under whatever shapes it is loaded.

    Returns:
        A warning where only the weights differ, else None.

    Raises:
        UsageError: it was made for another model, and the text says what differs.
    """
    mine = fingerprint(graph)
    if plan.model.structure == mine.structure:
        if plan.model.sha256 != mine.sha256:
            return f"the weights are not those the plan was made for ({plan.model.file}); its structure is"
        return None
    differences = []
    for name, take in plan.take.items():
        origin = take.clone_of or name
        if origin not in graph.constants:
            differences.append(f"the plan cuts '{origin}', which this model does not have")
            continue
        dims = list(graph.constants[origin].dims)
        for axis, kept in take.axes.items():
            if axis >= len(dims) or dims[axis] != kept.size:
                differences.append(f"'{origin}' is {dims} here, the plan expects {kept.size} along axis {axis}")
    planned = {t.clone_of or n for n, t in plan.take.items()}
    differences += [f"this model has '{n}', which the plan does not know" for n in graph.constants if n not in planned]
    if not differences:
        differences.append("the constants agree, but the nodes differ")
    more = len(differences) - 5
    listed = "\n  ".join(differences[:5]) + (f"\n  and {more} more" if more > 0 else "")
    raise UsageError(
        f"the plan was made for another model ({plan.model.file or 'in memory'}):\n  {listed}\n"
        "Make a plan for this model with: secateur prune MODEL -o OUT --save-plan P.json"
    )


def _check_content(plan: Plan, graph: Graph) -> None:
    """A plan file may have been edited: nothing in it is carried out on trust."""
    fault = next(_faults(plan, graph), None)
    if fault is not None:
        raise UsageError(f"the plan does not fit the model it names: {fault}.\nIt was changed; make it again.")


def _faults(plan: Plan, graph: Graph) -> Iterator[str]:
    for name, take in plan.take.items():
        origin = take.clone_of or name
        if origin not in graph.constants:
            yield f"there is no constant '{origin}'"
            continue
        dims = tuple(graph.constants[origin].dims)
        yield from _wrong_axes(origin, take.axes, dims)
        if take.values is not None and (take.axes or len(take.values) != math.prod(dims)):
            yield f"'{origin}' is {list(dims)} and cannot hold {counted(len(take.values), 'value')}"
        for key, index in take.uses:
            node = graph.producer.get(key)
            if node is None or index >= len(node.inputs) or node.inputs[index] != origin:
                yield f"input {index} of node '{key}' is not '{origin}'"
    interface = {*graph.inputs, *graph.outputs}
    for name, axes in plan.hide.items():
        here = name in graph.producer or name in interface or name in graph.given
        yield from _wrong_axes(name, axes, _sizes(graph, name) if here else None)
        if name in interface and not set(axes) <= set(plan.io.get(name, ())):
            yield f"it cuts '{name}', an input or output that was not free to shrink"
    for name, own in plan.io.items():
        if name not in interface or max(own, default=0) >= len(_sizes(graph, name) or ()):
            yield f"there is no input or output '{name}' with the axes {list(own)}"
    yield from _wrong_drops(plan, graph)
    yield from _wrong_sizes(plan, graph)
    yield from _wrong_gathers(plan, graph)


def _sizes(graph: Graph, name: str) -> tuple[int, ...] | None:
    """Shape of a tensor, and after it the number of ids it may hold, if it is an input that selects rows."""
    shape, rows = graph.shape(name), rows_selected(graph, name)
    return shape if shape is None or rows is None else (*shape, rows)


def _wrong_axes(name: str, axes: Mapping[int, AxisTake], shape: tuple[int, ...] | None) -> Iterator[str]:
    if shape is None:
        yield f"there is no tensor '{name}' of known shape"
        return
    for axis, take in axes.items():
        if axis >= len(shape) or shape[axis] != take.size:
            yield f"'{name}' is {list(shape)}, not {take.size} along axis {axis}"


def _wrong_drops(plan: Plan, graph: Graph) -> Iterator[str]:
    if not plan.drop:
        yield from (f"'{name}' is removed, but nothing is dropped" for name, t in plan.take.items() if t.removed)
        return
    nodes = links(graph.model)
    by_key, instead = {link.key: link.proto for link in nodes}, stand_ins(plan.drop)
    for drop in plan.drop:
        node = by_key.get(drop.node)
        if node is None:
            yield f"there is no node '{drop.node}'"
            return
        fault = sum_fault(graph, node)
        keeps = node.input[1 - drop.input] if drop.input < 2 else ""
        if fault or instead.get(keeps, keeps) != instead.get(drop.keeps, drop.keeps):
            yield f"node '{drop.node}' {fault or f'does not add anything to {drop.keeps!r}'}"
            return
    if len({drop.node for drop in plan.drop}) < len(plan.drop):
        yield "a node is dropped twice"
    for name in {name for drop in plan.drop for name in drop.interface} - {*graph.inputs, *graph.outputs}:
        yield f"there is no input or output '{name}'"
    alive = survivors(nodes, graph.outputs, plan.drop)
    kept = [link for link in nodes if link.key in alive]
    moved = {use for take in plan.take.values() for use in take.uses}
    read = {n for link in kept for i, n in enumerate(link.proto.input) if (link.key, i) not in moved}
    read |= {n for link in kept for n in link.reads.difference(link.proto.input)} | set(graph.outputs)
    for name, take in plan.take.items():
        if take.removed and (take != ConstantTake(removed=True) or name in read):
            yield f"'{name}' is removed, but read by what stays"
    for name in {name for drop in plan.drop for name in drop.interface} & (read - set(graph.outputs)):
        yield f"input '{name}' is removed, but read by what stays"


def _wrong_sizes(plan: Plan, graph: Graph) -> Iterator[str]:
    for edit in plan.sizes:
        node = graph.producer.get(edit.node)
        vector = edit.value if isinstance(edit.value, tuple) else None
        if node is None:
            yield f"there is no node '{edit.node}'"
            continue
        splits = node.op == "Split" and vector is not None and len(vector) == len(node.outputs)
        if edit.attribute is None:
            left_out = edit.input is not None and (edit.input >= len(node.inputs) or not node.inputs[edit.input])
            if not (splits and edit.input == 1 and left_out):
                yield f"node '{edit.node}' does not leave out input {edit.input}"
            continue
        present = node.attributes.get(edit.attribute)
        if present is None and not (splits and edit.attribute == "split"):
            yield f"node '{edit.node}' has no attribute '{edit.attribute}'"
        elif present is not None and (len(present) if isinstance(present, list) else None) != (
            len(vector) if vector is not None else None
        ):
            yield f"attribute '{edit.attribute}' of node '{edit.node}' holds something else"


def _wrong_gathers(plan: Plan, graph: Graph) -> Iterator[str]:
    for edit in plan.gathers:
        missing = [n for n in (*edit.nodes, edit.result) if n not in graph.producer]
        shape = graph.shape(edit.source)
        if missing:
            yield f"there is no node '{missing[0]}'"
        elif shape is None or edit.axis >= len(shape):
            yield f"there is no axis {edit.axis} of '{edit.source}'"
        else:
            take = plan.hide.get(edit.source, {}).get(edit.axis)
            size = len(take.keep) if take is not None else shape[edit.axis]
            if max(edit.indices) >= size:
                yield f"'{edit.source}' has {size} slots left along axis {edit.axis}, not {max(edit.indices) + 1}"
