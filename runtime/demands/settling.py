"""Sizes of dynamic axes that meet demands: those taken by default stay as far as they do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from runtime.demands.terms import Extent, multiplies, number_of, symbols_in

Equation = tuple[Extent, Extent]
Demand = tuple[Equation, ...]
"""Equations of which one must hold; the first is what is tried first."""

_LARGEST = 1 << 24
_MOST_TRIED = 64
"""Demands that are tried: layers that are alike ask for the same."""


def holds(demand: Demand, sizes: Mapping[str, int]) -> bool:
    """Say whether sizes meet a demand, or nothing can be said."""
    return any(_difference(equation, sizes) in (0, None) for equation in demand)


def settle(demands: Sequence[Demand], sizes: Mapping[str, int], held: Collection[str]) -> dict[str, int]:
    """Change sizes until they meet demands.

    Args:
        demands: what is asked for; those about the fewest symbols are met first.
        sizes: by symbol.
        held: symbols whose sizes somebody asked for: they stay.

    Returns:
        Every symbol that needs another size, with it. Demands that no size meets are left as they are.
    """
    now, changed, failed = dict(sizes), dict[str, int](), set[Demand]()
    ordered = sorted(demands, key=lambda demand: len(_symbols(demand[0])))
    for _ in range(_MOST_TRIED):
        demand = next((d for d in ordered if d not in failed and not holds(d, now)), None)
        if demand is None:
            break
        found = next(_solutions(demand, now, {*held, *changed}, ordered), None)
        if found:
            changed |= found
            now |= found
            failed.clear()  # what had no way may have one now
        else:
            failed.add(demand)
    return changed


def _solutions(
    demand: Demand, sizes: Mapping[str, int], held: Collection[str], demands: Sequence[Demand]
) -> Iterator[dict[str, int]]:
    """Changes that meet a demand: first those that break no other that is met, then those that leave it a way.

    A way is an axis whose size is still free: a longer past wants more tokens, which want a longer mask.
    """
    changes = [found for equation in demand for found in _changes(equation, sizes, held)]
    for strict in (True, False):
        for found in changes:
            after = {**sizes, **found}
            broken = [asking(d) for d in demands if holds(d, sizes) and not holds(d, after)]
            if not broken or (not strict and all(symbols - {*held, *found} for symbols in broken)):
                yield found


def _changes(equation: Equation, sizes: Mapping[str, int], held: Collection[str]) -> Iterator[dict[str, int]]:
    """Sizes that solve an equation.

    (1) One side is a symbol: it takes the size of the other. (2) Axes that are multiplied and have one size keep one
    size: both sides of an image. (3) One symbol alone.
    """
    for one, other in (equation, equation[::-1]):
        if isinstance(one, str) and one not in held and one not in symbols_in(other):
            number = number_of(other, sizes)
            if number is not None and number > 0:
                yield {one: number}
    free = [s for s in _symbols(equation) if s not in held and s in sizes]
    alike = sorted({sizes[s] for s in free}, reverse=True)
    groups = [[s for s in free if sizes[s] == size] for size in alike]
    image = any(multiplies(side) for side in equation)
    for group in (*(groups if image else ()), *([s] for s in free), *groups):
        number = _solved(equation, sizes, group)
        if number is not None:
            yield dict.fromkeys(group, number)


def _solved(equation: Equation, sizes: Mapping[str, int], group: Sequence[str]) -> int | None:
    """The roundest number that solves an equation for several symbols at once, near the smallest that does.

    What shapes are computed with rises with every size, so halving finds where the sides meet; a number that does not
    solve the equation after all is not returned.
    """

    def difference(number: int) -> int | None:
        return _difference(equation, {**sizes, **dict.fromkeys(group, number)})

    ends = (difference(1), difference(_LARGEST))
    if ends[0] is None or ends[1] is None:
        return None
    rising = ends[0] < ends[1]

    def first(beyond: int) -> int:
        """The first number at which the difference is at least 0, or beyond it."""
        low, high = 1, _LARGEST
        while low < high:
            middle = (low + high) // 2
            found = (difference(middle) or 0) * (1 if rising else -1)
            low, high = (low, middle) if found >= beyond else (middle + 1, high)
        return low

    low = first(0)
    high = min(first(1), 2 * low) - 1
    step = 1
    while 2 * step * -(-low // (2 * step)) <= high:
        step *= 2
    number = step * -(-low // step)
    return number if difference(number) == 0 else None


def _difference(equation: Equation, sizes: Mapping[str, int]) -> int | None:
    left, right = (number_of(side, sizes) for side in equation)
    return None if left is None or right is None else left - right


def asking(demand: Demand) -> set[str]:
    """The symbols a demand is about."""
    return {symbol for equation in demand for symbol in _symbols(equation)}


def _symbols(equation: Equation) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*symbols_in(equation[0]), *symbols_in(equation[1]))))
