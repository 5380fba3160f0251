"""What a rule sees of its node, and the facts it may state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from exporter.graph import Body, Graph, Node
from exporter.shuffles import Shuffle
from exporter.slots import ONE, Axis, Facts, Fixed, Ids, Reason, Resize, Slot, SlotError, Take

_MOST_REPEATS = 1 << 40


class Work(NamedTuple):
    """Multiply-accumulates of one node: ``factor`` times the product of the sizes of ``axes``."""

    node: str
    factor: int
    axes: tuple[Axis, ...]


@dataclass
class Analysis:
    """What the rules said about a graph.

    Attributes:
        graph: the graph.
        facts: ties, products, frozen slots, resizes, takes.
        axes: slots of every tensor; the key of a constant that may differ per use is (name, node key, input index),
            otherwise (name,).
        use: key of each constant use, by (node key, input index).
        work: multiply-accumulates.
        contracted: arrays of slots along which a constant is summed over (its consumer side).
        shuffles: chains of data movement analysed as one selection.
        lost: why nothing is known of a tensor, by name.
        positions: slots of the axis that the values of an integer tensor count, by its name.
        followed: uses of such tensors, (node key, input index), that follow a cut of the axis.
        routed: axes whose positions select from tables (the experts of a router).
        compared: axes along which a softmax compares slots, and why they stay unless they are routed.
        roles: remarks on slots, by role: ``batch`` and ``inner`` axes of products of two activations.
        visit: applies the rules to a node of a subgraph.
        repeats: how often the node at hand runs, where it is inside a loop.
    """

    graph: Graph
    facts: Facts = field(default_factory=Facts)
    axes: dict[tuple[Any, ...], list[Axis]] = field(default_factory=dict)
    use: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    contracted: list[Ids] = field(default_factory=list)
    shuffles: list[Shuffle] = field(default_factory=list)
    lost: dict[str, Reason] = field(default_factory=dict)
    positions: dict[str, Ids] = field(default_factory=dict)
    followed: set[tuple[str, int]] = field(default_factory=set)
    routed: list[Ids] = field(default_factory=list)
    compared: list[tuple[Ids, Reason]] = field(default_factory=list)
    roles: dict[str, list[Ids]] = field(default_factory=dict)
    visit: Callable[[Node], None] = lambda _: None
    repeats: int = 1


def find_slot(graph: Graph, node: Node, i: int, element: int) -> Slot | None:
    """Find the constant that holds one element of a node's vector input, looking through Concat; None if computed."""
    name = node.inputs[i]
    if name in graph.constants:
        return Slot(node.key, input=i, element=element)
    producer = graph.producer.get(name)
    if producer is None or producer.op != "Concat" or len(graph.users[name]) > 1:
        return None
    for k, piece in enumerate(producer.inputs):
        length = graph.static.dims.get(piece)
        if length is None or len(length) != 1 or not isinstance(length[0], int):
            return None
        if element < length[0]:
            return find_slot(graph, producer, k, element)
        element -= length[0]
    return None


class Site:
    """One node while its rule runs: what is known of it, and the facts the rule may state."""

    __slots__ = ("_given", "_read", "_touched", "analysis", "facts", "graph", "node", "opset")

    def __init__(self, analysis: Analysis, node: Node) -> None:
        self.analysis = analysis
        self.graph = analysis.graph
        self.facts = analysis.facts
        self.node = node
        self.opset = node.opset
        self._touched: dict[int, Ids] = {}
        self._read: dict[int, list[Axis]] = {}
        self._given: set[int] = set()

    @property
    def where(self) -> str:
        """How messages call the node."""
        return self.node.label

    # -- what is known ------------------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute."""
        return self.node.attributes.get(name, default)

    def has(self, i: int) -> bool:
        """Say whether input ``i`` is present."""
        return i < len(self.node.inputs) and self.node.inputs[i] != ""

    def has_output(self, o: int) -> bool:
        """Say whether output ``o`` is asked for."""
        return o < len(self.node.outputs) and self.node.outputs[o] != ""

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of input ``i``; raises SlotError if it is not known."""
        return self._shape_of(self.node.inputs[i])

    def out_shape(self, o: int) -> tuple[int, ...]:
        """Shape of output ``o``; raises SlotError if it is not known."""
        return self._shape_of(self.node.outputs[o])

    def _shape_of(self, name: str) -> tuple[int, ...]:
        shape = self.graph.shape(name)
        if shape is None:
            raise self._unknown(name)
        return shape

    def is_constant(self, i: int) -> bool:
        """Say whether input ``i`` is a constant of the file."""
        return self.has(i) and self.node.inputs[i] in self.graph.constants

    def known(self, i: int) -> list[int | None] | None:
        """Integers of input ``i`` that hold for every input size; None for an element, or the whole, that varies."""
        if not self.has(i):
            return None
        vector = self.graph.static.vector(self.node.inputs[i])
        return None if vector is None else [d if isinstance(d, int) else None for d in vector]

    def integers(self, i: int, attribute: str | None = None) -> list[int] | None:
        """Integers of an input, or of an attribute in older operator sets, all of them known; None if absent.

        Raises:
            SlotError: the input is there but varies at run time.
        """
        if attribute is not None and attribute in self.node.attributes:
            value = self.attribute(attribute)
            return list(value) if isinstance(value, (list, tuple)) else [int(value)]
        if not self.has(i):
            return None
        known = self.known(i)
        if known is None or None in known:
            raise SlotError(f"input {i} ('{self.node.inputs[i]}') is known only at run time")
        return [int(k) for k in known if k is not None]

    # -- slots --------------------------------------------------------------------------------------------------

    def axes(self, i: int) -> list[Axis]:
        """Slots of every axis of input ``i``. Constants get theirs on first use."""
        read = self._read.get(i)
        if read is not None:
            return read
        name = self.node.inputs[i]
        if name not in self.graph.constants:
            axes = self.analysis.axes.get((name,))
            if axes is None:
                raise self._unknown(name)
        else:
            key: tuple[Any, ...] = (name,) if self._tied(name) else (name, self.node.key, i)
            self.analysis.use[self.node.key, i] = key
            axes = self.analysis.axes.get(key)
            if axes is None:
                axes = [self.facts.axis(s, f"constant '{name}'") for s in self._shape_of(name)]
                for axis in axes:
                    self.facts.name(axis)
                self.analysis.axes[key] = axes
        self._read[i] = axes
        return axes

    def _tied(self, name: str) -> bool:
        """Say whether all uses of a constant share its slots.

        Exporters merge equal constants: two zero biases may be one initializer, and must be free to part. A matrix
        whose entries differ cannot be equal to another by accident, so one that has several users is shared on
        purpose and stays shared.
        """
        if len(self.graph.users.get(name, ())) < 2:
            return True
        shape = self._shape_of(name)
        if sum(s > 1 for s in shape) < 2 or 0 in shape:
            return False
        values = self.graph.array(name)
        return bool((values != values.reshape(-1)[0]).any())

    def give(self, o: int, axes: Sequence[Axis]) -> None:
        """State the slots of output ``o``."""
        name = self.node.outputs[o]
        self._name(name, axes)
        self._given.add(o)

    def _name(self, name: str, axes: Sequence[Axis]) -> None:
        """Give a tensor its slots."""
        shape = self._shape_of(name)
        if tuple([a.size for a in axes]) != shape:
            raise SlotError(
                f"the rule for {self.node.op} expects {[a.size for a in axes]}, the graph has {list(shape)}"
            )
        given = []
        for axis in axes:
            if not isinstance(axis, Fixed):
                self._touched[id(axis)] = axis
                if axis.size == 1:
                    self.facts.freeze(axis, ONE)  # an axis of one slot may be squeezed or broadcast; it cannot lose it
                    axis = Fixed(1, ONE)
                else:
                    self.facts.name(axis)
            given.append(axis)
        self.analysis.axes[name,] = given

    # -- subgraphs ----------------------------------------------------------------------------------------------

    def body(self, name: str) -> Body:
        """Subgraph of the attribute ``name``; raises SlotError if there is none."""
        found = [b for b in self.node.bodies if b.name == name]
        if len(found) != 1:
            raise SlotError(f"{self.node.op} has no {name}")
        return found[0]

    def enter(self, body: Body, given: Sequence[Sequence[Axis] | None] = (), repeats: int = 1) -> None:
        """Apply the rules inside a subgraph.

        Args:
            body: the subgraph.
            given: slots of each of its inputs; None for one of which nothing is known.
            repeats: how often it runs.
        """
        for name, axes in zip(body.inputs, given, strict=True):
            shape, why = self.graph.shape(name), Reason("given by control flow", self.where)
            if shape is None:
                self.analysis.lost[name] = Reason(f"the shape of '{name}' is not the same in every run", self.where)
            else:
                self._name(name, [Fixed(s, why) for s in shape] if axes is None else axes)
        outside = self.analysis.repeats
        self.analysis.repeats = min(outside * max(repeats, 1), _MOST_REPEATS)
        try:
            for node in body.nodes:
                self.analysis.visit(node)
        finally:
            self.analysis.repeats = outside

    def inner(self, name: str) -> list[Axis] | None:
        """Slots of a tensor inside a subgraph that has been entered; None where nothing is known of it."""
        return self.analysis.axes.get((name,))

    def mention(self, axis: Axis) -> None:
        """State that the rule covers this axis; it may be cut without changing what the node does for the rest."""
        if not isinstance(axis, Fixed):
            self._touched[id(axis)] = axis

    def fixed(self, size: int, why: str) -> Fixed:
        """An output axis of which nothing can be removed."""
        return Fixed(size, Reason(why, self.where) if size > 1 else ONE)

    def tie(self, a: Axis, b: Axis) -> None:
        """State that two axes live and die together."""
        self.facts.tie(a, b)
        self.mention(a)
        self.mention(b)

    def freeze(self, axis: Axis, why: str, hint: str = "") -> None:
        """State that an axis must stay."""
        self.facts.freeze(axis, Reason(why, self.where, hint))
        self.mention(axis)

    def merge(self, axes: Sequence[Axis]) -> Axis:
        """Flatten axes into one."""
        merged = self.facts.merge(axes, self.where)
        for axis in axes:
            self.mention(axis)
        return merged

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Take an axis apart."""
        self.mention(axis)
        return self.facts.split(axis, sizes, self.where)

    def concatenate(self, axes: Sequence[Axis]) -> Axis:
        """Axes one after the other."""
        if all(isinstance(a, Fixed) for a in axes):
            first = next((a for a in axes if isinstance(a, Fixed) and a.why != ONE), axes[0])
            assert isinstance(first, Fixed)
            return Fixed(sum(a.size for a in axes), first.why)
        return np.concatenate([self.facts.ids(a) for a in axes])

    def contract(self, i: int, axis: int) -> None:
        """State that the node sums over an axis of input ``i``: the slot is read here and goes no further."""
        ids = self.axes(i)[axis]
        self.mention(ids)
        if not isinstance(ids, Fixed) and self.from_constant(i):
            self.analysis.contracted.append(ids)

    def from_constant(self, i: int) -> bool:
        """Say whether input ``i`` is computed from constants alone (a weight behind a Transpose or a Cast)."""
        return self.graph.from_constants(self.node.inputs[i])

    def role(self, role: str, axis: Axis) -> None:
        """Remark on slots, for naming the groups."""
        if not isinstance(axis, Fixed):
            self.analysis.roles.setdefault(role, []).append(axis)

    def work(self, factor: int, *axes: Axis) -> None:
        """State the node's multiply-accumulates: ``factor`` times the sizes of ``axes``."""
        live = tuple(a for a in axes if not isinstance(a, Fixed))
        for axis in axes:
            factor *= axis.size if isinstance(axis, Fixed) else 1
        self.analysis.work.append(Work(self.node.key, factor * self.analysis.repeats, live))

    # -- sizes --------------------------------------------------------------------------------------------------

    def resize_attribute(self, name: str, ids: Axis, element: int | None = None, default: Sequence[int] = ()) -> None:
        """State that an attribute must equal the number of surviving slots."""
        if not isinstance(ids, Fixed):
            whole = tuple(default) or None
            slot = Slot(self.node.key, attribute=name, element=element, default=whole)
            self.facts.resizes.append(Resize(slot, ids))

    def resize(self, i: int, element: int, ids: Axis, default: Sequence[int] = ()) -> None:
        """State that an element of input ``i`` must equal the number of surviving slots; freeze them if it cannot."""
        if isinstance(ids, Fixed):
            return
        if not self.has(i):
            slot: Slot | None = Slot(self.node.key, input=i, element=element, default=tuple(default))
        else:
            slot = find_slot(self.graph, self.node, i, element)
        if slot is None:
            self.freeze(ids, "its size is computed at run time")
        else:
            self.facts.resizes.append(Resize(slot, ids))

    def take(self, axis: int, indices: Ids) -> Ids:
        """State that the node takes constant indices along ``axis`` of its first input; returns the slots taken."""
        source = self.axes(0)[axis]
        assert not isinstance(source, Fixed)
        self.mention(source)
        self.facts.takes.append(Take(self.node.key, self.node.inputs[0], self.node.outputs[0], axis, source, indices))
        return source[indices]

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Freeze what the rule did not mention, and fix the outputs it did not give."""
        for i, name in enumerate(self.node.inputs):
            read = self._read.get(i)
            if read is None:
                read = [] if name in self.graph.constants else self.analysis.axes.get((name,), [])
            for k, axis in enumerate(read):
                if not isinstance(axis, Fixed) and id(axis) not in self._touched:
                    missed = self._missed(axis)
                    if missed.size:
                        why = f"{self.node.op} does not cover axis {k} of input {i}"
                        self.facts.freeze(missed, Reason(why, self.where))
        for o, name in enumerate(self.node.outputs):
            if name and o not in self._given:
                self.leave(o)

    def _missed(self, axis: Ids) -> Ids:
        """Slots of an axis that the rule mentions in no axis."""
        if not self._touched:
            return axis
        return axis[~np.isin(axis, np.concatenate(list(self._touched.values())))]

    def _unknown(self, name: str) -> SlotError:
        more = self.graph.unmeasured and f": {self.graph.unmeasured}"
        why = self.analysis.lost.get(name, Reason(f"the shape of '{name}' is not known{more}"))
        return SlotError(why.text, why.where)

    def leave(self, o: int, why: Reason | None = None) -> None:
        """Fix every axis of output ``o``."""
        name = self.node.outputs[o]
        self._given.add(o)
        shape = self.graph.shape(name)
        reason = why or Reason(f"{self.node.op} says nothing of output {o}", self.node.label)
        if shape is not None:
            self.analysis.axes[name,] = [Fixed(s, reason if s > 1 else ONE) for s in shape]
        elif why is not None:
            self.analysis.lost[name] = why
