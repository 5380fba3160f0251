"""``secateur verify``: prove a pruned model equal to its masked original, or check a sparsity pattern."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, command
from runtime.nouns import out_of

if TYPE_CHECKING:
    from exporter import Plan
    from exporter.graph import Graph


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "verify",
        run,
        "Prove a pruned model equal to its original with the plan's units masked (ORIGINAL PRUNED --plan), or check "
        "that a model has a sparsity pattern (MODEL --pattern).",
        _check,
    )
    parser.add_argument("original", metavar="ORIGINAL", type=Path, help="the model before pruning; or the one to check")
    parser.add_argument("pruned", metavar="PRUNED", type=Path, nargs="?", help="the model after pruning")
    parser.add_argument(
        "--plan",
        metavar="P.json",
        type=Path,
        action="append",
        default=[],
        help="what was removed; repeat it for a model pruned several times, in order",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="accepted difference relative to the signal (1e-3)"
    )
    parser.add_argument("--inputs", metavar="FILE.npz", type=Path, help="recorded inputs, by input name")
    sparse = parser.add_argument_group("sparsity")
    sparse.add_argument(
        "--pattern",
        metavar="N:M",
        help="check that every layer that can have this pattern has it, as it reads its weight",
    )
    sparse.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="leave out layers with a matching node or constant"
    )
    sparse.add_argument("--only", action="append", default=[], metavar="GLOB", help="check only matching ones")
    sparse.add_argument("--allow-dense", action="store_true", help="layers that were never made sparse do not fail")
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    """Refuse what goes with the other use."""
    from exporter.errors import UsageError
    from exporter.sparsity.patterns import parse_pattern

    if options.pattern:
        wrong = [
            n for n, v in (("PRUNED", options.pruned), ("--plan", options.plan), ("--inputs", options.inputs)) if v
        ]
        if wrong or options.tolerance is not None:
            raise UsageError(
                f"--pattern checks one model by itself; leave out {(wrong or ['--tolerance'])[0]}, or run verify twice."
            )
        if not parse_pattern(options.pattern).grouped:
            raise UsageError(f"--pattern {options.pattern}: verify checks N:M, such as 2:4.")
        return
    if options.keep or options.only or options.allow_dense:
        raise UsageError("--keep, --only and --allow-dense go with --pattern N:M.")
    if options.pruned is None or not options.plan:
        raise UsageError(
            "give ORIGINAL PRUNED --plan P.json to prove a pruned model, or MODEL --pattern 2:4 to check a sparse one."
        )


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    return _pattern(options) if options.pattern else _proof(options)


def _proof(options: argparse.Namespace) -> int:
    from exporter import GoalError, Plan, compose, load, report, report_json, verify
    from exporter.interface import pruned_shapes
    from exporter.normalise import input_specs
    from exporter.pruner import load_for
    from exporter.refitted import changed_weights
    from exporter.tables import shapes_text
    from runtime.errors import BadRequest
    from runtime.recorded import read_recorded

    plans = [Plan.load(p) for p in options.plan]
    plan = reduce(compose, plans)
    graph = load_for(plan, options.original)
    shapes = dict(plan.model.shapes)
    try:
        pruned = load(options.pruned, pruned_shapes(plan, shapes))
    except BadRequest as error:
        wanted = shapes_text(pruned_shapes(plan, shapes))
        raise GoalError(f"{options.pruned} does not take the inputs of the original ({wanted}).") from error
    _check_sizes(options, graph, pruned)
    inputs = read_recorded(options.inputs, input_specs(graph.model)) if options.inputs else ()
    progress = Progress(options)
    try:
        proof = verify(pruned, graph, plan, tolerance=options.tolerance, inputs=inputs, progress=progress)
    except GoalError as error:
        progress("carrying out the plan again, to see whether the weights were changed after the cut")
        changed = changed_weights(pruned, graph, plan)
        if not changed:
            raise
        raise GoalError(_fitted_text(options, plans, changed, len(pruned.constants), str(error))) from error
    lines = [*(f"note: {warning}" for warning in proof.warnings), f"{options.pruned}: {report.proof_text(proof)}"]
    document = {"version": report_json.JSON_VERSION, "proof": report_json.proof_json(proof)}
    return deliver(options, lambda: document, lambda: "\n".join(lines))


def _check_sizes(options: argparse.Namespace, graph: Graph, pruned: Graph) -> None:
    """Refuse a model whose inputs have sizes fixed that the original leaves open."""
    from exporter import GoalError
    from exporter.normalise import input_specs
    from runtime.feeds import show

    own = {spec.name: spec for spec in input_specs(pruned.model)}
    for spec in input_specs(graph.model):
        other = own.get(spec.name)
        if other is None or len(other.shape) != len(spec.shape):
            continue
        if any(isinstance(o, int) and not isinstance(d, int) for o, d in zip(other.shape, spec.shape, strict=True)):
            raise GoalError(
                f"{options.pruned} takes {show(other)}, {options.original} takes {show(spec)}: sizes were fixed before "
                "or after the cut. Verify a model against the very file it was cut from."
            )


def _fitted_text(
    options: argparse.Namespace, plans: Sequence[Plan], changed: Sequence[str], among: int, found: str
) -> str:
    """Why a model whose weights were changed after the cut is not proved, and what to do instead."""
    original, pruned = quote(str(options.original)), quote(str(options.pruned))
    data = [str(p.options["calib"]) for p in plans if p.options.get("calib")]
    why = (
        f"The plan was made with --calib {data[-1]}, which fits the layers that stay, after the proof; so it is no "
        "defect that the model differs from its masked original."
        if data
        else "'prune --calib', 'tune' and 'sparsify' change weights after the proof; if none of them did, the model "
        "was cut by another plan that keeps as many units, or edited."
    )
    cut = "cut.onnx"
    replay, source = [], original
    for path in options.plan:
        replay.append(f"secateur prune {source} -o {cut} --plan {quote(str(path))}")
        source = cut
    flags = " ".join(f"--plan {quote(str(path))}" for path in options.plan)
    return "\n".join(
        [
            found.splitlines()[0],
            f"{options.pruned} is not proved: its nodes and shapes are what the plan leaves of {options.original}, but "
            f"{out_of(len(changed), among, 'constant', 'holds', 'hold')} other values ('{changed[0]}' first).",
            why,
            "What such a model is worth, on inputs that nothing was fitted to, and how fast it is, say:",
            f"  secateur eval {pruned} --data DATA --metric agreement --reference {original}",
            f"  secateur compare {original} {pruned}",
            "To prove the cut, carry the plan out without fitting, and verify that:",
            *(f"  {line}" for line in replay),
            f"  secateur verify {original} {cut} {flags}",
        ]
    )


def _pattern(options: argparse.Namespace) -> int:
    from exporter.sparsity import report
    from exporter.sparsity.check import check_file
    from exporter.sparsity.patterns import parse_pattern

    pattern = parse_pattern(options.pattern)
    rows = check_file(options.original, pattern, only=options.only, keep=options.keep)
    wrong = report.failures(rows, pattern, options.allow_dense)
    holds = any(r.runs and not r.broken for r in rows)
    return deliver(
        options,
        lambda: report.verify_json(options.original, pattern, rows, options.allow_dense),
        lambda: report.verify_text(options.original, pattern, rows, options.allow_dense),
        1 if wrong or not holds else 0,
    )
