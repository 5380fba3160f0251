"""Residual blocks: the layers of a network that can go whole.

A block is a branch f of a sum ``y = x + f(x)`` whose operands have equal shape: what only this sum needs, and what
reaches back to the other operand. Dropping it leaves ``y = x``. Blocks may lie inside each other; a sum of x and two
parallel branches holds two (or three, where the branches are added to each other first).

Not a block: x itself, the residual stream, because the branch reads it; the main branch of a downsampling block,
because its shortcut has weights of its own and is no copy of x; a branch that holds no weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from exporter.graph import Graph
from exporter.groups import Groups
from exporter.naming import block_names
from exporter.plan import Drop
from exporter.removal import Link, links, sum_fault, survivors

KIND = "layers"


@dataclass(frozen=True)
class Block:
    """A residual branch that can go.

    Attributes:
        drop: what a plan says of it; its name is unique in the graph.
        nodes: keys of the nodes that go with it, without the sum.
        constants: names of the constants only they read.
        parameters: number of parameters that go with it.
        macs: multiply-accumulates that go with it, under the graph's binding.
        inside: names of the blocks inside it.
        branch: the tensor that is added.
        whole: the result of the last sum in a row: with parallel branches the sum of all of them.
    """

    drop: Drop
    nodes: frozenset[str]
    constants: frozenset[str]
    parameters: int
    macs: int
    inside: frozenset[str]
    branch: str
    whole: str

    @property
    def name(self) -> str:
        """Name of the block."""
        return self.drop.name


@dataclass(frozen=True)
class Refused:
    """A residual branch that has to stay, and why."""

    name: str
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Left:
    """What is left of a graph: parameters, multiply-accumulates under its binding, graph inputs that are still read."""

    parameters: int
    macs: int
    inputs: frozenset[str]


@dataclass(eq=False)
class Blocks:
    """The residual blocks of a graph, in its order. Iterates over those that can go.

    Attributes:
        groups: the analysis of the graph they are in.
        blocks: those that can go.
        refused: those that cannot.
    """

    groups: Groups
    blocks: list[Block]
    refused: list[Refused]

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def _links(self) -> list[Link]:
        return links(self.groups.graph.model)

    @cached_property
    def _work(self) -> dict[str, int]:
        return work_of(self.groups)

    @cached_property
    def whole(self) -> Left:
        """What there is before any block goes."""
        return self.left([])

    def left(self, chosen: Sequence[Block]) -> Left:
        """What stays without the chosen blocks."""
        graph = self.groups.graph
        alive = survivors(self._links, graph.outputs, [b.drop for b in chosen])
        read = {name for link in self._links if link.key in alive for name in link.reads} | set(graph.outputs)
        macs = sum(n for key, n in self._work.items() if key in alive or key not in self._main)
        return Left(_parameters(graph, read), macs, frozenset(read.intersection(graph.inputs)))

    def gone(self, chosen: Sequence[Block]) -> frozenset[str]:
        """Names of what goes with the chosen blocks: tensors, nodes by their first outputs, constants nothing reads."""
        graph = self.groups.graph
        alive = survivors(self._links, graph.outputs, [b.drop for b in chosen])
        made = {o for link in self._links if link.key not in alive for o in link.outputs}
        read, left = (
            {name for link in self._links if not living or link.key in alive for name in link.reads}
            for living in (False, True)
        )
        return frozenset(made | (read - left).intersection(graph.constants))

    @cached_property
    def names(self) -> dict[str, set[str]]:
        """For each block, its name and those of its nodes and tensors."""
        result = {}
        for block in self.blocks:
            inner = [link for link in self._links if link.key in block.nodes]
            result[block.name] = {block.name, *block.constants, *(link.proto.name for link in inner)}
            result[block.name] |= {o for link in inner for o in link.outputs}
        return result

    @cached_property
    def _main(self) -> frozenset[str]:
        return frozenset(link.key for link in self._links)


def find_blocks(groups: Groups) -> Blocks:
    """Find the residual blocks of a graph.

    Args:
        groups: the analysis of the graph. A block that takes graph inputs or outputs with it (its caches) can go only
            where these were named as free to shrink.

    Returns:
        The blocks, and those that have to stay.
    """
    finder = _Finder(groups)
    found = [b for link in finder.links for b in finder.blocks_at(link)]
    names = block_names(groups.graph, [(b.drop.node, b.constants, b.nodes) for b in found])
    found = [replace(b, drop=replace(b.drop, name=n)) for b, n in zip(found, names, strict=True)]
    blocks, refused = [], []
    for block in found:
        bound = [n for n in block.drop.interface if n not in groups.io]
        if bound:
            kind = "input" if bound[0] in groups.graph.inputs else "output"
            refused.append(
                Refused(block.name, f"graph {kind} '{bound[0]}' would go with it", _hint(groups.graph, bound))
            )
        else:
            blocks.append(block)
    inside = [frozenset(o.name for o in blocks if o.drop.node in b.nodes) for b in blocks]
    return Blocks(groups, [replace(b, inside=i) for b, i in zip(blocks, inside, strict=True)], refused)


def _hint(graph: Graph, names: Sequence[str]) -> str:
    """How to allow that inputs and outputs go; ``--io`` names one by an axis of fixed size."""
    options = []
    for name in names:
        fixed = [k for k, d in enumerate(graph.static.dims.get(name, ())) if isinstance(d, int)]
        if not fixed:
            return f"nothing: '{name}' has no axis of fixed size to name it by"
        options.append(f"--io '{name}:{fixed[0]}'")
    return f"{' '.join(options)} lets them go, if whoever calls the model can follow"


def work_of(groups: Groups) -> dict[str, int]:
    """Multiply-accumulates of every node of the uncut graph, by key."""
    result: dict[str, int] = {}
    for work in groups.analysis.work:
        result[work.node] = result.get(work.node, 0) + work.factor * math.prod(a.size for a in work.axes)
    return result


def _parameters(graph: Graph, names: Collection[str]) -> int:
    tensors = ((n, graph.constants[n]) for n in names if n in graph.constants)
    return sum(math.prod(t.dims) for n, t in tensors if n in graph.trained)


class _Finder:
    """Looks for residual branches in the main graph."""

    def __init__(self, groups: Groups) -> None:
        self.graph = graph = groups.graph
        self.links = links(graph.model)
        self.outputs = set(graph.outputs)
        self.work = work_of(groups)
        self.place = {o: n for n, link in enumerate(self.links) for o in link.outputs}
        self.readers: dict[str, list[Link]] = {}
        for link in self.links:
            for name in link.reads:
                self.readers.setdefault(name, []).append(link)
        self.sums = {link.key for link in self.links if not sum_fault(graph, link.proto)}
        self.taps = self._taps()

    def blocks_at(self, link: Link) -> Iterator[Block]:
        """Blocks that a sum adds to the residual stream."""
        if link.key not in self.sums:
            return
        for branch in (0, 1):
            nodes = self._only_for(link.key, link.proto.input[branch])
            if not nodes:
                continue
            made = {o for link in nodes for o in link.outputs}
            read = {name for link in nodes for name in link.reads} - made
            if not self._reaches(read - set(self.graph.constants), self._streams(link, branch)):
                continue
            keys = frozenset(n.key for n in nodes)
            own = frozenset(n for n in read if all(r.key in keys for r in self.readers[n]) and n not in self.outputs)
            constants = own.intersection(self.graph.constants)
            weights = _parameters(self.graph, constants)
            macs = sum(self.work.get(key, 0) for key in keys)
            if not weights and not macs:
                continue
            taps = {o for name in made for o in self._tapped(name)}
            interface = tuple(n for n in (*self.graph.inputs, *self.graph.outputs) if n in own | taps)
            drop = Drop("", link.key, branch, link.proto.input[1 - branch], interface)
            yield Block(
                drop, keys, constants, weights, macs, frozenset(), link.proto.input[branch], self._whole(link)[-1].key
            )

    def _only_for(self, key: str, operand: str) -> list[Link]:
        """The nodes whose results nothing needs but this operand of this node; graph outputs aside."""
        found: dict[str, Link] = {}
        stack = [operand]
        while stack:
            name = stack.pop()
            maker = self.links[self.place[name]] if name in self.place else None
            if maker is None or maker.key in found or maker.key in self.graph.constants:
                continue
            if all(
                r.key in found or r.key in self.taps or (r.key == key and o == operand)
                for o in maker.outputs
                for r in self.readers.get(o, ())
            ):
                found[maker.key] = maker
                stack.extend(maker.reads)
        return list(found.values())

    def _taps(self) -> dict[str, str]:
        """Nodes that only hand a tensor on to a graph output, by key, with the output's name."""
        taps: dict[str, str] = {}
        for name in self.graph.outputs:
            while name in self.place and not self.readers.get(name):
                link = self.links[self.place[name]]
                moved = [n for n in link.reads if n not in self.graph.constants]
                if len(moved) != 1 or self.work.get(link.key) or _parameters(self.graph, link.reads):
                    break
                taps[link.key] = name
                name = moved[0]
                if len(self.readers[name]) > 1:
                    break
        return taps

    def _tapped(self, name: str) -> Iterator[str]:
        """Graph outputs that a tensor is, or is only handed on to."""
        if name in self.outputs:
            yield name
        for reader in self.readers.get(name, ()):
            if reader.key in self.taps:
                for o in reader.outputs:
                    yield from self._tapped(o)

    def _whole(self, link: Link) -> list[Link]:
        """The sums in a row that this one is the first of, each of them read by the next alone."""
        row = [link]
        while True:
            readers = self.readers.get(row[-1].key, [])
            if len(readers) != 1 or row[-1].key in self.outputs or readers[0].key not in self.sums:
                return row
            row.append(readers[0])

    def _streams(self, link: Link, branch: int) -> set[str]:
        """The other operands of a sum and of those it is part of, and what these are sums of."""
        row = self._whole(link)
        stack = [link.proto.input[1 - branch]]
        stack += [n for one, before in zip(row[1:], row, strict=False) for n in one.proto.input if n != before.key]
        streams: set[str] = set()
        while stack:
            name = stack.pop()
            if name not in streams and name not in self.graph.constants:
                streams.add(name)
                if name in self.sums:
                    stack.extend(self.links[self.place[name]].proto.input)
        return streams

    def _reaches(self, names: set[str], streams: set[str]) -> bool:
        """Say whether one of the tensors is computed from one of the streams."""
        first = min((self.place.get(s, -1) for s in streams), default=0)
        seen: set[str] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name in streams:
                return True
            if name not in seen and self.place.get(name, -1) > first:
                seen.add(name)
                stack.extend(self.links[self.place[name]].reads)
        return False
