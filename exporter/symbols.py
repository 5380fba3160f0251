"""Sizes that only a run knows: symbols, and products of a number and symbols, written as one symbol (``6×batch``).

A symbol is the name of an axis's size or, with a leading ``=``, the result of arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable

Dim = int | str

_TIMES = "×"


def named(name: str) -> str:
    """The symbol of an axis that a file calls ``name``."""
    return "_" + name if name.startswith("=") or name.isdecimal() else name.replace(_TIMES, "*")


def is_size(symbol: str) -> bool:
    """Say whether a symbol can be the size of an axis by construction: no other arithmetic is in it."""
    return not any(factor.startswith("=") for factor in symbol.split(_TIMES))


def is_computed(symbol: str) -> bool:
    """Say whether a symbol is the result of arithmetic, and not the size of an axis of an input."""
    return _TIMES in symbol or symbol.startswith("=")


def product(elements: Iterable[Dim]) -> Dim | None:
    """Product of numbers and symbols; None where it is negative for some."""
    number, factors = _parts(elements)
    if number < 0 and factors:
        return None
    return _written(number, factors)


def quotient(whole: Iterable[Dim], part: Iterable[Dim]) -> Dim | None:
    """Product of ``whole`` over product of ``part``, where that is a number or a product of symbols; else None."""
    above, symbols = _parts(whole)
    below, divisors = _parts(part)
    if below <= 0 or above < 0 or above % below:
        return None
    for symbol in divisors:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    return _written(above // below, symbols)


def factors(symbol: str) -> list[str]:
    """The symbols in a symbol that is a product."""
    return _parts([symbol])[1]


def _parts(elements: Iterable[Dim]) -> tuple[int, list[str]]:
    number, factors = 1, []
    for element in elements:
        if isinstance(element, int):
            number *= element
            continue
        for factor in element.split(_TIMES):
            if factor.isdecimal():
                number *= int(factor)
            else:
                factors.append(factor)
    return number, factors


def _written(number: int, factors: list[str]) -> Dim:
    if not factors or number == 0:
        return number
    return _TIMES.join([*([str(number)] if number > 1 else []), *sorted(factors)])
