"""``secateur bench``: latency of models, in turn in one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, say, write_json, write_to
from exporter.commands.options import add_json, command
from exporter.commands.running import add_running, asked_of, check_running, numbers, share


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "bench", run, "Measure the latency of models, in turn in one run.", _check)
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="+", help="the ONNX files")
    add_running(parser, seconds=5.0)
    parser.add_argument(
        "--precision",
        type=share,
        default=0.01,
        metavar="P",
        help="stop earlier, as soon as every median is known to within this share (1%%); 0 takes all of the time",
    )
    parser.add_argument(
        "--batch", type=numbers, metavar="1,8,32", help="sizes of the batch axis to measure, one after another"
    )
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="also run N at a time, as a server does")
    parser.add_argument("--no-cold", action="store_true", help="no fresh process for cold start and peak memory")
    parser.add_argument("--csv", metavar="FILE|-", help="write a line for each sample to a file, or to stdout for '-'")
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    from runtime.latency import check_sampling

    check_running(options)
    check_sampling(options.precision or None, options.streams)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.latency import report, report_json
    from runtime.latency import bench, compare

    asked = asked_of(options)
    results, ratios = [], []
    for batch in options.batch or [None]:
        measured = bench(
            options.models,
            options.backend,
            threads=options.threads,
            seconds=options.seconds,
            precision=options.precision or None,
            shapes=asked.shapes,
            batch=batch,
            inputs=options.inputs,
            seed=options.seed,
            streams=options.streams,
            cold=not options.no_cold,
            options=asked.options,
            progress=Progress(options),
        )
        results += measured
        ratios += [None, *(compare(measured[0], other) for other in measured[1:])]
    if options.json:
        write_json(options.json, report_json.bench_json(results, [r for r in ratios if r is not None]))
    if options.csv:
        write_to(options.csv, report_json.bench_csv(results), "the CSV table")
    if "-" not in (options.json, options.csv):
        say(report.bench_text(results, ratios))
    return 0
