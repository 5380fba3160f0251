"""``secateur inspect``: what can be removed, and why the rest cannot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_io, add_json, add_shape, command

if TYPE_CHECKING:
    from exporter import Graph


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "inspect", run, "List what can be removed from a model, and why the rest cannot.", _check
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument(
        "--sparsity",
        action="store_true",
        help="list the weights of layers instead: zeros, which have a pattern, and why others cannot",
    )
    parser.add_argument("--pattern", metavar="N:M", help="the pattern --sparsity looks for (2:4)")
    add_io(parser)
    add_shape(parser)
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    """Refuse what would be ignored."""
    from exporter.errors import UsageError
    from exporter.sparsity.patterns import parse_pattern

    if options.pattern and not options.sparsity:
        raise UsageError("--pattern goes with --sparsity.")
    if options.io and options.sparsity:
        raise UsageError("--io says what may be removed; leave it out with --sparsity.")
    if options.pattern and not parse_pattern(options.pattern).grouped:
        raise UsageError(f"--pattern {options.pattern}: inspect looks for N:M, such as 2:4.")


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter import find_groups, load, report, report_json
    from exporter.pruner import totals
    from runtime.feeds import parse_shapes

    progress = Progress(options)
    progress("reading the model")
    graph = load(options.model, parse_shapes(options.shape))
    if options.sparsity:
        return _sparsity(options, graph)
    progress("analysing")
    groups = find_groups(graph, options.io)
    before = totals(graph, groups)
    return deliver(
        options,
        lambda: report_json.inspect_json(graph, groups, before),
        lambda: report.inspect_text(graph, groups, before),
    )


def _sparsity(options: argparse.Namespace, graph: Graph) -> int:
    """List the weights of layers."""
    from exporter.sparsity import report
    from exporter.sparsity.patterns import parse_pattern

    pattern = parse_pattern(options.pattern or "2:4")
    rows = report.inspect_sparsity(graph, pattern)
    return deliver(
        options, lambda: report.inspect_json(graph, pattern, rows), lambda: report.inspect_text(graph, pattern, rows)
    )
