"""``secateur advise``: what suits a model on a device, what does not, why, and the command to try next."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, add_shape, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "advise", run, "Say what suits a model on a device and what does not, and why.", _check)
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument(
        "--device", default="ort-cpu", metavar="BACKEND", help="ort-cpu (default); see secateur backends"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads inside one operator (1)")
    parser.add_argument("--calib", metavar="DATA", help="unlabelled inputs, as for secateur prune: what each cut costs")
    parser.add_argument("--no-measure", action="store_true", help="judge by the file alone")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="most time for runs (3)")
    add_shape(parser)
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    from runtime.backends import SessionOptions, check_backend
    from runtime.latency import check_seconds

    check_backend(options.device)
    SessionOptions(threads=options.threads)
    check_seconds(options.seconds)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.advice.facts import gather
    from exporter.advice.report import advice_json, advice_text
    from exporter.advice.rules import advise
    from runtime.feeds import parse_shapes

    facts = gather(
        options.model,
        device=options.device,
        threads=options.threads,
        calib=options.calib,
        measure=not options.no_measure,
        seconds=options.seconds,
        shapes=parse_shapes(options.shape),
        given=options.shape,
        progress=Progress(options),
    )
    found = advise(facts)
    return deliver(options, lambda: advice_json(facts, found), lambda: advice_text(facts, found))
