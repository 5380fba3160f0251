"""From an ONNX file to an engine beside its description: convert, build, look at what came out, write."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from exporter.atomic import obstacle, scratch
from exporter.errors import ModelError, UsageError
from exporter.precision.converting import Converted, convert_precision
from exporter.validity import check_weights
from runtime import cuda
from runtime.engine.building import Built, build_engine
from runtime.engine.faults import CannotBuild, Fault
from runtime.engine.flavour import load_flavour
from runtime.engine.inspection import EngineLayer
from runtime.engine.loading import look_into
from runtime.engine.metadata import describe, values_of, write_engine
from runtime.engine.options import BuildOptions
from runtime.engine.quantized import quantized_types
from runtime.errors import RunError
from runtime.images import Preprocess
from runtime.model_files import near

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
_TYPES = re.compile(r"\btypes?\b|\bhalf\b|float16|fp16|bf16|bfloat|implementation", re.IGNORECASE)
_CODES = {"int8": ("int8", "int4"), "fp8": ("float8e4m3fn", "float8e5m2")}


@dataclass(frozen=True)
class Engine:
    """An engine that was written.

    Attributes:
        source: the ONNX file.
        path: of the engine.
        precision: as asked for.
        built: how it was built.
        converted: how the file was brought to half precision; None where it was built as it is.
        layers: what the engine holds after fusion; None where it cannot be loaded here.
        memory: bytes of device memory it needs besides its weights; None where layers are.
        device: the GPU of this machine.
        nodes: nodes of the file.
        unseen: why layers and memory are not known; empty where they are.
    """

    source: Path
    path: Path
    precision: str
    built: Built
    converted: Converted | None
    layers: tuple[EngineLayer, ...] | None
    memory: int | None
    device: cuda.Gpu | None
    nodes: int
    unseen: str = ""


def make_engine(
    source: Path,
    target: Path,
    backend: str,
    precision: str = "fp32",
    options: BuildOptions | None = None,
    *,
    calib: str | None = None,
    preprocess: Preprocess | None = None,
    keep: Sequence[str] = (),
    keep_io: bool = True,
    max_error: float | None = None,
    arguments: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Engine:
    """Build an engine and write it with its description.

    Args:
        source: the ONNX file.
        target: the engine to write.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        precision: fp16 and bf16 convert an fp32 file; int8 and fp8 need one that is quantized; fp32 takes the file as
            it is.
        options: sizes, sparsity and the rest.
        calib: inputs that show which nodes overflow, see ``convert_precision``.
        preprocess: for images and pixels among them.
        keep: globs of what stays in fp32.
        keep_io: inputs and outputs stay in fp32.
        max_error: see ``convert_precision``.
        arguments: of the command line, for the description.
        progress: called with a line before each step.

    Raises:
        UsageError: an option does not fit, or the target cannot be written.
        ModelError: the file is damaged, or its weights are not there.
        CannotBuild: TensorRT refuses the model.
        BackendMissing: TensorRT is not installed.
    """
    options = options or BuildOptions()
    load_flavour(backend)  # before minutes are spent on anything else
    check_precision(precision)
    why = obstacle(target)
    if why:
        raise UsageError(f"{target} cannot be written: {why}.")
    if target.absolute() == source.absolute():
        raise UsageError(f"-o {target} is the model itself.")
    if precision in ("fp16", "bf16") and options.strip:
        raise UsageError(
            f"--strip: the weights come back from {source}, and --precision {precision} converts them. Convert the "
            f"file first: secateur convert {source} --precision {precision} -o HALF.onnx, then build that."
        )
    _check_source(precision, source)
    if precision not in ("fp16", "bf16"):
        built = build_engine(source, backend, options, called=str(source), progress=progress)
        return _written(source, target, precision, built, None, arguments)
    shapes = {name: ranges[0].best for name, ranges in options.shapes.items()}
    refused: list[str] = []
    with scratch() as folder:
        file = folder / source.name
        while True:
            converted = convert_precision(
                source,
                file,
                precision,
                calib=calib,
                preprocess=preprocess,
                keep=keep,
                refused=refused,
                keep_io=keep_io,
                max_error=max_error,
                shapes=shapes,
                progress=progress,
            )
            try:
                built = build_engine(file, backend, options, called=str(source), progress=progress)
                break
            except CannotBuild as error:
                more = _of_other_types(error.faults, refused)
                if not more:
                    raise
                refused += more
    return _written(source, target, precision, built, converted, arguments)


def check_precision(precision: str) -> None:
    """Refuse a precision that no engine has with a UsageError."""
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: choose from {', '.join(PRECISIONS)}.")


def _of_other_types(faults: Sequence[Fault], known: Sequence[str]) -> list[str]:
    """Nodes, or operators of nodes without a name, that TensorRT has no half precision for although ONNX does."""
    named = (fault.node or fault.operator for fault in faults if _TYPES.search(fault.reason))
    return [name for name in dict.fromkeys(named) if name and name not in known]


def _check_source(precision: str, source: Path) -> None:
    """Its weights must be there, inside its folder, and of int8 or fp8 for engines that compute with these."""
    if not source.is_file():
        raise UsageError(f"{source}: no such file.{near(source)}")
    try:
        model = onnx.load(source, load_external_data=False)
    except Exception as error:  # protobuf raises its own classes, and others for a name that is no text
        raise ModelError(f"{source} is not an ONNX file, or it is truncated.") from error
    check_weights(model, source.parent)  # TensorRT's parser says little of it, and reads whatever the file names
    if precision not in _CODES:
        return
    held = quantized_types(model)
    if not held.intersection(_CODES[precision]):
        what = f"it holds {', '.join(sorted(held))}" if held else "it is not quantized"
        raise ModelError(
            f"--precision {precision}: {source} has no {precision} numbers to compute with: {what}.\n"
            "Nothing was written. "
            f"Quantize it first, with: secateur quantize {source} -o QUANTIZED.onnx, or with any tool that writes "
            "QuantizeLinear and DequantizeLinear, symmetric."
        )


def _written(
    source: Path, target: Path, precision: str, built: Built, converted: Converted | None, arguments: Sequence[str]
) -> Engine:
    device = cuda.gpu()
    command = shlex.join(["secateur", *arguments])
    model = onnx.load(source, load_external_data=False)
    description = describe(built, source, command, device, precision=precision, values=values_of(source))
    try:
        write_engine(target, built, description)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}.") from error
    layers, memory, unseen = None, None, "TensorRT tells them only with a GPU and its driver at hand"
    if device is not None:
        try:
            (layers, memory), unseen = look_into(built), ""
        except RunError as error:  # built for another GPU, or a later version
            unseen = str(error)
    nodes = len(model.graph.node)
    return Engine(source, target, precision, built, converted, layers, memory, device, nodes, unseen)


__all__ = ["PRECISIONS", "Engine", "make_engine"]
