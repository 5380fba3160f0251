"""``secateur verify``: prove a pruned model equal to its masked original."""

from __future__ import annotations

import argparse
from functools import reduce
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, write_json
from exporter.commands.options import add_json, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "verify", run, "Prove a pruned model equal to its original with the plan's units masked."
    )
    parser.add_argument("original", metavar="ORIGINAL", type=Path, help="the model before pruning")
    parser.add_argument("pruned", metavar="PRUNED", type=Path, help="the model after pruning")
    parser.add_argument(
        "--plan",
        metavar="P.json",
        type=Path,
        action="append",
        required=True,
        help="what was removed; repeat it for a model pruned several times, in order",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="accepted difference relative to the signal (1e-3)"
    )
    parser.add_argument("--inputs", metavar="FILE.npz", type=Path, help="recorded inputs, by input name")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter import GoalError, Plan, compose, load, report, report_json, verify
    from exporter.interface import pruned_shapes
    from exporter.normalise import input_specs
    from exporter.pruner import load_for
    from exporter.tables import shapes_text
    from runtime.errors import BadRequest
    from runtime.feeds import recorded

    plan = reduce(compose, [Plan.load(p) for p in options.plan])
    graph = load_for(plan, options.original)
    shapes = dict(plan.model.shapes)
    try:
        pruned = load(options.pruned, pruned_shapes(plan, shapes))
    except BadRequest as error:
        wanted = shapes_text(pruned_shapes(plan, shapes))
        raise GoalError(f"{options.pruned} does not take the inputs of the original ({wanted}).") from error
    inputs = recorded(options.inputs, input_specs(graph.model)) if options.inputs else ()
    proof = verify(pruned, graph, plan, tolerance=options.tolerance, inputs=inputs, progress=Progress(options.quiet))
    if options.json:
        write_json(options.json, {"version": report_json.JSON_VERSION, "proof": report_json.proof_json(proof)})
    if options.json != "-":
        for warning in proof.warnings:
            print(f"note: {warning}")
        print(f"{options.pruned}: {report.proof_text(proof)}")
    return 0
