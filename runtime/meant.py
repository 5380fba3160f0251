"""What was meant by a name that is not there: the closest of those that are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(given: str, names: Iterable[str]) -> str:
    """The name that ``given`` is most like; empty where it is like none."""
    return next(iter(difflib.get_close_matches(given, list(names), 1)), "")


def instead(given: str, names: Iterable[str]) -> str:
    """To be put behind what says that there is no ``given``: all there is, and what is near."""
    known = list(names)
    near = closest(given, known)
    return f"choose from {', '.join(known)}" + (f"; did you mean {near}?" if near else ".")
