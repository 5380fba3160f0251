"""Console blocks of Markdown pages: their commands, and whether the output shown below each is what it prints."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_FREE = {"s", "ms", "us"}
"""What follows a time: these are another machine's."""
_NEAR = 0.1
"""How far a number may be from the one shown, relative to it: platforms round otherwise."""
_ROUNDING = 1e-3
"""Errors below this are rounding: they agree in being that small."""


@dataclass(frozen=True)
class Block:
    """One command.

    Attributes:
        command: without the prompt, continued lines joined.
        shown: the lines below it; ``...`` stands for any number of lines.
    """

    command: str
    shown: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """Every ``$`` line of the console blocks of a page, with the output it shows.

    Args:
        text: Markdown.
    """
    found: list[Block] = []
    for body in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in body.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(Block(line[2:], ()))
            else:
                found[-1] = Block(found[-1].command, (*found[-1].shown, line))
    return found


def untrue(shown: tuple[str, ...], said: str) -> str:
    """The first shown line that the output does not have, or "".

    Args:
        shown: lines in their order; words must be the same, numbers near, times are anybody's.
        said: the output.
    """
    lines = [line.rstrip() for line in said.splitlines()]
    place, skips = 0, False
    for line in shown:
        if line == "...":
            skips = True
            continue
        rest = [k for k in range(place, len(lines)) if _agree(line.split(), lines[k].split())]
        if not rest or (not skips and rest[0] != place):
            return line
        place, skips = rest[0] + 1, False
    return "" if skips or not shown or place == len(lines) else lines[place]


def _agree(shown: list[str], said: list[str]) -> bool:
    if len(shown) != len(said):
        return False
    followed = [*shown, ""][1:]
    return all(
        a == b or (after.strip(".,;)") in _FREE and _number(a) is not None and _number(b) is not None) or _near(a, b)
        for a, b, after in zip(shown, said, followed, strict=True)
    )


def _near(shown: str, said: str) -> bool:
    a, b = _number(shown), _number(said)
    if a is None or b is None:
        return set(shown) == set(said) == {"-"}  # the line below a heading
    return math.isclose(a, b, rel_tol=_NEAR) or max(abs(a), abs(b)) < _ROUNDING


def _number(word: str) -> float | None:
    try:
        return float(word.strip("(),;:%").replace(",", ""))
    except ValueError:
        return None
