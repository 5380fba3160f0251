"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from exporter.commands.targets import check_targets
from exporter.commands.values import check_values

EXIT_CODES = """exit codes:
  0  done
  1  a goal, check or regression failed (budget out of reach, proof failed)
  2  usage (unknown option, value out of range, plan for another model, path not writable)
  3  model unsupported (not an ONNX file, truncated, nothing to prune, does not run)
  4  backend missing
  5  inconclusive (too noisy)
"""

_CUSTOM_OPS = frozenset(
    "inspect advise sensitivity prune sparsify verify eval bench compare profile lint align convert quantize".split()  # noqa: SIM905
) | {"run", "sweep"}
"""Commands that run models with ONNX Runtime in ways that custom operators can go."""

Command = Callable[[argparse.Namespace], int]


Check = Callable[[argparse.Namespace], None]


def command(commands: Any, name: str, run: Command, text: str, check: Check | None = None) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: what ``add_subparsers`` gave.
        name: of the command.
        run: carries it out; returns the exit code.
        text: what it does.
        check: refuses values out of range and options that do not go together, without reading a file. It is called
            before ``run``, and when a recipe is read.
    """

    def checked(options: argparse.Namespace) -> None:
        check_targets(options)
        check_values(options)
        if check is not None:
            check(options)

    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=run, check=checked, parser=parser)
    parser.add_argument("--quiet", "-q", action="store_true", help="nothing on stderr but errors")
    parser.add_argument(
        "--as-step", action="store_true", help="print this as a step for 'secateur run', and do nothing"
    )
    if name in _CUSTOM_OPS:
        parser.add_argument(
            "--custom-ops",
            action="append",
            default=[],
            metavar="LIB",
            help="shared library with custom operators of the model, for ONNX Runtime; its code is run; repeatable",
        )
    return parser


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add sizes of dynamic axes."""
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME:1x3x224x224",
        help="size of an input with dynamic axes, for costs and runs (the written file stays dynamic); repeatable",
    )


def add_io(parser: Any) -> None:
    """Add axes of the interface that may shrink."""
    parser.add_argument(
        "--io",
        action="append",
        default=[],
        metavar="GLOB:AXIS",
        help="let an axis of matching graph inputs and outputs shrink ('past_key*:1'), or the ids an integer input may "
        "hold ('input_ids:ids'); what calls the model must follow; repeatable",
    )


def kinds_of(options: argparse.Namespace) -> list[str] | None:
    """The kinds of groups that ``--granularity`` lists; None where it is left out."""
    return [k.strip() for k in options.granularity.split(",")] if options.granularity else None


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the JSON report."""
    parser.add_argument("--json", metavar="FILE|-", help="write everything as JSON to a file, or to stdout for '-'")


def add_cache(parser: Any) -> None:
    """Add whether what is predicted is kept."""
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="compute predictions anew, and keep neither these nor what a killed run would go on from "
        "($XDG_CACHE_HOME/secateur, by default ~/.cache/secateur)",
    )


def add_preprocess(parser: Any) -> None:
    """Add what is done to images."""
    parser.add_argument(
        "--preprocess",
        metavar="K=V,...",
        help="what is done to image files and uint8 pixels: resize=256,crop=224,mean=0.485/0.456/0.406,"
        "std=0.229/0.224/0.225,scale=255,layout=NCHW,order=RGB, or none (default: this recipe at the input's size)",
    )


def add_half(group: Any) -> None:
    """Add what guards a conversion to half precision."""
    group.add_argument(
        "--calib",
        metavar="DATA",
        help="inputs that show which nodes overflow: an .npz by input name, a folder of arrays or images (default: "
        "some made up)",
    )
    add_preprocess(group)
    group.add_argument(
        "--keep-fp32", action="append", default=[], metavar="GLOB", help="nodes or operators to leave in fp32"
    )
    group.add_argument(
        "--max-error",
        type=float,
        metavar="E",
        help="most the outputs may differ, as a share of their standard deviation; the nodes that do most to them stay "
        "in fp32 until they do not",
    )
