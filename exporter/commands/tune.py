"""``secateur tune``: train the weights of a pruned model on labels, on the original, or on both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_json, add_preprocess, add_shape, command
from runtime.nouns import counted

if TYPE_CHECKING:
    from exporter.training.options import TuneOptions
    from exporter.training.tuning import Tuned


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "tune", run, "Train the weights of a pruned model: on labels, on the original, or both.", _check
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--data",
        metavar="DATA",
        type=Path,
        required=True,
        help="an .npz keyed by input name (FILE.npz:train takes NAME_train), a folder of NAME.npy or of .npz files, or "
        "a folder of images; samples along the leading axis",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take at most N samples, at random")
    add_preprocess(parser)
    goal = parser.add_argument_group("what to learn")
    goal.add_argument("--labels", metavar="KEY", help="the array of DATA that holds the labels")
    goal.add_argument("--teacher", metavar="ORIGINAL", type=Path, help="learn to give what this model gives")
    goal.add_argument(
        "--loss",
        default="auto",
        metavar="NAME",
        help="auto (default): cross-entropy of labels, agreement with the teacher; cross-entropy, kl, mse, next-id (of "
        "a language model), or plugin:package.module:callable, called with (outputs, the teacher's, inputs, labels)",
    )
    goal.add_argument("--match", action="append", default=[], metavar="GLOB", help="inner tensors to match; repeatable")
    goal.add_argument("--plan", metavar="P.json", type=Path, help="the plan, to match tensors that were cut")
    goal.add_argument(
        "--distil-share", type=float, default=0.5, metavar="A", help="the teacher's share of the loss (0.5)"
    )
    goal.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of kl (1)")
    goal.add_argument(
        "--loss-output", metavar="NAME", help="the output to judge (default: all; labels are for the first)"
    )
    how = parser.add_argument_group("how to train")
    how.add_argument("--epochs", type=int, default=10, metavar="N", help="passes over the data (10)")
    how.add_argument("--steps", type=int, metavar="N", help="steps of the optimizer, instead of --epochs")
    how.add_argument("--lr", type=float, default=1e-3, metavar="R", help="highest learning rate (0.001)")
    how.add_argument("--optimizer", default="adamw", metavar="NAME", help="adamw (default), adam or sgd")
    how.add_argument("--weight-decay", type=float, default=1e-4, metavar="D", help="(0.0001)")
    how.add_argument("--batch", type=int, default=64, metavar="N", help="samples in a step (64)")
    how.add_argument(
        "--augment",
        default="",
        metavar="KINDS",
        help="change images at random: flip, shift, and mix (blend two of them; the teacher says what that gives)",
    )
    how.add_argument("--hold", type=float, default=0.1, metavar="S", help="share held out to choose the best (0.1)")
    how.add_argument(
        "--patience", type=int, default=0, metavar="N", help="stop after N epochs without a gain (0: never)"
    )
    how.add_argument("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    how.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto (default: cuda where there is one), cpu, cuda:N; for several "
        "GPUs start it with: accelerate launch -m exporter tune ...",
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of the samples")
    how.add_argument(
        "--checkpoint", metavar="FILE.pt", type=Path, help="write after every epoch; go on from it if it exists"
    )
    add_shape(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.calibration.outputs import classes_of
    from exporter.model_file import load, save
    from exporter.normalise import input_specs
    from exporter.plan import Plan
    from exporter.torch_source import need_torch
    from runtime.class_labels import whole
    from runtime.feeds import parse_shapes
    from runtime.images import parse_preprocess
    from runtime.samples import load_samples

    need_torch()
    from exporter.training.devices import device_of
    from exporter.training.targets import make_target
    from exporter.training.team import team_of
    from exporter.training.tuning import tune

    training = _training(options)
    team = team_of(options.device)
    device = team.device or device_of(options.device)
    shapes = parse_shapes(options.shape)
    graph = load(options.model, shapes)
    samples = load_samples(
        options.data,
        input_specs(graph.model),
        preprocess=parse_preprocess(options.preprocess) if options.preprocess else None,
        limit=options.limit,
        seed=options.seed,
        labels=options.labels or (),
    )
    samples = whole(samples, classes_of(graph, options.loss_output))
    target = make_target(
        graph,
        labelled=samples.answers is not None,
        teacher=load(options.teacher, shapes) if options.teacher else None,
        device=device,
        loss=options.loss,
        output=options.loss_output,
        share=options.distil_share,
        temperature=options.temperature,
        match=options.match,
        plan=Plan.load(options.plan) if options.plan else None,
    )
    progress = Progress(options)
    progress.silent |= team.rank > 0
    tuned = tune(graph, samples, target, training, device, progress, team)
    if team.rank > 0:
        return 0  # the first process writes
    save(tuned.graph, options.output)
    return deliver(options, lambda: _document(options, tuned), lambda: _text(options, tuned))


def _check(options: argparse.Namespace) -> None:
    """Refuse what would be ignored, or is out of range."""
    from exporter.errors import UsageError
    from exporter.torch_source import look_for_torch
    from exporter.training.options import check_blends, check_target

    if options.plan is not None and not options.match:
        raise UsageError("--plan is for --match: name the inner tensors to compare.")
    given = bool(options.labels), options.teacher is not None
    check_target(options.loss, *given, options.distil_share, options.temperature, bool(options.match))
    check_blends(_training(options).augment, *given)
    look_for_torch()
    if options.device != "auto":
        from exporter.training.devices import device_of

        device_of(options.device)


def _training(options: argparse.Namespace) -> TuneOptions:
    """How to train, or why not so."""
    from exporter.training.options import TuneOptions

    return TuneOptions(
        epochs=options.epochs,
        steps=options.steps,
        lr=options.lr,
        optimizer=options.optimizer,
        decay=options.weight_decay,
        batch=options.batch,
        augment=tuple(k.strip() for k in options.augment.split(",") if k.strip()),
        hold=options.hold,
        patience=options.patience,
        amp=options.amp,
        seed=options.seed,
        checkpoint=options.checkpoint,
    )


def _text(options: argparse.Namespace, tuned: Tuned) -> str:
    from exporter.training.agreement import TOLERANCE

    steps = tuned.history[-1][0]
    rounded = " (rounding explains that)" if tuned.difference > TOLERANCE else ""
    lines = [
        f"{options.model} -> {options.output}",
        f"loss on {counted(tuned.held, 'sample')} held out: {tuned.before:.4g} before, {tuned.after:.4g} after "
        f"{tuned.best} of {counted(steps, 'step')} ({tuned.seconds:.1f} s)",
        f"verified in ONNX Runtime: within {tuned.difference:.1e} of the outputs' standard deviation of torch{rounded}",
    ]
    if tuned.sparse:
        lines.append(f"zeros kept in {counted(len(tuned.sparse), 'sparse weight')}")
    if tuned.resumed:
        lines.append(f"went on from step {tuned.resumed} of {options.checkpoint}")
    if not tuned.best:
        lines.append("note: training did not help; the weights are as they were. Try a smaller --lr, or more data.")
    return "\n".join(lines)


def _document(options: argparse.Namespace, tuned: Tuned) -> dict[str, Any]:
    return {
        "version": 1,
        "model": str(options.model),
        "output": str(options.output),
        "loss_before": tuned.before,
        "loss_after": tuned.after,
        "best_step": tuned.best,
        "history": [{"step": s, "loss": t if s else None, "held_out": h} for s, t, h in tuned.history],
        "held_out_samples": tuned.held,
        "sparse": list(tuned.sparse),
        "difference": tuned.difference,
        "seconds": tuned.seconds,
        "resumed_from": tuned.resumed,
    }
