"""``secateur lint``: what makes a model slow, and what to do about it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, command
from exporter.commands.running import add_running, asked_of, check_running


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "lint", run, "Explain what makes a model slow on this machine.", _check)
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    add_running(parser, seconds=3.0, threads=1)
    parser.add_argument("--batch", type=int, metavar="N", help="size of the batch axis")
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    from runtime.profiling import check_profiled

    check_profiled(options.backend)
    check_running(options)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.latency import report, report_json
    from runtime.lint import lint
    from runtime.profiling import profile
    from runtime.roofline import peaks
    from runtime.staircase import staircase, usual_threads

    progress = Progress(options)
    found = profile(options.model, asked_of(options, options.batch), seconds=options.seconds, progress=progress)
    progress("measuring what this machine does at its best")
    machine = peaks(options.backend, options.threads)
    stairs = staircase(options.backend, usual_threads(options.backend, options.threads), progress=progress)
    findings = lint(options.model, found, machine, stairs)
    return deliver(
        options,
        lambda: report_json.lint_json(str(options.model), findings),
        lambda: report.lint_text(str(options.model), findings),
    )
