"""``secateur compare``: which of two models is faster, and how sure that is."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, command
from exporter.commands.reporting import add_report, write_report
from exporter.commands.running import add_running, asked_of, check_running, share

if TYPE_CHECKING:
    from runtime.comparison import Goal
    from runtime.runners import Asked

_FAILED, _INCONCLUSIVE = 1, 5


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "compare", run, "Compare two models: paired latency with an interval, outputs, and layers.", _check
    )
    parser.add_argument("first", metavar="A", type=Path, help="the ONNX file to compare with")
    parser.add_argument(
        "other", metavar="B", type=Path, nargs="?", help="the ONNX file or engine that is judged (default: A again)"
    )
    add_running(parser, seconds=10.0)
    parser.add_argument(
        "--against", "--backend-b", dest="backend_b", metavar="NAME", help="backend of B, if another than that of A"
    )
    parser.add_argument("--threads-b", type=int, metavar="N", help="threads of B, if another number")
    parser.add_argument(
        "--clock",
        default="auto",
        metavar="NAME",
        help="what decides: wall, cpu (of one thread), device; auto (default): cpu with --threads 1 on the CPU, else "
        "wall",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="size of the batch axis")
    parser.add_argument("--no-outputs", action="store_true", help="do not compare what comes out")
    parser.add_argument(
        "--layers", type=int, default=0, metavar="N", help="profile both and show the N layers that differ most"
    )
    goal = parser.add_argument_group("goals, for CI: exit code 1 where missed, 5 where the interval leaves it open")
    goal.add_argument("--fail-if-slower", type=share, metavar="P", help="B may take at most so much longer (2%%)")
    goal.add_argument("--min-speedup", type=float, metavar="X", help="B has to be X times as fast (1.3)")
    add_json(parser)
    add_report(parser)


def _check(options: argparse.Namespace) -> None:
    from exporter.errors import UsageError
    from runtime.backends import check_backend
    from runtime.comparison import check_clock, check_goal

    if options.other is None and options.backend_b is None and options.threads_b is None:
        raise UsageError("name a second model B, or another backend for A with --against NAME.")
    check_running(options)
    if options.backend_b is not None:
        check_backend(options.backend_b)
    check_clock(options.clock)
    check_goal(_goal(options))


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.latency import report, report_json
    from runtime.comparison import compare_models

    asked = asked_of(options, options.batch)
    threads = asked.options.threads if options.threads_b is None else options.threads_b
    other = replace(asked, backend=options.backend_b or asked.backend, options=replace(asked.options, threads=threads))
    found = compare_models(
        options.first,
        options.other or options.first,
        asked,
        other,
        seconds=options.seconds,
        clock=options.clock,
        goal=_goal(options),
        outputs=not options.no_outputs,
        layers=options.layers > 0 or (options.report is not None and _timed_by_layer(asked, other)),
        progress=Progress(options),
    )
    if options.report:
        from exporter.page.measured import compare_page

        write_report(options, compare_page(report_json.comparison_json(found), report.verdict_text(found)))
    code = 0 if found.goal.most is None or found.met else _INCONCLUSIVE if found.met is None else _FAILED
    return deliver(
        options,
        lambda: report_json.comparison_json(found),
        lambda: report.comparison_text(found, options.layers),
        code,
    )


def _goal(options: argparse.Namespace) -> Goal:
    from runtime.comparison import Goal

    return Goal(options.fail_if_slower, options.min_speedup)


def _timed_by_layer(*asked: Asked) -> bool:
    """Whether ONNX Runtime runs both: it tells what each layer takes."""
    return all(a.backend.startswith("ort-") for a in asked)
