"""Tables that decorators fill: what is known of each operator, or of each method by name."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TypeVar

T = TypeVar("T")


def enter(table: MutableMapping[str, T], what: str, *names: str) -> Callable[[T], T]:
    """A decorator that enters a function into a table under some names.

    Args:
        table: changed in place.
        what: the entries are, in the plural, for the message.
        names: one or more; each has one entry.

    Raises:
        ValueError: a name is in the table already.
    """

    def register(entry: T) -> T:
        for name in names:
            if name in table:
                raise ValueError(f"two {what} for {name}: {table[name]} and {entry}")
            table[name] = entry
        return entry

    return register
