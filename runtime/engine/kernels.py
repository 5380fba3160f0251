"""Layers of an engine as kernels over the nodes of the ONNX file: which they stand for, their work and their bytes.

TensorRT calls layers after nodes: the inspector lists them, or the layer's name joins them by ``+``, or names the first
and the last of a range. A node without a name is called after its output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto, NodeProto

from runtime.engine.inspection import EngineLayer
from runtime.fusions import Kernel, all_nodes, main_node
from runtime.profiling import NodeTime, Shapes, node_work
from runtime.work import Shape

_RANGE = re.compile(r"\{ForeignNode\[(.+?)\.\.\.(.+?)\]\}")
_BYTES = {"fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "int64": 8, "int8": 1, "fp8": 1, "bool": 1}


def kernels_of(
    layers: Sequence[tuple[EngineLayer, float]],
    model: ModelProto | None,
    shapes: Mapping[str, Sequence[Shapes]],
    backend: str,
) -> list[NodeTime]:
    """Describe every layer by the nodes it stands for.

    Args:
        layers: of the engine, in order, with the seconds of each.
        model: the file, after ``runtime.fusions.name_nodes``; None where it is not known.
        shapes: of what each node of it reads and makes, every time it runs, by its name.
        backend: what runs the engine.

    Returns:
        One kernel for each layer. Of layers that name the same node the first one has it. Without a model, or for
        layers that TensorRT added, multiply-accumulates and bytes are 0.
    """
    nodes = list(all_nodes(model.graph)) if model is not None else []
    covers = _covered([layer for layer, _ in layers], nodes)
    work = node_work(model, shapes) if model is not None else {}
    by_name = {node.name: node for node in nodes}
    dims = _dims(nodes, shapes)
    returned = {v.name for v in model.graph.output} if model is not None else set()
    readers = _readers(nodes, returned)
    found = []
    for (layer, seconds), names in zip(layers, covers, strict=True):
        mine = [by_name[n] for n in names]
        working = [n.op_type for n in mine if work.get(n.name)] or [n.op_type for n in mine[-1:]]
        name = main_node(Kernel(layer.name, layer.kind, "", tuple(names), False), work)
        found.append(
            NodeTime(
                name or layer.name,
                "+".join(working) or layer.kind or "layer",
                layer.tactic or layer.kind,
                tuple(next((o for o in n.output if o), "") for n in mine),
                is_reorder(layer),
                seconds,
                sum(work.get(n, 0) for n in names),
                _BYTES.get(layer.precision, 4) * _elements(mine, dims, readers),
                tuple(tuple(s) for s in shapes[name][-1][0]) if name in shapes else (),
                (),
                backend,
            )
        )
    return found


def is_reorder(layer: EngineLayer) -> bool:
    """Say whether a layer only changes a format."""
    return layer.kind in ("Reformat", "NoOp") or layer.name.startswith("Reformatting")


def _covered(layers: Sequence[EngineLayer], nodes: Sequence[NodeProto]) -> list[list[str]]:
    """Names of the file's nodes of every layer; a node belongs to one layer at most."""
    order = {node.name: k for k, node in enumerate(nodes)}
    aliases: dict[str, str] = {}
    for node in nodes:
        for alias in (node.name, *(f"node_of_{o}" for o in node.output), *node.output):
            aliases.setdefault(alias, node.name)
    claimed: set[str] = set()

    def claim(names: Iterable[str]) -> list[str]:
        mine = {aliases[n] for n in names if n in aliases} - claimed
        claimed.update(mine)
        return sorted(mine, key=order.__getitem__)

    covers = [[] if is_reorder(layer) else claim(layer.nodes) for layer in layers]
    for k, layer in enumerate(layers):
        ends = _RANGE.search(layer.name)
        if covers[k] or ends is None or not {ends[1], ends[2]} <= aliases.keys():
            continue
        first, last = sorted(order[aliases[end]] for end in ends.groups())
        covers[k] = claim(node.name for node in nodes[first : last + 1])
    return covers


def _dims(nodes: Sequence[NodeProto], shapes: Mapping[str, Sequence[Shapes]]) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for node in nodes:
        if node.name in shapes:
            for names, sizes in zip((node.input, node.output), shapes[node.name][-1], strict=True):
                found.update(zip((n for n in names if n), map(tuple, sizes), strict=False))
    return found


def _readers(nodes: Sequence[NodeProto], returned: set[str]) -> dict[str, set[str]]:
    """Names of the nodes that read a tensor; the empty one for the caller."""
    found: dict[str, set[str]] = {name: {""} for name in returned}
    for node in nodes:
        for name in node.input:
            found.setdefault(name, set()).add(node.name)
    return found


def _elements(mine: Sequence[NodeProto], dims: Mapping[str, Shape], readers: Mapping[str, set[str]]) -> int:
    """Elements a kernel reads and writes: what lies between its own nodes stays inside."""
    made = {o for node in mine for o in node.output if o}
    names = {node.name for node in mine}
    border = {i for node in mine for i in node.input if i} - made
    border |= {o for o in made if readers.get(o, set()) - names}
    return sum(math.prod(dims[name]) for name in border if name in dims)
