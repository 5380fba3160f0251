"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import Array, Session, SessionOptions, TensorSpec, backend
from runtime.errors import BackendMissing, RunError

_DTYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
}


def _spec(argument: Any) -> TensorSpec:
    kind = argument.type
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else ""
    dtype = np.dtype(_DTYPES[inner]) if inner in _DTYPES else None
    shape = tuple(d if isinstance(d, (int, str)) else None for d in argument.shape)
    return TensorSpec(argument.name, dtype, shape)


class OrtSession:
    """A session of ONNX Runtime's CPU provider."""

    def __init__(self, model: Path | bytes, options: SessionOptions) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.log_severity_level = 4  # failures come back as exceptions; the log would repeat them
        settings.intra_op_num_threads = options.threads
        if not options.spinning:
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not options.optimize:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the binding raises a dozen unrelated classes
            raise RunError(f"ONNX Runtime {ort.__version__} refuses the model: {_first_line(error)}") from error
        self.inputs = tuple(_spec(i) for i in self._session.get_inputs())
        self.outputs = tuple(_spec(o) for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; outputs by name."""
        names = list(outputs) if outputs is not None else [o.name for o in self.outputs]
        if not names:  # ONNX Runtime would return all
            return {}
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise RunError(f"ONNX Runtime failed to run the model: {_first_line(error)}") from error

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Bind the inputs once; the returned call has the least overhead ONNX Runtime offers from Python."""
        binding = self._session.io_binding()
        try:
            for name, value in feeds.items():
                binding.bind_cpu_input(name, np.asarray(value, order="C"))
            for output in self.outputs:
                binding.bind_output(output.name)
        except Exception as error:
            raise RunError(f"ONNX Runtime cannot bind the inputs: {_first_line(error)}") from error
        run, alive = self._session.run_with_iobinding, dict(feeds)

        def call(_alive: object = alive) -> None:  # the binding points into these arrays
            try:
                run(binding)
            except Exception as error:
                raise RunError(f"ONNX Runtime failed to run the model: {_first_line(error)}") from error

        return call


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@backend("ort-cpu")
def open_ort_cpu(model: Path | bytes, options: SessionOptions) -> Session:
    """Open a model on ONNX Runtime's CPU provider."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise BackendMissing("backend ort-cpu needs ONNX Runtime: pip install onnxruntime") from error
    return OrtSession(model, options)
