"""``secateur convert``: a PyTorch module as an ONNX file, or an ONNX file in half precision or with fixed inputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver
from exporter.commands.options import add_half, add_json, add_shape, command

_OF_PRECISION = ("calib", "preprocess", "keep_fp32", "keep_io", "max_error")


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "convert",
        run,
        "Write a PyTorch module as an ONNX file, or an ONNX file in half precision or with inputs that are fixed, and "
        "check one against the other.",
        _check,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="package.module:callable or file.py:callable that returns a torch.nn.Module; a .pt2 file of "
        "torch.export.save; a TorchScript file; a Hugging Face folder; or an ONNX file",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME:1x3x224x224[:dtype]",
        help="name, shape and type (float32) of an input, in the module's order; repeatable. A .pt2 file knows "
        "its own; a Hugging Face folder takes ids and a mask, or pixels, unless told otherwise",
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
    parser.add_argument(
        "--for-pruning",
        action="store_true",
        help="leave out torch's optimisations: parameters keep their names, normalisations stay apart, equal tensors "
        "are not merged (those of TorchScript are, always), tied weights are one",
    )
    fixed = parser.add_argument_group("an ONNX file whose inputs will not change")
    fixed.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="NAME:1x3x224x224|NAME=16000",
        help="make sizes of an input part of the file, or a value (a number, true, false or an .npy file): the input "
        "goes then; or one size, by the axis' name or as INPUT:AXIS (batch=1, image:0=1). Branches are decided and "
        "what follows is computed; repeatable",
    )
    half = parser.add_argument_group("an fp32 ONNX file in half precision")
    half.add_argument("--precision", metavar="NAME", help="fp16 or bf16; nodes whose numbers do not fit stay in fp32")
    add_half(half)
    half.add_argument("--keep-io", action="store_true", help="inputs and outputs stay in fp32")
    add_shape(parser)
    add_json(parser)


def _check(options: argparse.Namespace) -> None:
    """Refuse what is for another kind of source, or out of range."""
    from exporter.errors import UsageError
    from exporter.torch_source import look_for_torch, parse_dynamic, parse_specs

    if _onnx(options):
        _check_file(options)
        return
    for name in ("fix", "precision", "shape", *_OF_PRECISION):
        if getattr(options, name):
            raise UsageError(f"{_flag(name)} is for ONNX files; convert the module first, then its file.")
    if options.weights and not options.source.rpartition(":")[0]:
        raise UsageError(f"--weights is for package.module:callable; {options.source} holds its own.")
    parse_specs(options.input)
    parse_dynamic(options.dynamic)
    look_for_torch()


def _check_file(options: argparse.Namespace) -> None:
    from exporter.errors import UsageError
    from exporter.fixing import parse_fixes
    from exporter.precision.converting import check_precision

    for name in ("input", "weights", "dynamic", "output_name", "opset", "for_pruning"):
        if getattr(options, name):
            raise UsageError(f"{_flag(name)} is for PyTorch modules, {options.source} is an ONNX file.")
    if options.fix:
        for name in ("precision", *_OF_PRECISION):
            if getattr(options, name):
                raise UsageError(
                    f"{_flag(name)} and --fix are two steps: fix the inputs first, then convert what came of it."
                )
        parse_fixes(options.fix)
        return
    if options.precision is None:
        raise UsageError(
            f"{options.source} is an ONNX file: say what it should become, with --precision fp16 or bf16, or what of "
            "its inputs will not change, with --fix NAME:1x3x224x224."
        )
    check_precision(options.precision)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _onnx(options: argparse.Namespace) -> bool:
    return bool(options.source.endswith(".onnx"))


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.convert import convert
    from exporter.tables import quantity
    from exporter.torch_files import folder_notes, load_source, signature
    from exporter.torch_source import load_weights, parse_dynamic, parse_inputs

    if _onnx(options):
        return _fix(options) if options.fix else _halve(options)
    progress = Progress(options)
    inputs = parse_inputs(options.input) if options.input else {}
    dynamic = parse_dynamic(options.dynamic)
    module = load_source(options.source)
    if options.weights:
        load_weights(module, options.weights)
    folder = Path(options.source)
    asked = signature(module, inputs, dynamic, from_folder=folder.is_dir())
    progress("exporting and checking")
    result = convert(
        module,
        asked.inputs,
        options.output,
        dynamic=asked.dynamic,
        output_names=options.output_name or asked.output_names,
        opset=options.opset,
        by_name=asked.by_name,
        for_pruning=options.for_pruning,
    )
    notes = [*(folder_notes(folder) if folder.is_dir() else ()), *result.notes]
    size, error = result.path.stat().st_size, result.max_relative_error
    document = {
        "version": 1, "source": options.source, "path": str(result.path), "opset": result.opset, "bytes": size,
        "max_relative_error": error, "notes": notes,
    }  # fmt: skip
    line = f"{result.path}: {quantity(size)}B, opset {result.opset}, max relative error {error:.2g} against PyTorch"
    return deliver(options, lambda: document, lambda: "\n".join([line, *(f"note: {note}" for note in notes)]))


def _halve(options: argparse.Namespace) -> int:
    from exporter.engines.report import converted_json, converted_text
    from exporter.precision.converting import convert_precision
    from exporter.tables import quantity
    from runtime.feeds import parse_shapes
    from runtime.images import parse_preprocess

    found = convert_precision(
        options.source,
        options.output,
        options.precision,
        calib=options.calib,
        preprocess=parse_preprocess(options.preprocess) if options.preprocess else None,
        keep=options.keep_fp32,
        keep_io=options.keep_io,
        max_error=options.max_error,
        shapes=parse_shapes(options.shape),
        progress=Progress(options),
    )
    size = f"{options.output}: {quantity(found.after)}B (before: {quantity(found.before)}B)"
    return deliver(options, lambda: converted_json(found), lambda: f"{converted_text(found)}\n{size}")


def _fix(options: argparse.Namespace) -> int:
    from exporter.fixing import fix_inputs, parse_fixes
    from exporter.fixing.report import fixed_json, fixed_text
    from runtime.feeds import parse_shapes

    shapes = parse_shapes(options.shape)
    fixes = parse_fixes(options.fix)
    found = fix_inputs(options.source, options.output, fixes, shapes=shapes, progress=Progress(options))
    return deliver(options, lambda: fixed_json(found, options.source), lambda: fixed_text(found))
