"""``secateur convert``: a PyTorch module as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress
from exporter.commands.options import command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "convert", run, "Write a PyTorch module as an ONNX file, and check one against the other."
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


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.convert import convert
    from exporter.tables import quantity
    from exporter.torch_source import load_module, load_weights, parse_dynamic, parse_inputs

    progress = Progress(options.quiet)
    inputs = parse_inputs(options.input)
    dynamic = parse_dynamic(options.dynamic)
    module = load_module(options.source)
    if options.weights:
        load_weights(module, options.weights)
    progress("exporting and checking")
    result = convert(
        module, inputs, options.output, dynamic=dynamic, output_names=options.output_name, opset=options.opset
    )
    size = quantity(result.path.stat().st_size)
    error = f"max relative error {result.max_relative_error:.2g} against PyTorch"
    print(f"{result.path}: {size}B, opset {result.opset}, {error}")
    return 0
