"""``secateur build``: a TensorRT engine from an ONNX file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_half, add_json, command

if TYPE_CHECKING:
    from runtime.engine.options import BuildOptions

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "build", run, "Build a TensorRT engine from an ONNX file, and say what came of it.", _check
    )
    parser.set_defaults(apart="TensorRT")
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="ENGINE", type=Path, required=True, help="the engine to write")
    parser.add_argument(
        "--backend",
        default="tensorrt",
        metavar="NAME",
        help="tensorrt (default; needs the GPU it builds for), or tensorrt-rtx (for RTX GPUs; builds anywhere)",
    )
    parser.add_argument(
        "--shape",
        dest="ranges",
        action="append",
        default=[],
        metavar="NAME:MIN..OPT..MAX",
        help="range of sizes of an input with dynamic axes, such as image:1x3x224x224..8x3x224x224..32x3x224x224, or "
        "one size for all three; repeatable, and several times for one input makes as many profiles (default: ranges "
        "that the model's shapes allow)",
    )
    numbers = parser.add_argument_group("precision (lives in the network: fp16 and bf16 convert the file first)")
    numbers.add_argument(
        "--precision",
        default="fp32",
        metavar="NAME",
        help="fp32: the file's own types (default); fp16, bf16: converted; int8, fp8: the file has to be quantized",
    )
    add_half(numbers)
    numbers.add_argument("--half-io", action="store_true", help="inputs and outputs are half precision too")
    numbers.add_argument("--no-tf32", action="store_true", help="fp32 layers multiply in full fp32")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--sparse", action="store_true", help="allow sparse kernels where weights are 2:4")
    engine.add_argument("--workspace", type=size, metavar="SIZE", help="most scratch memory of a layer: 512M, 4G")
    engine.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="read and write kernel timings, for quicker rebuilds"
    )
    engine.add_argument("--level", type=int, metavar="N", help="optimisation level, 0 (quick) to 5 (thorough)")
    engine.add_argument(
        "--version-compatible", action="store_true", help="loads in later versions of the same major version"
    )
    engine.add_argument(
        "--hardware",
        default="none",
        metavar="NAME",
        help="other GPUs it runs on: none (default), ampere+, same-capability",
    )
    engine.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="N",
        help="compute capability to build for (tensorrt-rtx): 86, 120, or current; repeatable",
    )
    engine.add_argument("--refit", action="store_true", help="its weights can be replaced")
    engine.add_argument(
        "--strip", action="store_true", help="leave the weights out; they are put back when it is loaded"
    )
    parser.add_argument(
        "--log", default="", metavar="LEVEL", help="print TensorRT's log: error, warning, info or verbose"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.engines.maker import make_engine
    from exporter.engines.report import engine_json, engine_text
    from runtime.images import parse_preprocess

    asked = _asked(options)
    made = make_engine(
        options.model,
        options.output,
        options.backend,
        options.precision,
        asked,
        calib=options.calib,
        preprocess=parse_preprocess(options.preprocess) if options.preprocess else None,
        keep=options.keep_fp32,
        keep_io=not options.half_io,
        max_error=options.max_error,
        arguments=again(options),
        progress=Progress(options),
    )
    return deliver(options, lambda: engine_json(made), lambda: engine_text(made, options.log))


def _check(options: argparse.Namespace) -> None:
    from exporter.engines.maker import check_precision
    from exporter.errors import UsageError
    from runtime.engine.flavour import check_flavour
    from runtime.engine.log import LEVELS

    check_flavour(options.backend)
    check_precision(options.precision)
    if options.precision not in ("fp16", "bf16"):
        _refuse_conversion(options)
    if options.log and options.log not in LEVELS:
        raise UsageError(f"--log {options.log}: choose from {', '.join(LEVELS)}.")
    _asked(options)


def _refuse_conversion(options: argparse.Namespace) -> None:
    """Refuse what says how a file is converted, where none is."""
    from exporter.errors import UsageError

    given = {
        "--calib": options.calib is not None,
        "--preprocess": options.preprocess is not None,
        "--keep-fp32": bool(options.keep_fp32),
        "--max-error": options.max_error is not None,
        "--half-io": options.half_io,
    }
    for flag, is_given in given.items():
        if is_given:
            raise UsageError(f"{flag} goes with --precision fp16 or bf16, which converts.")


def _asked(options: argparse.Namespace) -> BuildOptions:
    from runtime.engine.options import BuildOptions
    from runtime.engine.profiles import parse_ranges

    return BuildOptions(
        sparse=options.sparse,
        shapes=parse_ranges(options.ranges),
        workspace=options.workspace,
        timing_cache=options.timing_cache,
        level=options.level,
        version_compatible=options.version_compatible,
        hardware=options.hardware,
        refit=options.refit,
        strip=options.strip,
        capabilities=tuple(options.capability),
        tf32=not options.no_tf32,
    )


def size(text: str) -> int:
    """Read ``512M`` or ``4G``; for argparse."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)i?b?", text.strip().lower())
    if found is None or float(found.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M or 4G")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def _from_anywhere(data: str) -> str:
    """Data by their full path; made-up ones are called as before."""
    from runtime.parts import split_part

    file, part = split_part(Path(data))
    return f"{file.absolute()}{f':{part}' if part else ''}" if file.exists() else data


def again(options: argparse.Namespace) -> list[str]:
    """The arguments that build the same engine, with full paths."""
    line = ["build", str(options.model.absolute()), "-o", str(options.output.absolute()), "--backend", options.backend]
    for name in ("precision", "calib", "preprocess", "max_error", "workspace", "timing_cache", "level", "hardware"):
        value = getattr(options, name)
        if value is not None and (name, value) not in (("precision", "fp32"), ("hardware", "none")):
            text = str(Path(value).absolute()) if name == "timing_cache" else str(value)
            line += [f"--{name.replace('_', '-')}", _from_anywhere(text) if name == "calib" else text]
    for name, values in (
        ("shape", options.ranges),
        ("keep-fp32", options.keep_fp32),
        ("capability", options.capability),
    ):
        for value in values:
            line += [f"--{name}", value]
    for name in ("half_io", "no_tf32", "sparse", "version_compatible", "refit", "strip"):
        if getattr(options, name):
            line.append(f"--{name.replace('_', '-')}")
    return line
