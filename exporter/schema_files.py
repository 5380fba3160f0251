"""JSON Schemas: those that are shipped as files, and that of a recipe, made from the parsers of the commands."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = (
    *(
        "inspect",
        "advise",
        "sensitivity",
        "prune",
        "sparsify",
        "tune",
        "quantize",
        "verify",
        "eval",
        "bench",
        "compare",
    ),
    *("profile", "probe", "lint", "align", "backends", "doctor", "convert", "build", "run"),
)
"""Commands whose ``--json`` is described: all that have it, in one file, since they share parts."""

NAMES = ("plan", "recipe", "results", *RESULTS)
_FOLDER = Path(__file__).parent / "schemas"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def stored_schema(name: str) -> dict[str, Any]:
    """The schema of a plan, of a command's result, or of any command's.

    Args:
        name: ``plan``, one of ``RESULTS``, or ``results`` for all of them.
    """
    if name == "plan":
        return _read("plan")
    results = _read("results")
    if name == "results":
        return {**results, "anyOf": [{"$ref": f"#/$defs/{command}"} for command in RESULTS]}
    return {
        "$schema": _DIALECT,
        "title": f"secateur {name} --json",
        "$ref": f"#/$defs/{name}",
        "$defs": results["$defs"],
    }


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    return found


def recipe_schema(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, Any]:
    """The schema of a recipe. Each step has the keys that ``secateur run`` takes from its command's parser.

    Args:
        parsers: of the commands, by name.
    """
    from exporter.recipes.keys import keys_of
    from exporter.recipes.schedules import SCHEDULES
    from exporter.recipes.steps import ALIASES, MOST_ROUNDS, NO_STEPS, TOP

    scalar = {"type": ["string", "number"]}
    several = {"oneOf": [scalar, {"type": "array", "items": scalar}]}
    kinds: dict[str, Any] = {"flag": {"type": "boolean"}, "list": several, "value": scalar}

    def options(command: str) -> dict[str, Any]:
        found = keys_of(parsers[command])
        return {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {name: kinds[key.kind] for name, key in found.items()},
        }

    names = {name: name for name in parsers if name not in NO_STEPS}
    names |= {alias: command for alias, command in ALIASES.items() if command in parsers}
    steps = {name: options(command) for name, command in names.items()}
    steps["repeat"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["rounds", "steps"],
        "properties": {
            "rounds": {"type": "integer", "minimum": 1, "maximum": MOST_ROUNDS},
            "schedule": {"enum": list(SCHEDULES)},
            "steps": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}},
        },
    }
    properties = {
        "model": {"type": "string"},
        "folder": {"type": "string"},
        "eval": options("eval"),
        "compare": options("compare"),
        "steps": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}},
    }
    return {
        "$schema": _DIALECT,
        "title": "Secateur recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["steps"],
        "properties": {name: properties[name] for name in TOP},
        "$defs": {
            "step": {
                "oneOf": [
                    {"enum": sorted(names)},
                    {
                        "type": "object",
                        "minProperties": 1,
                        "maxProperties": 1,
                        "additionalProperties": False,
                        "properties": steps,
                    },
                ]
            }
        },
    }
