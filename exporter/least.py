"""The least number that will do, where more is better: doubled until one does, then bisected."""

from __future__ import annotations

from collections.abc import Callable


def least(enough: Callable[[int], bool], most: int) -> int | None:
    """The least of 1 to ``most`` that will do; None if ``most`` does not.

    Args:
        enough: tries a number.
        most: the largest number there is.
    """
    low, count = 0, 1
    while count <= most and not enough(count):
        low, count = count, 2 * count
    if count > most:
        count = most
        if low >= count or not enough(count):
            return None
    return bisected(enough, low, count)


def bisected(enough: Callable[[int], bool], low: int, count: int) -> int:
    """The least number that will do, between ``low``, which does not, and ``count``, which does."""
    while count - low > 1:
        middle = (low + count) // 2
        low, count = (low, middle) if enough(middle) else (middle, count)
    return count
