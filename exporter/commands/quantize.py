"""``secateur quantize``: weights, and tensors between layers, in fewer bits, with the damage measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, add_preprocess, add_shape, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "quantize", run, "Store a model in 8 or 4 bits, and measure what that costs and gains.", _check
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file, with 32-bit weights")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--precision",
        required=True,
        metavar="NAME",
        help="int8, uint8, fp8: weights and the tensors between layers (QDQ); int8-dynamic: weights of matrices, and "
        "what they multiply as it comes, for which no data are needed; int8-weight, int4-weight: weights alone. With "
        "--profile cpu, tables of embeddings, weights of LSTM, GRU and RNN, and layers in branches and loops, become "
        "int8 in any case",
    )
    parser.add_argument(
        "--profile",
        default="cpu",
        metavar="NAME",
        help="what will run it: cpu (ONNX Runtime; default), or tensorrt: symmetric int8 in and out of every layer, "
        "which its sparse kernels need too",
    )
    parser.add_argument("--no-per-channel", action="store_true", help="one scale for a whole weight")
    parser.add_argument(
        "--reduce-range",
        default="auto",
        metavar="WHEN",
        help="weights of 7 bits, whose products do not overflow on x86 processors without VNNI: on, off, or auto "
        "(default): where they overflow on this one",
    )
    choice = parser.add_argument_group("choosing layers")
    choice.add_argument("--keep", action="append", default=[], metavar="GLOB", help="leave matching layers in float")
    choice.add_argument("--only", action="append", default=[], metavar="GLOB", help="take only matching ones")
    choice.add_argument(
        "--max-drop",
        metavar="D",
        help="leave as few layers in float, the most harmful first, as keep the drop within 0.5%% (points of accuracy "
        "or agreement; relative for other metrics), or a number in the unit of --metric",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--calib",
        metavar="DATA",
        help="inputs to find ranges with, and others to judge by: an .npz by input name, a folder of .npy, .npz or "
        "image files, or synthetic for made-up ones",
    )
    data.add_argument(
        "--no-fit",
        action="store_true",
        help="round weights to the nearest; do not fit layers to what they gave in float",
    )
    add_preprocess(data)
    data.add_argument("--calib-samples", type=int, default=256, metavar="N", help="find ranges with at most N (256)")
    data.add_argument(
        "--method",
        default="minmax",
        metavar="NAME",
        help="how ranges are found: minmax (default), entropy, percentile",
    )
    data.add_argument("--percentile", type=float, default=99.99, metavar="P", help="of the values in range (99.99)")
    data.add_argument("--labels", metavar="KEY", help="the array of DATA that holds labels (y, label or labels)")
    data.add_argument(
        "--metric", metavar="NAME", help="as for secateur eval (default: top1 with labels, else agreement)"
    )
    data.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs taken (0)")
    speed = parser.add_argument_group("measurement")
    speed.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="most time to compare the speed in; 0: do not (2)"
    )
    speed.add_argument("--threads", type=int, default=1, metavar="N", help="threads for that (1)")
    add_shape(parser)
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    from exporter.quantization.precisions import find_precision
    from exporter.quantization.quantizer import check_options
    from exporter.search import parse_limit
    from runtime.backends import SessionOptions
    from runtime.latency import check_seconds

    SessionOptions(threads=options.threads)
    if options.seconds:
        check_seconds(options.seconds)
    kind = find_precision(options.precision, options.profile)
    if options.max_drop is not None:
        parse_limit(options.max_drop)
    check_options(
        kind, options.output, options.method, options.percentile, not options.no_per_channel, options.reduce_range,
        options.calib, options.max_drop,
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.quantization import report
    from exporter.quantization.quantizer import quantize
    from runtime.feeds import parse_shapes
    from runtime.images import parse_preprocess

    found = quantize(
        options.model,
        options.output,
        precision=options.precision,
        profile=options.profile,
        calib=options.calib,
        method=options.method,
        percentile=options.percentile,
        per_channel=not options.no_per_channel,
        reduce_range=options.reduce_range,
        only=options.only,
        keep=options.keep,
        fit=not options.no_fit,
        max_drop=options.max_drop,
        labels=options.labels,
        metric=options.metric,
        calib_samples=options.calib_samples,
        preprocess=parse_preprocess(options.preprocess) if options.preprocess else None,
        seed=options.seed,
        shapes=parse_shapes(options.shape),
        seconds=options.seconds,
        threads=options.threads,
        progress=Progress(options),
    )
    return deliver(options, lambda: report.quantize_json(found), lambda: report.quantize_text(found))
