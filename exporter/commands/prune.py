"""``secateur prune``: remove units, prove the result, write it."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_cache, add_io, add_json, add_preprocess, add_shape, command, kinds_of
from exporter.commands.reporting import add_report, prune_report

if TYPE_CHECKING:
    from runtime.latency import Latency
    from runtime.robust import Ratio
    from runtime.savings import Saving


_PROFILE_SECONDS = 2.0
_WHY = 8
"""Layers that are listed for what holds them back."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "prune", run, "Remove units from a model, prove the result, and write it.", _check)
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="the file to write")
    budget = parser.add_argument_group("budget (one of them, unless --layers or --plan is given)")
    budget.add_argument("--ratio", type=float, metavar="R", help="remove this share of the units")
    budget.add_argument("--macs", type=float, metavar="M", help="leave at most this share of the multiply-accumulates")
    budget.add_argument("--params", type=float, metavar="P", help="leave at most this share of the parameters")
    budget.add_argument(
        "--max-drop",
        metavar="D",
        help="find the smallest model that is at most so much worse on inputs of --calib that nothing is fitted to: "
        "0.5%% (points of accuracy or agreement; relative for other metrics), or a number in the unit of --metric",
    )
    budget.add_argument(
        "--of", choices=("macs", "params"), default="macs", help="what --max-drop makes small (default: macs)"
    )
    budget.add_argument(
        "--sure",
        action="store_true",
        help="the whole 95 %% interval of the drop must be within --max-drop, not only what was measured",
    )
    budget.add_argument(
        "--steps",
        type=int,
        default=1,
        metavar="N",
        help="cut and fit in N rounds towards the budget, each choosing on the model of the round before (1)",
    )
    budget.add_argument(
        "--latency",
        metavar="0.6x|5ms",
        help="leave at most this share of the latency, or this time, as measured on this machine, whose staircase the "
        "widths are aligned to (see: secateur probe)",
    )
    budget.add_argument(
        "--device",
        default="ort-cpu",
        metavar="NAME",
        help="backend for --latency (ort-cpu); tensorrt and tensorrt-rtx build an engine of every candidate, in the "
        "precision of the file",
    )
    budget.add_argument("--threads", type=int, default=1, metavar="N", help="threads for --latency (1)")
    choice = parser.add_argument_group("choosing units")
    choice.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="drop N residual blocks, the least important ones; widths meet the budget",
    )
    choice.add_argument(
        "--layer-score",
        default="similarity",
        metavar="NAME",
        help="similarity of the residual stream with and without a block, on 64 samples of --calib, on --inputs or on "
        "seeded ones (default), magnitude (no run needed) or random",
    )
    choice.add_argument(
        "--score",
        metavar="NAME",
        help="l2 (default), l1, fpgm, lamp, random; with --calib also energy, flap, wanda and reconstruction (default "
        "there): how badly the layers that read a unit can do without it; with torch also gradient, taylor and fisher "
        "(what the loss says of a unit), grasp (the same of a model that is not trained yet), and l1-mask, l0-mask and "
        "topk-mask (gates that are trained while what they cost is pushed to the budget: multiply-accumulates, "
        "parameters, or the latency measured here)",
    )
    choice.add_argument("--include-consumers", action="store_true", help="score the weights that read a unit as well")
    choice.add_argument(
        "--scope",
        choices=("local", "global", "damage"),
        help="local: the same share of every group (default); global: all units ranked together, each by its score "
        "relative to the mean of its group; damage: meet --macs or --params with the least predicted damage to the "
        "outputs (default with --calib)",
    )
    choice.add_argument(
        "--align",
        default="auto",
        metavar="N",
        help="make widths multiples of N; auto (default): 16 for convolutions, 8 for matrix products; sparse: 16 for "
        "all, because sparsify comes next; these two give way where the budget needs it, but never to less than 4. Or "
        "what the tensor cores of a GPU take: fp16 or bf16 (8), int8 or fp8 (32)",
    )
    choice.add_argument("--min-width", type=int, default=1, metavar="N", help="keep at least N units of every group")
    choice.add_argument(
        "--granularity",
        metavar="KINDS",
        help="kinds of groups to cut, separated by commas: channels, neurons, hidden, heads, head_dims, conv_groups, "
        "norm_groups, tokens (default: all, but one factor of each product axis); experts, whole, only where they are "
        "named; and layers: whole residual blocks. With layers and others --ratio applies to each, and --macs and "
        "--params are split evenly",
    )
    choice.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="keep whole what touches a matching node or tensor"
    )
    choice.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="cut only what touches a matching node or tensor"
    )
    add_io(choice)
    choice.add_argument("--seed", type=int, default=0, metavar="N", help="for random scores")
    data = parser.add_argument_group("calibration (labels are not needed)")
    data.add_argument(
        "--calib",
        metavar="DATA",
        help="inputs to choose with, and to fit the layers that stay to: an .npz by input name, a folder of .npy, .npz "
        "or image files, or synthetic for made-up ones",
    )
    add_preprocess(data)
    data.add_argument("--calib-samples", type=int, default=512, metavar="N", help="use at most N of them (512)")
    data.add_argument(
        "--labels",
        metavar="KEY",
        help="the array of DATA that holds labels (y, label or labels): results are judged by them, and scores that "
        "need torch use them; nothing else is fitted to them",
    )
    data.add_argument(
        "--metric",
        metavar="NAME",
        help="how the original and the result are judged: as for secateur eval (default: top1 with labels, else "
        "agreement)",
    )
    data.add_argument("--no-compensate", action="store_true", help="leave the weights that stay as they are")
    add_cache(data)
    plan = parser.add_argument_group("plans")
    plan.add_argument("--save-plan", metavar="P.json", type=Path, help="write the plan")
    plan.add_argument("--plan", metavar="P.json", type=Path, help="carry out this plan")
    plan.add_argument("--dry-run", action="store_true", help="plan and report only; write no model")
    proof = parser.add_argument_group("proof and measurement")
    proof.add_argument("--no-verify", action="store_true", help="write the result without proving it")
    proof.add_argument(
        "--inputs",
        metavar="FILE.npz",
        type=Path,
        help="recorded inputs for the proof and, without --calib, for --layer-score, by input name",
    )
    proof.add_argument(
        "--measure",
        action="store_true",
        help="time the result against the original in one paired run, and say what holds back the layers that lag",
    )
    add_shape(parser)
    add_json(parser)
    add_report(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter import Plan, prune, report, report_json
    from runtime.feeds import parse_shapes

    if options.latency:
        return _to_latency(options)
    result = prune(
        options.model,
        options.output,
        ratio=options.ratio,
        macs=options.macs,
        params=options.params,
        **_shared(options),
        plan=Plan.load(options.plan) if options.plan else None,
        max_drop=options.max_drop,
        of=options.of,
        sure=options.sure,
        steps=options.steps,
        dry_run=options.dry_run,
        shapes=parse_shapes(options.shape),
    )
    if options.save_plan:
        result.plan.save(options.save_plan)
    if not options.measure:
        document = report_json.prune_json(result) if options.json or options.report else {}
        if options.report:
            prune_report(options, result, document)
        return deliver(options, lambda: document, lambda: report.prune_text(result))
    from exporter.latency.report import held_back_text
    from exporter.latency.report_json import savings_json

    latency = _measure(options, dict(result.plan.model.shapes))
    layers, savings = _profiled(options, latency)
    document = {**report_json.prune_json(result, latency), "savings": savings_json(savings)}
    if options.report:
        prune_report(options, result, document, {"layers": layers, "savings": document["savings"]})
    why = "\n".join(held_back_text(savings, _WHY)).strip("\n")
    return deliver(options, lambda: document, lambda: report.prune_text(result, latency, why and f"\n{why}"))


def _to_latency(options: argparse.Namespace) -> int:
    """Prune to a latency; returns the exit code."""
    from exporter import report, report_json
    from exporter.latency.budget import parse_latency, prune_to_latency
    from exporter.latency.report import outcome_text
    from exporter.latency.report_json import outcome_json
    from runtime.backends import SessionOptions
    from runtime.feeds import parse_shapes
    from runtime.runners import Asked

    result, outcome = prune_to_latency(
        options.model,
        options.output,
        parse_latency(options.latency),
        Asked(options.device, SessionOptions(threads=options.threads), parse_shapes(options.shape)),
        **_shared(options),
    )
    if options.save_plan:
        result.plan.save(options.save_plan)
    document = {**report_json.prune_json(result), "latency_budget": outcome_json(outcome)}
    if options.report:
        prune_report(options, result, document)
    return deliver(options, lambda: document, lambda: report.prune_text(result, more=outcome_text(outcome)))


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """What means the same whatever the budget."""
    from runtime.images import parse_preprocess

    return {
        "layers": options.layers,
        "score": options.score,
        "layer_score": options.layer_score,
        "consumers": options.include_consumers,
        "scope": options.scope,
        "align": _align(options.align),
        "min_width": options.min_width,
        "granularity": kinds_of(options),
        "keep": options.keep,
        "only": options.only,
        "io": options.io,
        "calib": options.calib,
        "preprocess": parse_preprocess(options.preprocess) if options.preprocess else None,
        "calib_samples": options.calib_samples,
        "labels": options.labels,
        "metric": options.metric,
        "compensate": not options.no_compensate,
        "cache": not options.no_cache,
        "prove": not options.no_verify,
        "inputs": options.inputs,
        "seed": options.seed,
        "progress": Progress(options),
    }


def _check_latency(options: argparse.Namespace) -> None:
    """Refuse what does not go with a budget of latency."""
    from exporter.errors import UsageError

    others = ("ratio", "macs", "params", "plan", "max_drop")
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(options, name) is not None]
    given += ["--steps"] if options.steps != 1 else []
    if options.latency and given:
        raise UsageError(f"--latency is a budget of its own; leave out {' and '.join(given)}.")
    for name in ("dry_run", "measure"):
        if options.latency and getattr(options, name):
            raise UsageError(f"--latency builds and measures in any case; leave out --{name.replace('_', '-')}.")
    if options.latency and options.output is None:
        raise UsageError("say where to write the result with -o OUT.onnx.")
    if not options.latency and (options.device != "ort-cpu" or options.threads != 1):
        raise UsageError("--device and --threads say what --latency is measured with; give --latency too.")


def _check(options: argparse.Namespace) -> None:
    """Refuse what would be ignored."""
    from exporter.errors import UsageError
    from exporter.request import Request

    _check_latency(options)
    if options.plan:
        for field in fields(Request):
            name = "include_consumers" if field.name == "consumers" else field.name
            given = getattr(options, name)
            if (tuple(given) if isinstance(given, list) else given) != field.default:
                raise UsageError(f"--plan already says what to keep; leave out --{name.replace('_', '-')}.")
    if options.measure and options.dry_run:
        raise UsageError("--measure needs a result to time; leave out --dry-run.")
    _check_request(options)


def _check_request(options: argparse.Namespace) -> None:
    """Refuse values that no model could be pruned with."""
    from exporter.request import Request
    from exporter.request_check import check_inputs, check_output, check_request
    from exporter.score_names import LEARNED
    from exporter.torch_source import look_for_torch

    check_output(options.output, options.dry_run)
    given = {f.name: getattr(options, f.name) for f in fields(Request) if f.name != "consumers"}
    request = Request(**given, consumers=options.include_consumers)
    request = replace(request, align=_align(options.align), granularity=kinds_of(options))
    data = options.calib, options.preprocess, not options.no_compensate, options.labels, options.metric
    if options.latency:
        from exporter.latency.budget import parse_latency
        from exporter.latency.choice import check_competition
        from runtime.backends import check_backend

        parse_latency(options.latency)
        check_backend(options.device)
        check_inputs(*data)
        check_competition(request, options.calib is not None)
    else:
        check_request(request, options.plan is not None, *data)
    if options.score in LEARNED:
        look_for_torch()


def _align(text: str) -> int | str:
    """A number, ``auto``, or the multiple that tensor cores want for a type."""
    from exporter.errors import UsageError
    from exporter.widths import AUTOMATIC

    if text in AUTOMATIC:
        return text
    from exporter.latency.device import TENSOR_CORES

    try:
        return TENSOR_CORES.get(text) or int(text)
    except ValueError:
        known = ", ".join((*AUTOMATIC, *TENSOR_CORES))
        raise UsageError(f"--align {text}: choose {known} or a whole number of at least 1.") from None


def _profiled(
    options: argparse.Namespace, measured: tuple[Latency, Latency, Ratio]
) -> tuple[list[dict[str, Any]], list[Saving]]:
    """What each layer takes in both models, and what holds back those that lag."""
    from exporter.latency.report_json import layer_json
    from runtime.backends import SessionOptions
    from runtime.layers import layer_differences
    from runtime.profiling import profile
    from runtime.roofline import peaks
    from runtime.runners import Asked
    from runtime.savings import find_savings

    threads = measured[0].threads
    dense, pruned = (
        profile(
            path, Asked("ort-cpu", SessionOptions(threads=threads), side.shapes), seconds=_PROFILE_SECONDS,
            progress=Progress(options),
        )
        for path, side in zip((options.model, options.output), measured[:2], strict=True)
    )  # fmt: skip
    layers = [layer_json(r) for r in layer_differences(dense.nodes, pruned.nodes)]
    return layers, find_savings(dense, pruned, peaks("ort-cpu", threads))


def _measure(options: argparse.Namespace, shapes: dict[str, tuple[int, ...]]) -> tuple[Latency, Latency, Ratio]:
    from runtime.latency import bench, compare

    dense, pruned = bench([options.model, options.output], shapes=shapes, progress=Progress(options))
    return dense, pruned, compare(dense, pruned)
