"""What is to be zero: N of every M weights along the inputs of a layer, or a share of all weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from exporter.errors import UsageError

_GROUPED = re.compile(r"(\d+):(\d+)")
_WIDEST = 64


@dataclass(frozen=True)
class Pattern:
    """A sparsity pattern.

    Attributes:
        keep: at most so many of every ``of`` weights along the inputs are not zero; 0 for an unstructured pattern.
        of: the length of a run of weights; 0 for an unstructured pattern.
        share: the share of the weights that is zero.
    """

    keep: int
    of: int
    share: float

    @property
    def grouped(self) -> bool:
        """Whether it is N:M."""
        return self.of > 0

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" if self.grouped else f"{self.share:g}"


STEPS = 5
"""Of a schedule."""

SCHEDULES: dict[str, tuple[float, ...]] = {
    "one-shot": (1.0,),
    "iterative": tuple(k / STEPS for k in range(1, STEPS + 1)),
    "cubic": tuple(1 - (1 - k / STEPS) ** 3 for k in range(1, STEPS + 1)),
}
"""Shares of what goes in all that are gone after each step: at once, as many in each step, or most in the first (Zhu
and Gupta, "To prune, or not to prune", 2017)."""


@dataclass(frozen=True)
class Plan:
    """How a pattern is put on a model; see ``sparsify``."""

    pattern: Pattern
    method: str = "magnitude"
    scope: str = "local"
    schedule: str = "one-shot"
    refit: bool = True
    max_drop: float | None = None


def parse_pattern(text: str) -> Pattern:
    """Read a pattern: ``2:4`` keeps two of every four weights, ``0.8`` makes 80 % of the weights zero.

    Raises:
        UsageError: it is neither.
    """
    found = _GROUPED.fullmatch(text.strip())
    if found:
        keep, of = int(found[1]), int(found[2])
        if 0 < keep < of <= _WIDEST:
            return Pattern(keep, of, 1 - keep / of)
        raise UsageError(f"--pattern {text}: N:M keeps N of every M weights, with 0 < N < M <= {_WIDEST}; try 2:4.")
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageError(
            f"--pattern {text} is neither N:M nor a share between 0 and 1.\n"
            "2:4 keeps two of every four weights; 0.8 makes 80 % of the weights zero."
        )
    return Pattern(0, 0, share)
