"""What a latency is measured on: the file itself, or an engine that is built from it and lies beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import TensorProto

from exporter.graph import Graph
from runtime import cuda
from runtime.engine.building import build_engine
from runtime.engine.flavour import PACKAGES
from runtime.engine.metadata import describe, metadata_file, values_of, write_engine
from runtime.engine.options import BuildOptions
from runtime.engine.profiles import Range
from runtime.gpu_state import BACKENDS
from runtime.runners import Asked

TENSOR_CORES = {"fp16": 8, "bf16": 8, "int8": 32, "fp8": 32}
"""Multiples of channels that tensor cores compute without padding; for sparse kernels, of input channels."""

_FP32 = 4
_KINDS: dict[int, str] = {
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}


@dataclass(frozen=True)
class Device:
    """What runs the models of a search.

    Attributes:
        asked: backend and sizes; of an engine all sizes are fixed, so that they are the same for every one.
        clock: what ``compare_models`` goes by.
        half: whether most weights are 16-bit numbers.
        least: multiples of widths that the device computes without padding, whatever its staircase says.
        engine: whether engines are built.
    """

    asked: Asked
    clock: str = "auto"
    half: bool = False
    least: int = _FP32
    engine: bool = False


def device_for(asked: Asked, graph: Graph) -> Device:
    """Describe a device.

    Args:
        asked: backend, threads and shapes.
        graph: the model that is pruned; its weights say in which precision a GPU computes.
    """
    if asked.backend not in BACKENDS:
        return Device(asked)
    sizes: dict[str, int] = {}
    for name in graph.trained:
        tensor = graph.constants[name]
        kind = _KINDS.get(tensor.data_type, "fp32")
        sizes[kind] = sizes.get(kind, 0) + math.prod(tensor.dims)
    precision = max(sizes, key=lambda kind: sizes[kind], default="fp32")
    half, least = precision in ("fp16", "bf16"), TENSOR_CORES.get(precision, _FP32)
    if asked.backend not in PACKAGES:
        return Device(asked, half=half, least=least)
    fixed = replace(asked, shapes=dict(graph.binding.shapes), options=replace(asked.options, threads=0))
    return Device(fixed, "device", half, least, engine=True)


def runnable(file: Path, device: Device, step: Callable[[str], None]) -> Path:
    """The file to measure: the ONNX file, or an engine of it in the same folder.

    Args:
        file: the ONNX file.
        device: what is to run it.
        step: called with a line before each step.

    Raises:
        CannotBuild: TensorRT refuses the model.
    """
    if not device.engine:
        return file
    shapes: dict[str, tuple[Range, ...]] = {
        name: (Range(shape, shape, shape),) for name, shape in (device.asked.shapes or {}).items()
    }
    built = build_engine(file, device.asked.backend, BuildOptions(shapes=shapes), progress=step)
    target = file.with_suffix(".engine")
    command = f"secateur build {file} -o {target} --backend {device.asked.backend}"
    write_engine(target, built, describe(built, file, command, cuda.gpu(), values=values_of(file)))
    return target


def discard(file: Path) -> None:
    """Remove a model and the engine that was made of it."""
    engine = file.with_suffix(".engine")
    for each in (file, engine, metadata_file(engine)):
        each.unlink(missing_ok=True)
