"""The registry of operator rules."""

from __future__ import annotations

from collections.abc import Callable

from exporter.rules.site import Site
from runtime.registry import enter

Rule = Callable[[Site], None]

RULES: dict[str, Rule] = {}

FROZEN: dict[str, str] = {}
"""Operators of which nothing is cut, and why."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for one or more operators (``Conv``, ``com.microsoft::FusedConv``)."""
    return enter(RULES, "rules", *operators)


def freezes(why: str, *operators: str) -> None:
    """Register operators of which nothing is cut on purpose; ``why`` becomes the reason in the report."""
    for operator in operators:
        if operator in FROZEN or operator in RULES:
            raise ValueError(f"{operator} is registered already")
        FROZEN[operator] = why
