"""Which nodes of a file each kernel stands for, after the backend fused, moved and added nodes.

ONNX Runtime names a fused node after nothing in particular, but the tensor it makes keeps its name, or comes back under
it after a reorder node. What a kernel covers is therefore found by walking the file's graph back from the tensors it
makes to the tensors it reads.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from onnx import GraphProto, ModelProto, NodeProto

from runtime.model_files import graphs_in

BLOCKED = "com.microsoft.nchwc"
"""Domain of the kernels that work in blocks of channels."""
_BLOCKED_SUFFIX = "_nchwc"
_REORDERS = ("ReorderInput", "ReorderOutput")
_NUMBER = re.compile(r"_token_\d+$")
"""What is put behind the name of a node whose name is taken, as by the one that worked with channels first."""


@dataclass(frozen=True)
class Kernel:
    """A node that the backend runs.

    Attributes:
        name: unique in the optimised graph.
        op, domain: its operator.
        covers: names of the nodes of the file it stands for, in their order; empty for one that was added.
        reorder: whether it only changes the layout.
        like: the last of ``covers`` with the kernel's own operator; empty where there is none.
    """

    name: str
    op: str
    domain: str
    covers: tuple[str, ...]
    reorder: bool
    like: str = ""


def name_nodes(model: ModelProto) -> None:
    """Give every node of a model, in place, a name of its own; those that are unique stay."""
    taken: set[str] = set()
    for node in all_nodes(model.graph):
        wish = node.name or next((o for o in node.output if o), node.op_type)
        name, number = wish, 2
        while name in taken:
            name, number = f"{wish}#{number}", number + 1
        taken.add(name)
        node.name = name


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of a graph and of its subgraphs, those of a subgraph before the node that holds it."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from all_nodes(inner)
        yield node


def trace(model: ModelProto, optimised: ModelProto) -> dict[str, Kernel]:
    """Find what each kernel stands for.

    Args:
        model: the file, after ``name_nodes``.
        optimised: what the backend made of it.

    Returns:
        Kernels by name, in the order of the optimised graph. Every node of the file belongs to at most one.
    """
    tracer = _Tracer(model)
    return {kernel.name: kernel for kernel in tracer.kernels(optimised.graph, model.graph)}


class _Tracer:
    """``producer`` has the makers of tensors as the subgraph at hand sees them: branches may use the same names."""

    def __init__(self, model: ModelProto) -> None:
        nodes = list(all_nodes(model.graph))
        self.order = {node.name: n for n, node in enumerate(nodes)}
        self.by_name = {node.name: node for node in nodes}
        self.producer = ChainMap(_makers(nodes))
        self.known = (
            set(self.producer) | {v.name for v in model.graph.input} | {t.name for t in model.graph.initializer}
        )
        self.alias: dict[str, str] = {}
        self.claimed: set[str] = set()

    def kernels(self, graph: GraphProto, same: GraphProto) -> Iterator[Kernel]:
        """Kernels of a graph, those of a subgraph before the node that holds it; ``same`` is the file's."""
        outer, self.producer = self.producer, self.producer.new_child(_makers(same.node))
        for node in graph.node:
            namesake = self.by_name.get(node.name, NodeProto())
            theirs = {attribute.name: list(graphs_in(attribute)) for attribute in namesake.attribute}
            for attribute in node.attribute:
                others = theirs.get(attribute.name, [])
                for inner, other in zip_longest(graphs_in(attribute), others, fillvalue=GraphProto()):
                    yield from self.kernels(inner, other)
            yield self.kernel(node)
        self.producer = outer

    def kernel(self, node: NodeProto) -> Kernel:
        reorder = node.op_type in _REORDERS
        made = self._made(node, reorder)
        for output, name in made.items():
            self.alias[output] = name
        covers: list[str] = []
        if not reorder:
            borders = {self.alias.get(i, i) for i in node.input}
            covers = self._between(list(made.values()), borders)
        like = next((name for name in reversed(covers) if self.by_name[name].op_type == node.op_type), "")
        return Kernel(node.name, node.op_type, node.domain, tuple(covers), reorder, like)

    def _made(self, node: NodeProto, reorder: bool) -> dict[str, str]:
        """The file's names of the tensors a kernel makes, where they can be told."""
        if reorder:
            source = self.alias.get(node.input[0], node.input[0])
            return {node.output[0]: source} if source in self.known else {}
        made = {o: o for o in node.output if o in self.producer}
        rest = [o for o in node.output if o and o not in made]
        if len(rest) == 1 and not made:
            stem = node.name.removesuffix(_BLOCKED_SUFFIX) if node.domain == BLOCKED else ""
            same = self._namesake(node)
            if stem in self.producer:
                made[rest[0]] = stem
            elif same is not None and len(same.output) == 1:
                made[rest[0]] = same.output[0]
        return made

    def _namesake(self, node: NodeProto) -> NodeProto | None:
        """The file's node that a kernel is called after: NAME, NAME/WhatWasDone or NAME_token_NUMBER."""
        names = [node.name, node.name.rstrip("/").rpartition("/")[0]]
        if node.op_type != "Transpose":  # those around the others are called Transpose
            names.append(_NUMBER.sub("", node.name))
        return next((self.by_name[name] for name in names if name in self.by_name), None)

    def _between(self, made: Sequence[str], borders: set[str]) -> list[str]:
        found: set[str] = set()
        stack = list(made)
        while stack:
            name = stack.pop()
            maker = self.producer.get(name)
            if maker is None or name in borders or maker.name in found or maker.name in self.claimed:
                continue
            found.add(maker.name)
            stack.extend(maker.input)
        self.claimed |= found
        return sorted(found, key=self.order.__getitem__)


def _makers(nodes: Iterable[NodeProto]) -> dict[str, NodeProto]:
    return {name: node for node in nodes for name in node.output if name}


def main_node(kernel: Kernel, work: Mapping[str, int]) -> str:
    """The node a kernel is called after; empty where it stands for none.

    That with most work, else one with its own operator, else the last.
    """
    if not kernel.covers:
        return ""
    most = max(kernel.covers, key=lambda name: work.get(name, 0))
    return most if work.get(most) else kernel.like or kernel.covers[-1]
