"""``--report``: what a command found, as one HTML file."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import write_to

if TYPE_CHECKING:
    from exporter.graph import Graph
    from exporter.page.document import Page
    from exporter.pruner import Result


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the HTML report."""
    parser.add_argument(
        "--report", metavar="FILE.html", type=Path, help="write what was found as one HTML file that needs no network"
    )


def write_report(options: argparse.Namespace, page: Page) -> None:
    """Write it.

    Raises:
        UsageError: the file cannot be written.
    """
    import time

    from exporter import __version__
    from exporter.page.document import Origin, render
    from runtime.environment import environment

    typed = shlex.join(["secateur", *getattr(options, "typed", ())])
    origin = Origin(typed, str(Path.cwd()), time.strftime("%Y-%m-%d %H:%M:%S %Z"), __version__, environment())
    write_to(str(options.report), render(page, origin), "the report")


def grounds_of(result: Result) -> dict[str, dict[str, Any]]:
    """Why each group was cut as it was.

    Returns:
        By group ``why`` in words, and where they are known the share of its scores that stays (``score``) and the
        predicted damage of its cut alone (``damage``).
    """
    grounds = result.grounds
    if grounds is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for planned in result.plan.groups:
        row: dict[str, Any] = {"why": _why(len(planned.keep), planned.width, planned.name in grounds.considered)}
        scores = grounds.scores.get(planned.name)
        if scores is not None and len(scores) == planned.width and planned.name in grounds.considered:
            total = float(scores.sum())
            if total > 0 and float(scores.min()) >= 0:
                row["score"] = float(scores[list(planned.keep)].sum()) / total
        damage = grounds.damage.get(planned.name)
        if damage is not None and len(planned.keep) < planned.width:
            row["damage"] = float(damage[len(planned.keep) - 1])
        found[planned.name] = row
    return found


def _why(kept: int, width: int, considered: bool) -> str:
    if not considered:
        return "not chosen from: protected, of another kind, or the other factor of an axis that is cut"
    return "its least important units went" if kept < width else "whole: the budget, or alignment, left it so"


def sparse_rows(graph: Graph) -> list[dict[str, Any]]:
    """Which weights of a graph could have 2:4, as the report takes them."""
    from exporter.sparsity.choice import choose_weights
    from exporter.sparsity.layers import benefit
    from exporter.sparsity.patterns import Pattern

    taken, left = choose_weights(graph, Pattern(2, 4, 0.5))
    rows = [(weight, "") for weight in taken] + [(out.weight, out.reason) for out in left]
    rows.sort(key=lambda row: row[0].uses[0].node.index)
    return [
        {
            "weight": weight.name,
            "op": weight.uses[0].node.op.rpartition(":")[2],
            "shape": list(weight.dims),
            "size": weight.size,
            "reason": reason,
            "gain": benefit(weight),
        }
        for weight, reason in rows
    ]


def prune_report(
    options: argparse.Namespace, result: Result, document: Mapping[str, Any], layers: Mapping[str, Any] | None = None
) -> None:
    """Write the report of ``prune``.

    Args:
        options: of the command.
        result: what was done.
        document: its JSON.
        layers: ``layers`` and ``savings`` of both models, where they were profiled.
    """
    from exporter import report
    from exporter.model_file import load
    from exporter.page.prune import Findings, prune_page

    graph = result.groups.graph if result.output is None else load(result.output)
    output = str(options.output or "OUT.onnx")
    replay = ["secateur", "prune", str(options.model), "-o", output, "--plan", "plan.json"]
    more = Findings(
        result.plan.to_json(), shlex.join(replay), grounds_of(result), sparse_rows(graph), **dict(layers or {})
    )
    write_report(options, prune_page(document, report.verdict(result), more))
