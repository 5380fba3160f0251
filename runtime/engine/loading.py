"""Engines in memory: deserialized, given their weights back, and looked into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from runtime.backends.protocol import TensorSpec
from runtime.engine.building import Built
from runtime.engine.flavour import Flavour, load_flavour
from runtime.engine.inspection import EngineLayer, layers_of
from runtime.engine.log import captured, logger_of, telling
from runtime.errors import RunError

_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
    "FP8": ml_dtypes.float8_e4m3fn,
}


@dataclass(frozen=True)
class Loaded:
    """An engine that can make contexts.

    Attributes:
        flavour: what runs it.
        runtime: has to live as long as the engine.
        engine: TensorRT's object.
        inputs, outputs: signature; -1 in TensorRT is None here.
    """

    flavour: Flavour
    runtime: Any
    engine: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def memory(self) -> int | None:
        """Bytes of device memory a context takes at the largest sizes, None where this version does not say."""
        for name in ("device_memory_size_v2", "device_memory_size"):
            found = getattr(self.engine, name, None)
            if found is not None:
                return int(found)
        return None


def deserialize(
    flavour: Flavour, data: bytes, what: str, weights: Path | None = None, host_code: bool = False
) -> Loaded:
    """Load an engine onto the GPU.

    Args:
        flavour: what runs it.
        data: the engine.
        what: how messages call it.
        weights: the ONNX file an engine without weights gets them back from.
        host_code: let the engine bring code for the host: the runtime that version-compatible engines carry.

    Raises:
        RunError: it is no engine, or of another version, flavour or GPU.
    """
    trt = flavour.module
    with captured() as log:
        runtime = trt.Runtime(logger_of(flavour))
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            said = [m.text for m in telling(log, "error")]
            raise RunError(
                f"{what}: {flavour.title} does not load it: {said[0] if said else 'it does not say why'}\n"
                "It may be of another version, GPU or flavour; build it again with: secateur build MODEL.onnx -o ENGINE"
            )
        if weights is not None:
            refit(flavour, engine, weights)
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    given = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
    specs = {n: _spec(engine, n) for n in names}
    return Loaded(
        flavour,
        runtime,
        engine,
        tuple(specs[n] for n in names if given[n]),
        tuple(specs[n] for n in names if not given[n]),
    )


def refit(flavour: Flavour, engine: Any, weights: Path) -> None:
    """Give an engine the weights of an ONNX file.

    Raises:
        RunError: they do not fit.
    """
    trt, logger = flavour.module, logger_of(flavour)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise RunError(f"the weights of {weights} do not fit the engine; build it again.")


def _spec(engine: Any, name: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    dtype = np.dtype(_DTYPES[kind]) if kind in _DTYPES else None
    return TensorSpec(name, dtype, tuple(int(d) if d >= 0 else None for d in engine.get_tensor_shape(name)))


def look_into(built: Built) -> tuple[tuple[EngineLayer, ...], int | None]:
    """Layers of an engine after fusion, and the bytes of device memory it needs.

    Raises:
        RunError: it does not load here.
    """
    flavour = load_flavour(built.flavour)
    loaded = deserialize(flavour, built.engine, "the engine", host_code=built.options.version_compatible)
    return tuple(inspect_engine(loaded)), loaded.memory


def inspect_engine(loaded: Loaded) -> list[EngineLayer]:
    """Layers of an engine after fusion, in order."""
    inspector = loaded.engine.create_engine_inspector()
    text: str = inspector.get_engine_information(loaded.flavour.module.LayerInformationFormat.JSON)
    return layers_of(text)


def profile_recorder(flavour: Flavour, take: Callable[[str, float], None]) -> Any:
    """An ``IProfiler`` that hands on the name and seconds of every layer of a run."""
    base: Any = flavour.module.IProfiler

    class Recorder(base):  # type: ignore[misc]  # the base is known only at run time
        """Hands every time on."""

        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Called by TensorRT after a run."""
            take(layer_name, ms / 1e3)

    return Recorder()
