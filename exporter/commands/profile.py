"""``secateur profile``: time per node, and what holds each back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, say, write_json
from exporter.commands.options import add_json, command
from exporter.commands.reporting import add_report, write_report
from exporter.commands.running import add_running, asked_of, check_running


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "profile", run, "Show where a model's time goes, node by node of the file.", _check)
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    add_running(parser, seconds=3.0, threads=1)
    parser.add_argument("--batch", type=int, metavar="N", help="size of the batch axis")
    parser.add_argument("--top", type=int, default=15, metavar="N", help="show the N kernels that take longest (15)")
    parser.add_argument(
        "--trace", metavar="FILE|-", help="write one run for Chrome's trace viewer (chrome://tracing, ui.perfetto.dev)"
    )
    add_json(parser)
    add_report(parser)


def _check(options: argparse.Namespace) -> None:
    from exporter.errors import UsageError
    from runtime.engine.flavour import PACKAGES as ENGINES
    from runtime.profiling import check_profiled

    engine = options.backend in ENGINES
    if not engine:
        check_profiled(options.backend)
    check_running(options)
    if options.report and engine:
        raise UsageError("--report is for ONNX Runtime; TensorRT gives a time for each layer, see --json.")


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.latency import report, report_json
    from runtime.engine.flavour import PACKAGES as ENGINES
    from runtime.profiling import profile
    from runtime.roofline import peaks

    progress = Progress(options)
    if options.backend in ENGINES:
        return _engine(options)
    found = profile(options.model, asked_of(options, options.batch), seconds=options.seconds, progress=progress)
    progress("measuring what this machine does at its best")
    machine = peaks(options.backend, options.threads)
    if options.json:
        write_json(options.json, report_json.profile_json(found, machine))
    if options.trace:
        write_json(options.trace, report_json.trace_json(found))
    if options.report:
        from exporter.page.measured import profile_page

        page = profile_page(report_json.profile_json(found, machine), report.bottleneck_text(found, machine))
        write_report(options, page)
    if "-" not in (options.json, options.trace):
        say(report.profile_text(found, machine, max(options.top, 1)))
    return 0


def _engine(options: argparse.Namespace) -> int:
    """Layers of an engine, by TensorRT's own profiler."""
    from exporter.engines.report import layers_json, layers_text
    from runtime.engine.timing import layer_events, time_layers

    layers, seconds = time_layers(options.model, asked_of(options, options.batch), seconds=options.seconds)
    if options.json:
        write_json(options.json, layers_json(layers, seconds))
    if options.trace:
        write_json(options.trace, {"traceEvents": layer_events(layers), "displayTimeUnit": "ns"})
    if "-" not in (options.json, options.trace):
        say(layers_text(layers, seconds, max(options.top, 1)))
    return 0
