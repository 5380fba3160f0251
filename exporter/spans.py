"""A span: one axis of one tensor that a group of units touches."""

from __future__ import annotations

from typing import NamedTuple

from exporter.slots import Ids


class Span(NamedTuple):
    """One axis that a group spans.

    Attributes:
        tensor: name of the tensor.
        axis: the axis.
        use: for a constant whose uses may part, (node key, input index) of this use; else None.
        units: for every position of the axis the unit that sits there, or -1; shape (size,).
        constant: whether the tensor is a constant of the file.
        contracted: whether a node sums over this axis of a constant (the unit's consumer side).
    """

    tensor: str
    axis: int
    use: tuple[str, int] | None
    units: Ids
    constant: bool
    contracted: bool
