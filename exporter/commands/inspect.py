"""``secateur inspect``: what can be removed, and why the rest cannot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, write_json
from exporter.commands.options import add_io, add_json, add_shape, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "inspect", run, "List what can be removed from a model, and why the rest cannot.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    add_io(parser)
    add_shape(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter import find_groups, load, report, report_json
    from exporter.pruner import totals
    from runtime.feeds import parse_shapes

    progress = Progress(options.quiet)
    progress("reading the model")
    graph = load(options.model, parse_shapes(options.shape))
    progress("analysing")
    groups = find_groups(graph, options.io)
    before = totals(graph, groups)
    if options.json:
        write_json(options.json, report_json.inspect_json(graph, groups, before))
    if options.json != "-":
        print(report.inspect_text(graph, groups, before))
    return 0
