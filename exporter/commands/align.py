"""``secateur align``: pad widths the device dislikes, losslessly."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, command
from exporter.commands.running import add_running, asked_of, check_running


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "align",
        run,
        "Pad widths the device dislikes with zeros; keep the result only if it is faster.",
        partial(check_running, recorded_alone=False),
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file, from whatever source")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the file to write")
    add_running(parser, seconds=10.0, threads=1)
    parser.add_argument(
        "--to", type=int, metavar="N", help="pad to multiples of N (what the device likes; see: secateur probe)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.aligning import align_file
    from exporter.latency import report, report_json

    found = align_file(
        options.model,
        options.output,
        asked_of(options),
        to=options.to,
        seconds=options.seconds,
        progress=Progress(options),
    )
    return deliver(options, lambda: report_json.aligned_json(found), lambda: report.aligned_text(found))
