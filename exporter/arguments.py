"""What the command line accepts: every command and option, with its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EXIT_CODES = """exit codes:
  0  done
  1  a goal, check or regression failed (budget out of reach, proof failed)
  2  usage (unknown option, value out of range, plan for another model, path not writable)
  3  model unsupported (not an ONNX file, truncated, nothing to prune, does not run)
  4  backend missing
  5  inconclusive (too noisy)
"""

Command = Callable[[argparse.Namespace], int]


def parser_for(functions: Mapping[str, Command]) -> argparse.ArgumentParser:
    """A parser that sets ``command`` to the function of the command that was named."""
    from exporter import __version__

    parser = argparse.ArgumentParser(
        prog="secateur",
        description="Prune ONNX files, and prove each result equal to its masked original before it is written.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_inspect(commands, functions["inspect"])
    _add_prune(commands, functions["prune"])
    _add_verify(commands, functions["verify"])
    _add_bench(commands, functions["bench"])
    _add_eval(commands, functions["eval"])
    _add_convert(commands, functions["convert"])
    return parser


def _command(commands: Any, name: str, function: Command, text: str) -> argparse.ArgumentParser:
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


def _add_io(parser: Any) -> None:
    parser.add_argument(
        "--io",
        action="append",
        default=[],
        metavar="GLOB:AXIS",
        help="let an axis of matching graph inputs and outputs shrink ('past_key*:1'), or the ids an integer input may "
        "hold ('input_ids:ids'); what calls the model must follow; repeatable",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE|-", help="write everything as JSON to a file, or to stdout for '-'")


def _add_inspect(commands: Any, function: Command) -> None:
    parser = _command(commands, "inspect", function, "List what can be removed from a model, and why the rest cannot.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    _add_io(parser)
    _add_shape(parser)
    _add_json(parser)


def _add_prune(commands: Any, function: Command) -> None:
    parser = _command(commands, "prune", function, "Remove units from a model, prove the result, and write it.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="the file to write")
    budget = parser.add_argument_group("budget (one of them, unless --layers or --plan is given)")
    budget.add_argument("--ratio", type=float, metavar="R", help="remove this share of the units")
    budget.add_argument("--macs", type=float, metavar="M", help="leave at most this share of the multiply-accumulates")
    budget.add_argument("--params", type=float, metavar="P", help="leave at most this share of the parameters")
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
        help="similarity of the residual stream with and without a block, on --inputs or seeded ones (default), "
        "magnitude (no run needed) or random",
    )
    choice.add_argument(
        "--score",
        metavar="NAME",
        help="l2 (default), l1, fpgm, lamp, random; with --calib also energy, flap, wanda and reconstruction (default "
        "there): how badly the layers that read a unit can do without it",
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
        help="make widths multiples of N; auto (default): 16 for convolutions, 8 for matrix products",
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
    _add_io(choice)
    choice.add_argument("--seed", type=int, default=0, metavar="N", help="for random scores")
    data = parser.add_argument_group("calibration (unlabelled inputs)")
    data.add_argument(
        "--calib",
        metavar="DATA",
        help="inputs to choose with, and to fit the layers that stay to: an .npz by input name, a folder of .npy, .npz "
        "or image files, or synthetic for made-up ones",
    )
    _add_preprocess(data)
    data.add_argument("--calib-samples", type=int, default=512, metavar="N", help="use at most N of them (512)")
    data.add_argument("--no-compensate", action="store_true", help="leave the weights that stay as they are")
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
        help="recorded inputs for the proof and for --layer-score, by input name",
    )
    proof.add_argument("--measure", action="store_true", help="time the result against the original in one paired run")
    _add_shape(parser)
    _add_json(parser)


def _add_verify(commands: Any, function: Command) -> None:
    parser = _command(
        commands, "verify", function, "Prove a pruned model equal to its original with the plan's units masked."
    )
    parser.add_argument("original", metavar="ORIGINAL", type=Path, help="the model before pruning")
    parser.add_argument("pruned", metavar="PRUNED", type=Path, help="the model after pruning")
    parser.add_argument(
        "--plan",
        metavar="P.json",
        type=Path,
        action="append",
        required=True,
        help="what was removed; repeat it for a model pruned several times, in order",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="accepted difference relative to the signal (1e-3)"
    )
    parser.add_argument("--inputs", metavar="FILE.npz", type=Path, help="recorded inputs, by input name")
    _add_json(parser)


def _add_bench(commands: Any, function: Command) -> None:
    parser = _command(commands, "bench", function, "Measure the latency of models, in turn in one run.")
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="+", help="the ONNX files")
    parser.add_argument("--backend", default="ort-cpu", metavar="NAME", help="ort-cpu (default)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads inside one operator (0: default)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time to sample each model (3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs")
    _add_shape(parser)
    _add_json(parser)


def _add_eval(commands: Any, function: Command) -> None:
    parser = _command(
        commands, "eval", function, "Judge a model's outputs on data: accuracy, or agreement with another."
    )
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
    _add_preprocess(parser)
    _add_json(parser)


def _add_preprocess(parser: Any) -> None:
    parser.add_argument(
        "--preprocess",
        metavar="K=V,...",
        help="what is done to image files and uint8 pixels: resize=256,crop=224,mean=0.485/0.456/0.406,"
        "std=0.229/0.224/0.225,scale=255,layout=NCHW,order=RGB, or none (default: this recipe at the input's size)",
    )


def _add_convert(commands: Any, function: Command) -> None:
    parser = _command(
        commands, "convert", function, "Write a PyTorch module as an ONNX file, and check one against the other."
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
