"""``secateur probe``: the staircase of this machine, time against width."""

from __future__ import annotations

import argparse
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "probe",
        run,
        "Measure how long convolutions and matrix products take against their width on this machine, and keep it.",
    )
    parser.add_argument("--backend", default="ort-cpu", metavar="NAME", help="ort-cpu (default)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads inside one operator (1)")
    parser.add_argument("--fresh", action="store_true", help="measure again what was kept")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.latency import report, report_json
    from runtime.staircase import staircase

    found = staircase(options.backend, options.threads, fresh=options.fresh, progress=Progress(options))
    return deliver(options, lambda: report_json.staircase_json(found), lambda: report.staircase_text(found))
