"""``$budget`` and other variables in the values of a sweep's steps and options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from exporter.recipes.reading import Given

_VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\}|(?P<dollar>\$))")

Missing = Callable[[int, str], None]
"""Called with line and name of a variable that has no value."""


def names_in(given: Given) -> set[str]:
    """Variables that stand anywhere in a value."""
    if isinstance(given.value, dict):
        return {name for each in given.value.values() for name in names_in(each)}
    if isinstance(given.value, list):
        return {name for each in given.value for name in names_in(each)}
    if not isinstance(given.value, str):
        return set()
    return {_name(found) for found in _VARIABLE.finditer(given.value)} - {""}


def filled(given: Given, values: Mapping[str, Any], missing: Missing) -> Given:
    """A value with its variables replaced, keys left as they are.

    A text that is nothing but one variable becomes its value, number or list; within a text it is written out, and
    ``$$`` stands for a dollar sign.

    Args:
        given: text, list or mapping.
        values: by name.
        missing: told of what is not in ``values``.
    """
    if isinstance(given.value, dict):
        inner = {name: filled(each, values, missing) for name, each in given.value.items()}
        return Given(inner, given.line, given.key_lines)
    if isinstance(given.value, list):
        return Given([filled(each, values, missing) for each in given.value], given.line)
    if not isinstance(given.value, str):
        return given
    for name in sorted(names_in(given) - set(values)):
        missing(given.line, name)
    whole = _VARIABLE.fullmatch(given.value)
    if whole and _name(whole) in values:
        return _given(values[_name(whole)], given.line)
    return Given(_VARIABLE.sub(lambda found: _written(found, values), given.value), given.line)


def text_of(value: Any) -> str:
    """A value as it stands within a text."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _name(found: re.Match[str]) -> str:
    return found["plain"] or found["braced"] or ""


def _written(found: re.Match[str], values: Mapping[str, Any]) -> str:
    return "$" if found["dollar"] else text_of(values.get(_name(found), found[0]))


def _given(value: Any, line: int) -> Given:
    return Given([Given(each, line) for each in value] if isinstance(value, list) else value, line)
