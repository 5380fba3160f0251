"""``secateur schema``: the JSON Schema of a file that Secateur reads or writes."""

from __future__ import annotations

import argparse
import json
from typing import Any

from exporter.commands.console import say
from exporter.commands.options import command


def add(commands: Any) -> None:
    """Add the command."""
    from exporter.schema_files import NAMES

    parser = command(
        commands, "schema", run, "Print the JSON Schema of a plan, a recipe, a sweep, or a command's --json."
    )
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of {', '.join(NAMES)}")


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.schema_files import recipe_schema, stored_schema, sweep_schema

    made = {"recipe": recipe_schema, "sweep": sweep_schema}.get(options.name)
    if made is not None:
        parsers = next(a for a in options.top._actions if isinstance(a, argparse._SubParsersAction)).choices
        document = made(parsers)
    else:
        document = stored_schema(options.name)
    say(json.dumps(document, indent=1, ensure_ascii=False))
    return 0
