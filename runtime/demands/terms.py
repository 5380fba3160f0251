"""Sizes as terms in the sizes of dynamic axes: ``H // 16 * (W // 16) + 1`` tokens of an image."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_HEAVIEST = 256
"""Operations of the longest term that is kept. A term may come up twice in the next, so graphs can double them."""

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "max": max,
}


@dataclass(frozen=True)
class Term:
    """Two sizes and what is done with them.

    Attributes:
        operation: a key of the table of operations.
        left: the first size.
        right: the second.
        weight: operations in all.
    """

    operation: str
    left: Size
    right: Size
    weight: int


Size = int | str | Term
"""A number, the symbol of a dynamic axis, or a term."""

Extent = Size | None
"""A size, or None where nothing is known."""


def plus(left: Extent, right: Extent) -> Extent:
    """The sum; what is added to a sum with a number is added to the number."""
    if isinstance(left, int):
        left, right = right, left
    if right == 0:
        return left
    if isinstance(left, Term) and left.operation == "+" and isinstance(left.right, int) and isinstance(right, int):
        return plus(left.left, left.right + right)
    return _joined("+", left, right)


def minus(left: Extent, right: Extent) -> Extent:
    """The difference."""
    return plus(left, -right) if isinstance(right, int) else _joined("-", left, right)


def times(left: Extent, right: Extent) -> Extent:
    """The product; nothing times an unknown is nothing."""
    for one, other in ((left, right), (right, left)):
        if one == 0:
            return 0
        if one == 1:
            return other
    return _joined("*", left, right)


def over(left: Extent, right: Extent) -> Extent:
    """The quotient, rounded down."""
    if right == 0:
        return None
    return left if right == 1 else _joined("//", left, right)


def larger(left: Extent, right: Extent) -> Extent:
    """The larger of two sizes."""
    return left if left == right else _joined("max", left, right)


def _joined(operation: str, left: Extent, right: Extent) -> Extent:
    if left is None or right is None:
        return None
    check(left, right)
    if isinstance(left, int) and isinstance(right, int):
        return _OPERATIONS[operation](left, right)
    weight = 1 + sum(side.weight for side in (left, right) if isinstance(side, Term))
    return Term(operation, left, right, weight) if weight <= _HEAVIEST else None


def check(*sizes: Extent) -> None:
    """Refuse what is no size with a TypeError: an attribute may be of any type in a broken file."""
    if not all(size is None or isinstance(size, (int, str, Term)) for size in sizes):
        raise TypeError("no size")


def parts_of(symbol: str) -> list[str]:
    """What a symbol such as ``past + seq`` is the sum of; a plain symbol alone."""
    return [part.strip() for part in symbol.split("+")]


def size_of(symbol: str) -> Extent:
    """The term that a symbol stands for."""
    total: Extent = 0
    for part in parts_of(symbol) if "+" in symbol else [symbol]:
        total = plus(total, int(part) if part.isdecimal() else part)
    return total


def symbols_in(size: Extent) -> tuple[str, ...]:
    """Symbols of a term, each once, in the order in which they come."""
    if isinstance(size, Term):
        return tuple(dict.fromkeys((*symbols_in(size.left), *symbols_in(size.right))))
    return (size,) if isinstance(size, str) else ()


def multiplies(size: Extent) -> bool:
    """Say whether sizes of axes are multiplied with one another, as those of an image are."""
    if not isinstance(size, Term):
        return False
    here = size.operation == "*" and bool(symbols_in(size.left)) and bool(symbols_in(size.right))
    return here or multiplies(size.left) or multiplies(size.right)


def number_of(size: Extent, sizes: Mapping[str, int]) -> int | None:
    """The number that a term comes to; None where a symbol has no size, or something is divided by zero."""
    if isinstance(size, Term):
        left, right = number_of(size.left, sizes), number_of(size.right, sizes)
        if left is None or right is None or (size.operation == "//" and right == 0):
            return None
        return _OPERATIONS[size.operation](left, right)
    return sizes.get(size) if isinstance(size, str) else size
