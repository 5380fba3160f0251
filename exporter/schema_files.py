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
    *("profile", "probe", "lint", "align", "backends", "doctor", "convert", "build", "run", "sweep"),
)
"""Commands whose ``--json`` is described: all that have it, in one file, since they share parts."""

_SHEETS = ("recipe", "sweep")
NAMES = ("plan", *_SHEETS, "results", *(name for name in RESULTS if name not in _SHEETS))
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
    from exporter.recipes.steps import TOP

    properties = {
        "model": {"type": "string"},
        "folder": {"type": "string"},
        "eval": _options(parsers, "eval"),
        "compare": _options(parsers, "compare"),
        "steps": _STEPS,
    }
    return {
        "$schema": _DIALECT,
        "title": "Secateur recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["steps"],
        "properties": {name: properties[name] for name in TOP},
        "$defs": {"step": _step(parsers)},
    }


def sweep_schema(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, Any]:
    """The schema of a sweep, whose methods are steps of recipes.

    Args:
        parsers: of the commands, by name.
    """
    from exporter.sweeps.sheet import METHOD, NAME, TOP

    timed = _options(parsers, "compare")
    timed["properties"]["tag"] = {"type": "string"}
    own = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string"}}}
    method = {"steps": _STEPS, "tag": {"type": "string"}}
    properties = {
        "models": {
            "oneOf": [
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
                _by_name(NAME, {"oneOf": [{"type": "string"}, own]}, 1),
            ]
        },
        "folder": {"type": "string"},
        "budgets": {"type": "array", "minItems": 1, "items": _SCALAR, "uniqueItems": True},
        "methods": _by_name(
            NAME,
            {
                "oneOf": [
                    _STEPS,
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["steps"],
                        "properties": {key: method[key] for key in METHOD},
                    },
                ]
            },
            1,
        ),
        "devices": _by_name(NAME, timed, 0),
        "eval": _options(parsers, "eval"),
    }
    return {
        "$schema": _DIALECT,
        "title": "Secateur sweep",
        "type": "object",
        "additionalProperties": False,
        "required": ["models", "methods", "eval"],
        "properties": {name: properties[name] for name in TOP},
        "$defs": {"step": _step(parsers)},
    }


_SCALAR = {"type": ["string", "number"]}
_STEPS = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}}


def _by_name(name: str, value: Any, least: int) -> dict[str, Any]:
    """A mapping whose keys are names."""
    return {
        "type": "object",
        "minProperties": least,
        "additionalProperties": False,
        "patternProperties": {f"^{name}$": value},
    }


def _options(parsers: Mapping[str, argparse.ArgumentParser], command: str) -> dict[str, Any]:
    """Options of a command."""
    from exporter.recipes.keys import keys_of

    several = {"oneOf": [_SCALAR, {"type": "array", "items": _SCALAR}]}
    kinds: dict[str, Any] = {"flag": {"type": "boolean"}, "list": several, "value": _SCALAR}
    found = keys_of(parsers[command])
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {name: kinds[key.kind] for name, key in found.items()},
    }


def _step(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, Any]:
    """A step: a command with its options, or a repetition."""
    from exporter.recipes.schedules import SCHEDULES
    from exporter.recipes.steps import ALIASES, MOST_ROUNDS, NO_STEPS

    names = {name: name for name in parsers if name not in NO_STEPS}
    names |= {alias: command for alias, command in ALIASES.items() if command in parsers}
    steps = {name: _options(parsers, command) for name, command in names.items()}
    steps["repeat"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["rounds", "steps"],
        "properties": {
            "rounds": {"type": "integer", "minimum": 1, "maximum": MOST_ROUNDS},
            "schedule": {"enum": list(SCHEDULES)},
            "steps": _STEPS,
        },
    }
    return {
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
