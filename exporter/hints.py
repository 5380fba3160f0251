"""What would free a frozen axis, by the reason it is frozen for."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from exporter.slots import Reason

_INTERFACE = "lets it shrink, if whoever calls the model can follow"
_STATIC = "fix the size of this axis with secateur convert --fix, or export with a static one"
_TRACE = "export without control flow (trace the model instead of scripting it)"

_HINTS = {
    "spatial axis": "nothing: it follows the size of the input",
    "axis of": "nothing: every result depends on the whole axis",
    "order along": "nothing: the result depends on positions",
    "positions along": "nothing: the result depends on positions",
    "its size is read": _STATIC,
    "its size is computed": _STATIC,
    "sliced at bounds": _STATIC,
    "split at sizes": _STATIC,
    "repeated a number": _STATIC,
    "the shape of": "give the sizes of dynamic axes with --shape, or fix them with secateur convert --fix",
    "control flow": _TRACE,
    "the branches return": "fix the inputs that decide which branch is taken, with secateur convert --fix",
    "a value whose shape changes": "nothing: it has another size in every iteration",
    "no rule for": "write a rule (one function and one test row, see CONTRIBUTING.md), or export without the operator",
    "selected by data": "--io INPUT:ids, if an input holds the numbers of the rows and its caller can follow",
    "indices of": "drop the output that holds the indices",
    "two reshapes": "use sizes that divide each other",
}


def interface_hint(name: str, axis: int, dynamic: bool) -> str:
    """What would free an axis of a graph input or output."""
    option = f"--io {shlex.quote(f'{name}:{axis}')} {_INTERFACE}"
    return f"fix the size of axis {axis} of '{name}' with secateur convert --fix; then {option}" if dynamic else option


def kind_of_hint(hint: str) -> str:
    """What is the same in the hints for many axes of the interface; else the hint."""
    return _INTERFACE if hint.endswith(_INTERFACE) else hint


def together(hints: Iterable[str]) -> str:
    """Hints of one kind in a line: the first, and how many more there are."""
    first, *others = dict.fromkeys(hints)
    return f"{first} (and {len(others)} more like it)" if others else first


def hint_for(reason: Reason) -> str:
    """What would free a slot frozen for this reason; empty where nothing is known."""
    if reason.hint:
        return reason.hint
    return next((hint for start, hint in _HINTS.items() if reason.text.startswith(start)), "")
