"""``secateur bench``: latency of models, in turn in one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, write_json
from exporter.commands.options import add_json, add_shape, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "bench", run, "Measure the latency of models, in turn in one run.")
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="+", help="the ONNX files")
    parser.add_argument("--backend", default="ort-cpu", metavar="NAME", help="ort-cpu (default)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads inside one operator (0: default)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time to sample each model (3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs")
    add_shape(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter import report, report_json
    from runtime.feeds import parse_shapes
    from runtime.latency import bench, compare

    results = bench(
        options.models,
        options.backend,
        threads=options.threads,
        seconds=options.seconds,
        shapes=parse_shapes(options.shape),
        seed=options.seed,
        progress=Progress(options.quiet),
    )
    ratios = [compare(results[0], other) for other in results[1:]]
    if options.json:
        write_json(options.json, report_json.bench_json(results, ratios))
    if options.json != "-":
        print(report.bench_text(results, ratios))
    return 0
