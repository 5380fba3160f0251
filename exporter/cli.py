"""The command line: parse, call, print. The only place that prints or exits.

Everything heavy is imported inside the commands, so that ``secateur --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.arguments import parser_for

if TYPE_CHECKING:
    from runtime.latency import Latency, Ratio

_INTERRUPTED = 130
_QUIET_SECONDS = 1.0


class _Progress:
    """Lines on stderr for whatever takes more than a second."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.started = time.perf_counter()

    def __call__(self, line: str) -> None:
        elapsed = time.perf_counter() - self.started
        if not self.quiet and elapsed > _QUIET_SECONDS:
            print(f"[{elapsed:5.1f} s] {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    functions = {
        "inspect": _inspect,
        "prune": _prune,
        "verify": _verify,
        "bench": _bench,
        "eval": _eval,
        "convert": _convert,
    }
    options = parser_for(functions).parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except BrokenPipeError:  # the reader of our output went away; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("secateur: interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"secateur: {error}", file=sys.stderr)
        return int(code)


def _inspect(options: argparse.Namespace) -> int:
    from exporter import find_groups, load, report, report_json
    from exporter.pruner import totals
    from runtime.feeds import parse_shapes

    progress = _Progress(options.quiet)
    progress("reading the model")
    graph = load(options.model, parse_shapes(options.shape))
    progress("analysing")
    groups = find_groups(graph, options.io)
    before = totals(graph, groups)
    if options.json:
        _write_json(options.json, report_json.inspect_json(graph, groups, before))
    if options.json != "-":
        print(report.inspect_text(graph, groups, before))
    return 0


def _prune(options: argparse.Namespace) -> int:
    from exporter import Plan, prune, report, report_json
    from runtime.feeds import parse_shapes
    from runtime.images import parse_preprocess

    _check_prune(options)
    result = prune(
        options.model,
        options.output,
        ratio=options.ratio,
        macs=options.macs,
        params=options.params,
        layers=options.layers,
        score=options.score,
        layer_score=options.layer_score,
        consumers=options.include_consumers,
        scope=options.scope,
        align=_align(options.align),
        min_width=options.min_width,
        granularity=[k.strip() for k in options.granularity.split(",")] if options.granularity else None,
        keep=options.keep,
        only=options.only,
        io=options.io,
        plan=Plan.load(options.plan) if options.plan else None,
        calib=options.calib,
        preprocess=parse_preprocess(options.preprocess) if options.preprocess else None,
        calib_samples=options.calib_samples,
        compensate=not options.no_compensate,
        dry_run=options.dry_run,
        prove=not options.no_verify,
        shapes=parse_shapes(options.shape),
        inputs=options.inputs,
        seed=options.seed,
        progress=_Progress(options.quiet),
    )
    if options.save_plan:
        result.plan.save(options.save_plan)
    latency = _measure(options, dict(result.plan.model.shapes)) if options.measure and result.output else None
    if options.json:
        _write_json(options.json, report_json.prune_json(result, latency))
    if options.json != "-":
        print(report.prune_text(result, latency))
    return 0


def _check_prune(options: argparse.Namespace) -> None:
    """Refuse what would be ignored, or would fail only after the work."""
    from exporter.atomic import obstacle
    from exporter.choice import Request
    from exporter.errors import UsageError

    if options.plan:
        for field in fields(Request):
            name = "include_consumers" if field.name == "consumers" else field.name
            given = getattr(options, name)
            if (tuple(given) if isinstance(given, list) else given) != field.default:
                raise UsageError(f"--plan already says what to keep; leave out --{name.replace('_', '-')}.")
    if options.measure and options.dry_run:
        raise UsageError("--measure needs a result to time; leave out --dry-run.")
    for path in (options.save_plan, options.json):
        why = obstacle(Path(path)) if path not in (None, "-") else ""
        if why:
            raise UsageError(f"{path} cannot be written: {why}.")


def _align(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _measure(options: argparse.Namespace, shapes: dict[str, tuple[int, ...]]) -> tuple[Latency, Latency, Ratio]:
    from runtime.latency import bench, compare

    dense, pruned = bench([options.model, options.output], shapes=shapes, progress=_Progress(options.quiet))
    return dense, pruned, compare(dense, pruned)


def _verify(options: argparse.Namespace) -> int:
    from exporter import GoalError, Plan, compose, load, report, report_json, verify
    from exporter.interface import pruned_shapes
    from exporter.normalise import input_specs
    from exporter.pruner import load_for
    from runtime.errors import BadRequest
    from runtime.feeds import recorded

    plan = reduce(compose, [Plan.load(p) for p in options.plan])
    graph = load_for(plan, options.original)
    shapes = dict(plan.model.shapes)
    try:
        pruned = load(options.pruned, pruned_shapes(plan, shapes))
    except BadRequest as error:
        wanted = report.shapes_text(pruned_shapes(plan, shapes))
        raise GoalError(f"{options.pruned} does not take the inputs of the original ({wanted}).") from error
    inputs = recorded(options.inputs, input_specs(graph.model)) if options.inputs else ()
    proof = verify(pruned, graph, plan, tolerance=options.tolerance, inputs=inputs, progress=_Progress(options.quiet))
    if options.json:
        _write_json(options.json, {"version": report_json.JSON_VERSION, "proof": report_json.proof_json(proof)})
    if options.json != "-":
        for warning in proof.warnings:
            print(f"note: {warning}")
        print(f"{options.pruned}: {report.proof_text(proof)}")
    return 0


def _bench(options: argparse.Namespace) -> int:
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
        progress=_Progress(options.quiet),
    )
    ratios = [compare(results[0], other) for other in results[1:]]
    if options.json:
        _write_json(options.json, report_json.bench_json(results, ratios))
    if options.json != "-":
        print(report.bench_text(results, ratios))
    return 0


def _eval(options: argparse.Namespace) -> int:
    from exporter import report, report_json
    from runtime.backends import open_session
    from runtime.errors import BadRequest
    from runtime.evaluation import evaluate
    from runtime.images import parse_preprocess
    from runtime.metrics import find_metric
    from runtime.samples import load_samples
    from runtime.sources import USUAL_LABELS

    preprocess = parse_preprocess(options.preprocess) if options.preprocess else None
    needs = find_metric(options.metric).needs
    if needs == "reference" and options.labels:
        raise BadRequest(f"--metric {options.metric} compares two models; leave out --labels.")
    if not options.model.is_file():
        raise BadRequest(f"{options.model}: no such file.")
    session = open_session(options.model)
    names = (options.labels,) if options.labels else () if needs == "reference" else USUAL_LABELS
    samples = load_samples(options.data, session.inputs, preprocess=preprocess, limit=options.limit, labels=names)
    if options.labels and samples.answers is None:
        raise BadRequest(f"--labels {options.labels}: {options.data} has no such array.")
    result = evaluate(
        session,
        samples,
        options.metric,
        reference=options.reference,
        output=options.output,
        batch=options.batch,
        progress=_Progress(options.quiet),
    )
    if options.json:
        _write_json(options.json, report_json.evaluation_json(options.model, result))
    if options.json != "-":
        print(report.evaluation_text(options.model, result))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from exporter.convert import convert
    from exporter.tables import quantity
    from exporter.torch_source import load_module, load_weights, parse_dynamic, parse_inputs

    progress = _Progress(options.quiet)
    inputs = parse_inputs(options.input)
    dynamic = parse_dynamic(options.dynamic)
    module = load_module(options.source)
    if options.weights:
        load_weights(module, options.weights)
    progress("exporting and checking")
    result = convert(
        module, inputs, options.output, dynamic=dynamic, output_names=options.output_name, opset=options.opset
    )
    size = quantity(result.path.stat().st_size)
    error = f"max relative error {result.max_relative_error:.2g} against PyTorch"
    print(f"{result.path}: {size}B, opset {result.opset}, {error}")
    return 0


def _write_json(target: str, document: dict[str, Any]) -> None:
    from exporter.atomic import write_text
    from exporter.errors import UsageError

    text = json.dumps(document, indent=1, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    try:
        write_text(Path(target), text + "\n")
    except OSError as error:
        raise UsageError(f"the JSON report cannot be written to {target}: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
