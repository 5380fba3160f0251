"""Values that options of one name have in several commands: what is out of range is refused before any work."""

from __future__ import annotations

import argparse
from typing import Any


def check_values(options: argparse.Namespace) -> None:
    """Refuse values of shared options that no model or data could make right.

    Args:
        options: of a command.

    Raises:
        UsageError, BadRequest: with the option, the value and what it may be.
    """
    for name, check in _CHECKS.items():
        value = getattr(options, name, None)
        if value is not None:
            check(value)


def _shape(texts: list[str]) -> None:
    from runtime.feeds import parse_shapes

    parse_shapes(texts)


def _preprocess(text: str) -> None:
    from runtime.images import parse_preprocess

    parse_preprocess(text)


def _metric(name: str) -> None:
    from runtime.plugins import PLUGIN, find_metric

    if not name.startswith(PLUGIN):  # whose code is run when it is needed, and no sooner
        find_metric(name)


def _io(patterns: list[str]) -> None:
    from exporter.interface import check_pattern

    for pattern in patterns:
        check_pattern(pattern)


def _limit(count: int) -> None:
    from runtime.samples import check_limit

    check_limit(count)


_CHECKS: dict[str, Any] = {
    "shape": _shape,
    "preprocess": _preprocess,
    "metric": _metric,
    "io": _io,
    "limit": _limit,
    "calib_samples": _limit,
}
"""By the attribute of the namespace."""
