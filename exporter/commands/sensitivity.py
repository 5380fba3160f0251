"""``secateur sensitivity``: what cutting each group alone would do to the outputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_cache, add_io, add_json, add_preprocess, add_shape, command, kinds_of


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "sensitivity", run, "Predict what cutting each group alone would do to the outputs.", _check
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument(
        "--calib",
        metavar="DATA",
        required=True,
        help="inputs, without labels: as for secateur prune, or synthetic for made-up ones",
    )
    add_preprocess(parser)
    parser.add_argument("--calib-samples", type=int, default=512, metavar="N", help="use at most N of them (512)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the subset, and of synthetic inputs")
    add_cache(parser)
    parser.add_argument(
        "--at",
        default="90,75,50,25",
        metavar="P,...",
        help="per cent of the units kept that the damage is shown at (90,75,50,25)",
    )
    parser.add_argument("--granularity", metavar="KINDS", help="kinds of groups, as for secateur prune")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="leave out what touches a matching node or tensor"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="only what touches a matching node or tensor"
    )
    add_io(parser)
    parser.add_argument("--plot", metavar="FILE.svg", type=Path, help="draw damage over the share of units kept")
    add_shape(parser)
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    from exporter.planner import check_kinds

    _shares(options.at)
    check_kinds(kinds_of(options) or ())


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter import find_groups, load, report_sensitivity
    from exporter.atomic import write_text
    from exporter.calibration.cache import Cache
    from exporter.calibration.damages import damages
    from exporter.calibration.data import calibration_of
    from exporter.charts import damage_chart
    from runtime.cache import cache_folder
    from runtime.feeds import parse_shapes
    from runtime.images import parse_preprocess

    shares = _shares(options.at)
    progress = Progress(options)
    progress("reading and analysing the model")
    graph = load(options.model, parse_shapes(options.shape))
    groups = find_groups(graph, options.io)
    preprocess = parse_preprocess(options.preprocess) if options.preprocess else None
    calibration = calibration_of(
        options.calib, graph, preprocess=preprocess, limit=options.calib_samples, seed=options.seed
    )
    cache = Cache(None if options.no_cache else cache_folder())
    rows = damages(
        groups,
        calibration,
        shares=shares,
        granularity=kinds_of(options),
        keep=options.keep,
        only=options.only,
        cache=cache,
        step=progress,
    )
    notes = [*calibration.fit.notes, *cache.notes]
    if options.plot:
        write_text(options.plot, damage_chart(rows, f"{options.model.name}: damage of cutting each group alone"))
    wrote = f"\nwrote {options.plot}" if options.plot else ""
    return deliver(
        options,
        lambda: report_sensitivity.sensitivity_json(options.model, rows, shares, calibration, bool(cache.hits), notes),
        lambda: report_sensitivity.sensitivity_text(rows, shares, calibration, notes) + wrote,
    )


def _shares(text: str) -> list[float]:
    from exporter.errors import UsageError

    try:
        return [float(part.strip().removesuffix("%")) / 100 for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--at {text}: give per cents of the units kept, separated by commas: 90,75,50,25.") from None
