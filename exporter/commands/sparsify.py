"""``secateur sparsify``: put zeros where a pattern wants them, fit what stays, check it, write it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, add_preprocess, add_shape, command
from exporter.commands.reporting import add_report, write_report


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "sparsify", run, "Put zeros into the weights of a model, in a pattern or anywhere.", _check
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--pattern",
        default="2:4",
        metavar="P",
        help="N:M: at most N of every M weights along a layer's inputs are not zero (2:4 is what TensorRT's sparse "
        "kernels take, and the default); or a share, such as 0.8: so many of the weights are zero, wherever they are",
    )
    choice = parser.add_argument_group("choosing weights")
    choice.add_argument(
        "--method",
        metavar="NAME",
        help="magnitude (default); with --calib also wanda (magnitude times the size of the input) and obs (default "
        "there): what the layer's output loses when the other weights make up for it; with torch also gradient, taylor "
        "and fisher: what the loss says of each weight",
    )
    choice.add_argument(
        "--scope",
        default="local",
        metavar="SCOPE",
        help="for a share: local: the same of every weight (default); global: all ranked together (magnitudes by "
        "LAMP; gradients as they are)",
    )
    choice.add_argument(
        "--permute", action="store_true", help="reorder channels first, so that more magnitude stays; proved"
    )
    choice.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="leave matching weights and nodes as they are"
    )
    choice.add_argument("--only", action="append", default=[], metavar="GLOB", help="take only matching ones")
    choice.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="GLOB",
        help="take matching ones that are left out by default: tied embeddings, and layers no sparse kernel is known "
        "for",
    )
    data = parser.add_argument_group("calibration (labels are not needed)")
    data.add_argument(
        "--calib",
        metavar="DATA",
        help="inputs to choose with, and to fit the weights that stay to: an .npz by input name, a folder of .npy, "
        ".npz or image files, or synthetic for made-up ones",
    )
    add_preprocess(data)
    data.add_argument("--calib-samples", type=int, default=512, metavar="N", help="use at most N of them (512)")
    data.add_argument(
        "--labels",
        metavar="KEY",
        help="the array of DATA that holds labels (y, label or labels): gradients use them, and the result is judged "
        "by them",
    )
    data.add_argument(
        "--metric",
        metavar="NAME",
        help="how the original and the result are judged: as for secateur eval (default: top1 with labels, else "
        "agreement)",
    )
    data.add_argument("--no-refit", action="store_true", help="leave the weights that stay as they are")
    data.add_argument(
        "--schedule",
        default="one-shot",
        metavar="NAME",
        help="for a share: one-shot (default); in five steps, fitting what stays in between: iterative, as many "
        "weights in each, or cubic, most in the first",
    )
    data.add_argument(
        "--max-drop",
        type=float,
        metavar="E",
        help="largest error of the outputs on held-out inputs, as a share of their variance: layers stay dense, the "
        "most harmful first, until it is met (several passes)",
    )
    data.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs taken and of --permute (0)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--storage",
        default="dense",
        metavar="KIND",
        help="dense (default), or sparse: sparse initializers where they take less room, if ONNX Runtime gives the "
        "same outputs",
    )
    output.add_argument("--dry-run", action="store_true", help="report only; write no model")
    add_shape(parser)
    add_json(parser)
    add_report(parser)


def _check(options: argparse.Namespace) -> None:
    from exporter.score_names import GRADIENTS
    from exporter.sparsity.sparsifier import check_options, plan_of
    from exporter.torch_source import look_for_torch

    calibrated = options.calib is not None
    plan = plan_of(
        options.pattern, options.method, options.scope, options.schedule, not options.no_refit, options.max_drop,
        calibrated,
    )  # fmt: skip
    judged = options.labels or options.metric
    check_options(plan, options.output, options.storage, options.permute, calibrated, options.dry_run, judged)
    if plan.method in GRADIENTS:
        look_for_torch()


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.sparsity import report
    from exporter.sparsity.sparsifier import sparsify
    from runtime.feeds import parse_shapes
    from runtime.images import parse_preprocess

    result = sparsify(
        options.model,
        options.output,
        pattern=options.pattern,
        method=options.method,
        scope=options.scope,
        schedule=options.schedule,
        refit=not options.no_refit,
        only=options.only,
        keep=options.keep,
        also=options.also,
        max_drop=options.max_drop,
        permute=options.permute,
        storage=options.storage,
        calib=options.calib,
        preprocess=parse_preprocess(options.preprocess) if options.preprocess else None,
        calib_samples=options.calib_samples,
        labels=options.labels,
        metric=options.metric,
        dry_run=options.dry_run,
        shapes=parse_shapes(options.shape),
        seed=options.seed,
        progress=Progress(options),
    )
    if options.report:
        from exporter.page.sparsify import sparsify_page

        write_report(options, sparsify_page(report.sparsify_json(result), report.verdict(result)))
    return deliver(options, lambda: report.sparsify_json(result), lambda: report.sparsify_text(result))
