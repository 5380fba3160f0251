"""``secateur backends``: what this machine can run models with."""

from __future__ import annotations

import argparse
from typing import Any

from exporter.commands.console import deliver
from exporter.commands.options import add_json, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "backends", run, "List what this machine can run models with, and how to add the rest.")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.latency import report, report_json
    from runtime.backends import available

    found = available()
    return deliver(options, lambda: report_json.backends_json(found), lambda: report.backends_text(found))
