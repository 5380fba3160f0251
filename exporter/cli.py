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
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.latency import Latency, Ratio

EXIT_CODES = """exit codes:
  0  done
  1  a goal, check or regression failed (budget out of reach, proof failed)
  2  usage (unknown option, value out of range, plan for another model, path not writable)
  3  model unsupported (not an ONNX file, truncated, nothing to prune, does not run)
  4  backend missing
  5  inconclusive (too noisy)
"""

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
    parser = _parser()
    options = parser.parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    from exporter import __version__

    parser = argparse.ArgumentParser(
        prog="secateur",
        description="Prune ONNX files, and prove each result equal to its masked original before it is written.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_inspect(commands)
    _add_prune(commands)
    _add_verify(commands)
    _add_bench(commands)
    _add_convert(commands)
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=function)
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")
    return parser


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME:1x3x224x224",
        help="size of an input with dynamic axes, for costs and runs (the written file stays dynamic); repeatable",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE|-", help="write everything as JSON to a file, or to stdout for '-'")


# -- commands ---------------------------------------------------------------------------------------------------


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", _inspect, "List what can be removed from a model, and why the rest cannot.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    _add_shape(parser)
    _add_json(parser)


def _inspect(options: argparse.Namespace) -> int:
    from exporter import find_groups, load, report
    from exporter.pruner import totals
    from runtime.feeds import parse_shapes

    progress = _Progress(options.quiet)
    progress("reading the model")
    graph = load(options.model, parse_shapes(options.shape))
    progress("analysing")
    groups = find_groups(graph)
    before = totals(graph, groups)
    if options.json:
        _write_json(options.json, report.inspect_json(graph, groups, before))
    if options.json != "-":
        print(report.inspect_text(graph, groups, before))
    return 0


def _add_prune(commands: Any) -> None:
    parser = _command(commands, "prune", _prune, "Remove units from a model, prove the result, and write it.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="the file to write")
    budget = parser.add_argument_group("budget (one of them, unless --plan is given)")
    budget.add_argument("--ratio", type=float, metavar="R", help="remove this share of the units")
    budget.add_argument("--macs", type=float, metavar="M", help="leave at most this share of the multiply-accumulates")
    budget.add_argument("--params", type=float, metavar="P", help="leave at most this share of the parameters")
    choice = parser.add_argument_group("choosing units")
    choice.add_argument("--score", default="l2", metavar="NAME", help="l1, l2 (default) or random")
    choice.add_argument("--include-consumers", action="store_true", help="score the weights that read a unit as well")
    choice.add_argument(
        "--scope",
        default="local",
        choices=("local", "global"),
        help="the same share of every group (default), or all units ranked together, each by its score relative to the "
        "mean of its group",
    )
    choice.add_argument(
        "--align",
        default="auto",
        metavar="N",
        help="make widths multiples of N; auto (default): 16 for convolutions, 8 for matrix products",
    )
    choice.add_argument("--min-width", type=int, default=1, metavar="N", help="keep at least N units of every group")
    choice.add_argument(
        "--granularity",
        metavar="KINDS",
        help="kinds of groups to cut, separated by commas: channels, neurons, hidden, heads, head_dims, conv_groups, "
        "norm_groups (default: all, but one factor of each product axis)",
    )
    choice.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="keep whole what touches a matching node or tensor"
    )
    choice.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="cut only what touches a matching node or tensor"
    )
    choice.add_argument("--seed", type=int, default=0, metavar="N", help="for --score random")
    plan = parser.add_argument_group("plans")
    plan.add_argument("--save-plan", metavar="P.json", type=Path, help="write the plan")
    plan.add_argument("--plan", metavar="P.json", type=Path, help="carry out this plan")
    plan.add_argument("--dry-run", action="store_true", help="plan and report only; write no model")
    proof = parser.add_argument_group("proof and measurement")
    proof.add_argument("--no-verify", action="store_true", help="write the result without proving it")
    proof.add_argument("--inputs", metavar="FILE.npz", type=Path, help="recorded inputs for the proof, by input name")
    proof.add_argument("--measure", action="store_true", help="time the result against the original in one paired run")
    _add_shape(parser)
    _add_json(parser)


def _prune(options: argparse.Namespace) -> int:
    from exporter import Plan, prune, report
    from runtime.feeds import parse_shapes

    result = prune(
        options.model,
        options.output,
        ratio=options.ratio,
        macs=options.macs,
        params=options.params,
        score=options.score,
        consumers=options.include_consumers,
        scope=options.scope,
        align=_align(options.align),
        min_width=options.min_width,
        granularity=[k.strip() for k in options.granularity.split(",")] if options.granularity else None,
        keep=options.keep,
        only=options.only,
        plan=Plan.load(options.plan) if options.plan else None,
        dry_run=options.dry_run,
        prove=not options.no_verify,
        shapes=parse_shapes(options.shape),
        inputs=options.inputs,
        seed=options.seed,
        progress=_Progress(options.quiet),
    )
    if options.save_plan:
        result.plan.save(options.save_plan)
    latency = _measure(options, result.groups.graph.binding.shapes) if options.measure and result.output else None
    if options.json:
        _write_json(options.json, report.prune_json(result, latency))
    if options.json != "-":
        print(report.prune_text(result, latency))
    return 0


def _align(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _measure(options: argparse.Namespace, shapes: dict[str, tuple[int, ...]]) -> tuple[Latency, Latency, Ratio]:
    from runtime.latency import bench, compare

    dense, pruned = bench([options.model, options.output], shapes=shapes, progress=_Progress(options.quiet))
    return dense, pruned, compare(dense, pruned)


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands, "verify", _verify, "Prove a pruned model equal to its original with the plan's units masked."
    )
    parser.add_argument("original", metavar="ORIGINAL", type=Path, help="the model before pruning")
    parser.add_argument("pruned", metavar="PRUNED", type=Path, help="the model after pruning")
    parser.add_argument("--plan", metavar="P.json", type=Path, required=True, help="what was removed")
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="accepted difference relative to the signal (1e-3)"
    )
    parser.add_argument("--inputs", metavar="FILE.npz", type=Path, help="recorded inputs, by input name")
    _add_json(parser)


def _verify(options: argparse.Namespace) -> int:
    from exporter import Plan, load, report, verify
    from exporter.normalise import input_specs
    from runtime.feeds import recorded

    plan = Plan.load(options.plan)
    shapes = dict(plan.model.shapes)
    graph = load(options.original, shapes)
    pruned = load(options.pruned, shapes)
    inputs = recorded(options.inputs, input_specs(graph.model)) if options.inputs else ()
    proof = verify(pruned, graph, plan, tolerance=options.tolerance, inputs=inputs, progress=_Progress(options.quiet))
    if options.json:
        _write_json(options.json, {"version": report.JSON_VERSION, "proof": report.proof_json(proof)})
    if options.json != "-":
        for warning in proof.warnings:
            print(f"note: {warning}")
        print(f"{options.pruned}: {report.proof_text(proof)}")
    return 0


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", _bench, "Measure the latency of models, in turn in one run.")
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="+", help="the ONNX files")
    parser.add_argument("--backend", default="ort-cpu", metavar="NAME", help="ort-cpu (default)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads inside one operator (0: default)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time to sample each model (3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs")
    _add_shape(parser)
    _add_json(parser)


def _bench(options: argparse.Namespace) -> int:
    from exporter import report
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
        _write_json(options.json, report.bench_json(results, ratios))
    if options.json != "-":
        print(report.bench_text(results, ratios))
    return 0


def _add_convert(commands: Any) -> None:
    parser = _command(
        commands, "convert", _convert, "Write a PyTorch module as an ONNX file, and check one against the other."
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="package.module:callable or file.py:callable that returns a torch.nn.Module"
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME:1x3x224x224[:dtype]",
        help="name, shape and type (float32) of an input, in the module's order; repeatable",
    )
    parser.add_argument("--weights", metavar="FILE", type=Path, help="state dict to load: .pt or .safetensors")
    parser.add_argument(
        "--dynamic",
        action="append",
        default=[],
        metavar="NAME:0=batch",
        help="leave the size of an axis open; repeatable",
    )
    parser.add_argument(
        "--output-name", action="append", metavar="NAME", help="name of an output, in order; repeatable"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="operator set (default: torch's)")


def _convert(options: argparse.Namespace) -> int:
    from exporter import report
    from exporter.convert import convert
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
    size = report.quantity(result.path.stat().st_size)
    error = f"max relative error {result.max_relative_error:.2g} against PyTorch"
    print(f"{result.path}: {size}B, opset {result.opset}, {error}")
    return 0


def _write_json(target: str, document: dict[str, Any]) -> None:
    from exporter.errors import UsageError

    text = json.dumps(document, indent=1, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the JSON report cannot be written to {target}: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
