"""What is known while a graph is followed: axes of tensors, numbers in small integer tensors, and what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx
from onnx import NodeProto

from runtime.demands.settling import Demand
from runtime.demands.terms import Extent, check, larger
from runtime.registry import enter

Dims = tuple[Extent, ...] | None
"""Sizes of a tensor's axes; None where not even their number is known."""


@dataclass
class Facts:
    """What is known of a graph so far.

    Attributes:
        dims: by tensor.
        numbers: elements of small integer tensors, by tensor; a size that was read off a tensor is a term.
        demands: what was asked for, each once, in the order of the nodes.
    """

    dims: dict[str, Dims] = field(default_factory=dict)
    numbers: dict[str, tuple[Extent, ...]] = field(default_factory=dict)
    demands: dict[Demand, None] = field(default_factory=dict)

    def ask(self, *equations: tuple[Extent, Extent]) -> None:
        """Demand that one of several equations holds; not where a side is unknown, or none is about dynamic axes."""
        sides = [side for equation in equations for side in equation]
        check(*sides)
        if None in sides or all(isinstance(side, int) for side in sides) or any(a == b for a, b in equations):
            return
        self.demands[equations] = None


@dataclass
class Node:
    """A node and what is known of its inputs."""

    proto: NodeProto
    facts: Facts

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """By name, as Python values."""
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    def has(self, place: int) -> bool:
        """Say whether an input is given."""
        return place < len(self.proto.input) and bool(self.proto.input[place])

    def dims(self, place: int = 0) -> Dims:
        """Axes of an input."""
        return self.facts.dims.get(self.proto.input[place]) if self.has(place) else None

    def axis(self, place: int, axis: int) -> Extent:
        """One axis of an input, counted from either end; None where it has no such axis."""
        dims = self.dims(place)
        return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None

    def numbers(self, place: int) -> tuple[Extent, ...] | None:
        """Elements of an integer input."""
        return self.facts.numbers.get(self.proto.input[place]) if self.has(place) else None

    def integers(self, place: int, name: str) -> list[int] | None:
        """Integers that are an input since some version, and were an attribute before; None where they are neither.

        Raises:
            ValueError: they are computed.
        """
        if not self.has(place):
            found: Iterable[int] | None = self.attributes.get(name)
            return None if found is None else list(found)
        numbers = self.numbers(place)
        if numbers is None:
            raise ValueError(f"{name} is computed")
        return [fixed(n) for n in numbers]


Follow = Callable[[Node], Sequence[Dims]]
"""Reads the inputs of a node, asks for what it demands of them, and returns the axes of its outputs."""

FOLLOWED: dict[str, Follow] = {}


def follows(*operators: str) -> Callable[[Follow], Follow]:
    """Register a function for operators, of whatever domain."""
    return enter(FOLLOWED, "ways to follow", *operators)


def fixed(size: Extent) -> int:
    """A size that must be a number.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(size, int):
        raise ValueError("a number that is not known")
    return size


def known(dims: Dims) -> tuple[Extent, ...]:
    """Axes that must be known in number.

    Raises:
        ValueError: they are not.
    """
    if dims is None:
        raise ValueError("a tensor of which nothing is known")
    return dims


def broadcast(facts: Facts, *shapes: Dims) -> Dims:
    """The axes of tensors that meet element by element; asks that they are equal or 1 where they meet."""
    if any(shape is None for shape in shapes):
        return None
    rank = max(len(known(shape)) for shape in shapes)
    padded = [(1,) * (rank - len(known(shape))) + known(shape) for shape in shapes]
    return tuple(_met(facts, sizes) for sizes in zip(*padded, strict=True))


def _met(facts: Facts, sizes: Sequence[Extent]) -> Extent:
    found: Extent = 1
    for size in sizes:
        if found == 1 or size == 1:
            found = size if found == 1 else found
            continue
        if found is not None and size is not None:
            facts.ask((size, found), *((s, 1) for s in (size, found) if not isinstance(s, int)))
        numbers = [s for s in (found, size) if isinstance(s, int)]
        found = numbers[0] if numbers else larger(found, size)
    return found
