"""The table of operators: one small function each, whose signature says which inputs and attributes it understands.

    @op("LeakyRelu")
    def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor: ...

Positional parameters are inputs in the order of the standard (``None`` where omitted; ``*xs`` takes any number),
keyword parameters are attributes with the standard's default. An attribute that is no keyword parameter is refused
when the module is made. A first parameter called ``site`` receives what is known of the node; an input annotated
``Ints`` arrives as a list of Python integers: shapes, axes, paddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import GraphProto
from torch import Tensor

from exporter.errors import ModelError
from exporter.graph import Node
from runtime.registry import enter

Ints = list[int]
Value = Any
"""A tensor; a list of tensors, for a sequence; None, for an empty optional value or an omitted input."""


class Unsupported(ModelError):
    """The graph holds something that has no differentiable implementation here."""


@dataclass(frozen=True)
class Site:
    """Where an operator is evaluated.

    Attributes:
        node: the node.
        run: evaluates the body of that number with these inputs; returns what it returns.
        device: where new tensors go.
        kinds: ONNX's numbers of element types, by tensor name, where they are declared.
    """

    node: Node
    run: Callable[[int, list[Value]], list[Value]]
    device: torch.device
    kinds: Mapping[str, int]

    @property
    def opset(self) -> int:
        """Version of the operator's domain."""
        return self.node.opset

    @property
    def outputs(self) -> int:
        """Number of outputs up to the last one that has a name."""
        return max((k + 1 for k, name in enumerate(self.node.outputs) if name), default=0)

    def refuse(self, why: str) -> Unsupported:
        """The error for something this operator is not implemented for."""
        return unsupported(self.node, why)


def unsupported(node: Node, why: str) -> Unsupported:
    """The error for a node that cannot be made differentiable."""
    return Unsupported(
        f"{node.label} (operator set {node.opset}) cannot be run in torch: {why}.\n"
        "Methods without gradients (--score l2 or reconstruction, --calib) do not need this."
    )


@dataclass(frozen=True)
class Op:
    """An entry of the table.

    Attributes:
        run: the function.
        attributes: names of those it understands.
        inputs: most inputs it takes; None for any number.
        ints: numbers of the inputs that arrive as lists of integers.
        site: whether the function wants the site.
    """

    run: Callable[..., Any]
    attributes: frozenset[str]
    inputs: int | None
    ints: frozenset[int]
    site: bool


OPS: dict[str, Op] = {}


def op(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the implementation of one or more operators (``Conv``, ``com.microsoft::FusedConv``)."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        enter(OPS, "operators", *names)(_entry(function))
        return function

    return register


def _entry(function: Callable[..., Any]) -> Op:
    parameters = list(inspect.signature(function).parameters.values())
    site = bool(parameters) and parameters[0].name == "site"
    given = [p for p in parameters[site:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    ints = frozenset(k for k, p in enumerate(given) if str(p.annotation).startswith("Ints"))
    names = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    return Op(function, names, None if variadic else len(given), ints, site)


def entry_of(node: Node) -> Op:
    """The entry for a node, once it is known that the node asks for nothing the entry does not understand.

    Raises:
        Unsupported: there is no entry, or an attribute or input is beyond it.
    """
    entry = OPS.get(node.op)
    if entry is None:
        raise unsupported(node, "there is no differentiable implementation of this operator")
    given = {name for name, value in node.attributes.items() if not isinstance(value, GraphProto)}
    strange = sorted(given - entry.attributes)
    if strange:
        raise unsupported(node, f"its attribute '{strange[0]}' is not implemented")
    if entry.inputs is not None and len(node.inputs) > entry.inputs and any(node.inputs[entry.inputs :]):
        raise unsupported(node, f"its input {entry.inputs} is not implemented")
    return entry


@dataclass(frozen=True, eq=False)
class Numbers:
    """A small constant of integers: a shape, axes, an index, which Python reads as often as torch does."""

    ints: Ints
    tensor: Tensor


def to_ints(value: Value) -> Ints | None:
    """A vector or number as Python integers."""
    if value is None or isinstance(value, Numbers):
        return None if value is None else value.ints
    return [int(v) for v in value.reshape(-1).tolist()]
