"""``secateur eval``: judge outputs on data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, add_preprocess, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "eval", run, "Judge a model's outputs on data: accuracy, or agreement with another.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument(
        "--data",
        metavar="DATA",
        type=Path,
        required=True,
        help="an .npz keyed by input name (FILE.npz:test takes NAME_test), a folder of NAME.npy or of .npz files, or a "
        "folder of images; samples along the leading axis",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        required=True,
        help="top1, top5, perplexity (logits of the next id); agreement (same largest output), mse, psnr, cosine with "
        "--reference; or plugin:package.module:callable, called with (outputs, labels)",
    )
    parser.add_argument("--reference", metavar="ORIGINAL", type=Path, help="the model to compare with")
    parser.add_argument(
        "--labels", metavar="KEY", help="the array that holds the labels (y, label or labels); in a folder, KEY.npy"
    )
    parser.add_argument("--output", metavar="NAME", help="the output to judge (the first floating-point one)")
    parser.add_argument("--limit", type=int, metavar="N", help="take at most N samples, at random")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="most samples in one run (32)")
    add_preprocess(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter import report, report_json
    from runtime.backends import open_session
    from runtime.errors import BadRequest
    from runtime.evaluation import evaluate
    from runtime.images import parse_preprocess
    from runtime.model_files import near
    from runtime.plugins import find_metric
    from runtime.samples import load_samples
    from runtime.sources import USUAL_LABELS

    preprocess = parse_preprocess(options.preprocess) if options.preprocess else None
    needs = find_metric(options.metric).needs
    if needs == "reference" and options.labels:
        raise BadRequest(f"--metric {options.metric} compares two models; leave out --labels.")
    for model in filter(None, (options.model, options.reference)):
        if not model.is_file():
            raise BadRequest(f"{model}: no such file.{near(model)}")
    session = open_session(options.model)
    original = open_session(options.reference) if options.reference is not None else None
    specs = [*(original.inputs if original else ()), *session.inputs]
    inputs = {spec.name: spec for spec in sorted(specs, key=lambda spec: sum(isinstance(d, int) for d in spec.shape))}
    names = options.labels or (() if needs == "reference" else USUAL_LABELS)
    samples = load_samples(options.data, [*inputs.values()], preprocess=preprocess, limit=options.limit, labels=names)
    result = evaluate(
        session,
        samples,
        options.metric,
        reference=original,
        output=options.output,
        batch=options.batch,
        progress=Progress(options),
    )
    return deliver(
        options,
        lambda: report_json.evaluation_json(options.model, result),
        lambda: report.evaluation_text(options.model, result),
    )
