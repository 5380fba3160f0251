"""What fixing inputs did, as text and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.fixing.fixer import Fixed
from exporter.tables import quantity
from exporter.tensors import Array
from runtime.nouns import counted

VERSION = 1
_SHOWN = 8


def fixed_text(found: Fixed) -> str:
    """What a terminal shows."""
    fixed = [f"{name} = {size}" for name, size in found.sizes.items()]
    fixed += [f"{name} = {_shown(value)} (no input any more)" for name, value in found.values.items()]
    before, after = found.nodes
    lines = [
        f"fixed: {', '.join(fixed)}",
        f"inputs: {', '.join(found.inputs) or 'none'}",
        f"{counted(after, 'node')} (before: {before}), {quantity(found.bytes[1])}B (before: "
        f"{quantity(found.bytes[0])}B); outputs differ by {found.error:.2g} of their signal at most "
        f"({counted(found.runs, 'run')})",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes), str(found.path)])


def fixed_json(found: Fixed, source: str) -> dict[str, Any]:
    """The same for programs. Values of more than a few numbers are told by their shape alone."""
    return {
        "version": VERSION,
        "source": source,
        "path": str(found.path),
        "fixed": {"sizes": dict(found.sizes), "values": _values(found.values)},
        "inputs": list(found.inputs),
        "nodes": {"before": found.nodes[0], "after": found.nodes[1]},
        "bytes": {"before": found.bytes[0], "after": found.bytes[1]},
        "max_relative_error": found.error,
        "runs": found.runs,
        "notes": list(found.notes),
    }


def _values(values: Mapping[str, Array]) -> dict[str, Any]:
    return {
        name: {"shape": list(value.shape), "values": value.tolist() if value.size <= _SHOWN else None}
        for name, value in values.items()
    }


def _shown(value: Array) -> str:
    first = value.reshape(-1)[:1]
    if value.size and (value == first).all():
        return f"{first[0]}"
    return f"an array of {'x'.join(map(str, value.shape))}"
