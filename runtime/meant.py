"""What was meant by a name that is not there: the closest of those that are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(given: str, names: Iterable[str]) -> str:
    """The name that ``given`` is most like; empty where it is like none."""
    return next(iter(difflib.get_close_matches(given, list(names), 1)), "")


def instead(given: str, names: Iterable[str]) -> str:
    """A sentence to be put behind one that says that there is no ``given``: what is near, and all there is."""
    known = list(names)
    near = closest(given, known)
    return (f"Did you mean {near}? " if near else "") + f"Choose from {', '.join(known)}."
