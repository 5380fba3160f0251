"""ONNX Runtime, on any of its execution providers."""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.custom_ops import register_custom_ops
from runtime.backends.maps import Keys, as_array, keys_in, numbers_in
from runtime.backends.protocol import Array, Availability, Session, SessionOptions, TensorSpec, backend
from runtime.backends.unwanted import unwanted_optimizers
from runtime.errors import BackendMissing, BadRequest, NoMemory, Refused, RunError

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

_OTHER_SHAPE = ("Invalid rank for output", "Got invalid dimensions for output")
"""What it says of an output of the run before, where the file declares other axes or sizes than outputs have."""


@dataclass(frozen=True)
class Provider:
    """One execution provider as a backend.

    Attributes:
        provider: ONNX Runtime's name of it.
        device: what it runs on.
        install: the line that adds it.
        memory: where I/O binding keeps tensors, as ONNX Runtime calls it.
        capture: its option that records and replays the run; empty where it has none.
        rest: the provider that takes what this one leaves, where it is there, before the CPU does.
    """

    provider: str
    device: str
    install: str
    memory: str = "cpu"
    capture: str = ""
    rest: str = ""


_INSTALL_CUDA = 'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]"'
"""Both packages bring the module ``onnxruntime``: one has to go."""

PROVIDERS = {
    "ort-cpu": Provider("CPUExecutionProvider", "CPU", "pip install onnxruntime"),
    "ort-cuda": Provider("CUDAExecutionProvider", "NVIDIA GPU", _INSTALL_CUDA, "cuda", "enable_cuda_graph"),
    "ort-tensorrt": Provider(
        "TensorrtExecutionProvider",
        "NVIDIA GPU",
        f"{_INSTALL_CUDA} tensorrt",
        "cuda",
        "trt_cuda_graph_enable",
        "CUDAExecutionProvider",
    ),
    "ort-nv-tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "NVIDIA RTX GPU",
        "pip install onnxruntime-trt-rtx (where there is one), or an ONNX Runtime built with --use_nv_tensorrt_rtx",
        "cuda",
        "enable_cuda_graph",
        "CUDAExecutionProvider",
    ),
    "ort-openvino": Provider("OpenVINOExecutionProvider", "Intel CPU, GPU or NPU", "pip install onnxruntime-openvino"),
    "ort-directml": Provider("DmlExecutionProvider", "GPU (Windows)", "pip install onnxruntime-directml", "dml"),
    "ort-migraphx": Provider("MIGraphXExecutionProvider", "AMD GPU", "pip install onnxruntime-migraphx"),
    "ort-qnn": Provider("QNNExecutionProvider", "Qualcomm NPU", "pip install onnxruntime-qnn"),
    "ort-coreml": Provider("CoreMLExecutionProvider", "Apple GPU or NPU", "pip install onnxruntime (on macOS)"),
    "ort-xnnpack": Provider("XnnpackExecutionProvider", "CPU", "an ONNX Runtime built with --use_xnnpack"),
}
"""Those that packages on PyPI offer, and XNNPACK, which needs a build of one's own."""


def _spec(argument: Any, keys: Mapping[str, Keys] | None = None) -> TensorSpec:
    kind = argument.type
    if numbers_in(kind):
        classes = (keys or {}).get(argument.name, ())
        return TensorSpec(argument.name, np.dtype(_DTYPES[numbers_in(kind)]), (None, len(classes) or None), classes)
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else ""
    dtype = np.dtype(_DTYPES[inner]) if inner in _DTYPES else None
    shape = tuple(d if isinstance(d, (int, str)) else None for d in argument.shape)
    return TensorSpec(argument.name, dtype, shape)


class OrtSession:
    """A session of ONNX Runtime on one execution provider, with the CPU for what that one cannot run."""

    def __init__(self, model: Path | bytes, options: SessionOptions, name: str = "ort-cpu") -> None:
        import onnxruntime as ort

        self._about, self._options = PROVIDERS[name], options
        provider: Any = self._about.provider
        if options.capture:
            if not self._about.capture:
                able = ", ".join(n for n, p in PROVIDERS.items() if p.capture)
                raise BadRequest(f"--capture: {name} cannot record its runs; {able} can.")
            provider = (provider, {self._about.capture: "1"})
        said = _load_cuda(ort) if self._about.memory == "cuda" else ""
        others = (self._about.rest, "CPUExecutionProvider") if name != "ort-cpu" else ()
        providers = [provider, *(other for other in others if other in ort.get_available_providers())]
        settings = _settings(ort, options)
        register_custom_ops(settings)
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), settings, providers=providers,
                disabled_optimizers=unwanted_optimizers(model, options),
                enable_fallback=False,  # it tries again with other providers, and says so on the standard output
            )  # fmt: skip
            self.inputs = tuple(_spec(i) for i in self._session.get_inputs())  # which fails where a name is no UTF-8
            made = self._session.get_outputs()
            self._maps = frozenset(o.name for o in made if numbers_in(o.type))
            keys = keys_in(model) if self._maps else {}
            self.outputs = tuple(_spec(o, keys) for o in made)
        except Exception as error:  # the binding raises a dozen unrelated classes
            line = _first_line(error)
            if _lacks_memory(line):
                raise NoMemory(f"no memory is left for the model: {line}") from error
            fix = next((told for words, told in _FIXES.items() if words in line), "")
            raise Refused(f"ONNX Runtime {ort.__version__} refuses the model: {line}{fix}") from error
        if self._about.provider not in self._session.get_providers():  # it falls back without a word
            raise BackendMissing(
                f"backend {name}: ONNX Runtime offers {self._about.provider}, but it does not start on this machine "
                f"(no {self._about.device}, or no driver or library for it).{said}"
            )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; outputs by name."""
        names = list(outputs) if outputs is not None else [o.name for o in self.outputs]
        if not names:  # ONNX Runtime would return all
            return {}
        try:
            with _stopped_after(self._options.seconds, replay=not self._options.capture) as settings:
                found = dict(zip(names, self._session.run(names, dict(feeds), settings), strict=True))
        except Exception as error:
            raise _failed(error) from error
        for spec in self.outputs if self._maps else ():
            if spec.name in self._maps and spec.name in found and spec.dtype is not None:
                found[spec.name] = as_array(found[spec.name], spec.classes, spec.dtype)
        return found

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Bind the inputs once; the returned call has the least overhead ONNX Runtime offers from Python.

        Text cannot be bound.
        """
        if not self._options.binding or any(np.asarray(value).dtype.kind == "O" for value in feeds.values()):
            return self._unbound(dict(feeds))
        binding, alive = self._session.io_binding(), [dict(feeds)]
        on_device = self._about.memory != "cpu"
        try:
            for name, value in feeds.items():
                array = np.asarray(value, order="C")
                if on_device:
                    alive.append({name: self._moved(array)})
                    binding.bind_ortvalue_input(name, alive[-1][name])
                else:
                    binding.bind_cpu_input(name, array)
            self._bind_outputs(binding)
            if on_device and self._options.capture:  # a replay writes where the recording wrote
                self._session.run_with_iobinding(binding)
                values = binding.get_outputs()
                alive.append(dict(zip((o.name for o in self.outputs), values, strict=True)))
                for output in self.outputs:
                    binding.bind_ortvalue_output(output.name, alive[-1][output.name])
        except Exception as error:
            raise RunError(f"ONNX Runtime cannot bind the inputs: {_first_line(error)}") from error
        anew, wait = False, binding.synchronize_outputs if on_device else None

        def call(_alive: object = alive) -> None:  # the binding points into these arrays
            nonlocal anew
            try:
                anew = self._run_bound(binding, anew)
                if wait is not None:
                    wait()
            except Exception as error:
                raise _failed(error) from error

        return call

    def _bind_outputs(self, binding: Any) -> None:
        for output in self.outputs:
            binding.bind_output(output.name, self._about.memory)

    def _run_bound(self, binding: Any, anew: bool) -> bool:
        """Run with the outputs where those of the run before are, or anew; whether the next one has to be so."""
        if anew:
            self._bind_outputs(binding)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            if anew or self._options.capture or not any(said in str(error) for said in _OTHER_SHAPE):
                raise
            return self._run_bound(binding, anew=True)
        return anew

    def end_profiling(self) -> Path:
        """Close the profile that was asked for, and say where it is."""
        return Path(self._session.end_profiling())

    def _moved(self, array: Array) -> Any:
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(array, self._about.memory, 0)

    def _unbound(self, feeds: dict[str, Array]) -> Callable[[], None]:
        def call() -> None:
            self.run(feeds)

        return call


@cache
def _load_cuda(ort: Any) -> str:
    """Load CUDA and cuDNN out of NVIDIA's packages, where the provider would not look; what of them is missing."""
    load = getattr(ort, "preload_dlls", None)  # since ONNX Runtime 1.21
    if load is None:
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(OSError, RuntimeError):
        load()
    missing = [line.strip() for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    return "".join(f"\n{line}" for line in missing) + (f"\nTo add them: {_INSTALL_CUDA}" if missing else "")


@contextlib.contextmanager
def _stopped_after(seconds: float, replay: bool) -> Iterator[Any]:
    """Settings of a run that ends after so many seconds, if there is a limit; without ``replay`` nothing is recorded or
    replayed: a recording reads where the inputs lay that it was made with."""
    if not seconds and replay:
        yield None
        return
    import onnxruntime as ort

    settings = ort.RunOptions()
    if not replay:
        settings.add_run_config_entry("gpu_graph_id", "-1")
    with contextlib.ExitStack() as stack:
        if seconds:
            timer = threading.Timer(seconds, setattr, (settings, "terminate", True))
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        yield settings


def _settings(ort: Any, options: SessionOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # failures come back as exceptions; the log would repeat them
    settings.intra_op_num_threads = options.threads
    settings.enable_mem_reuse = options.reuse
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = {
        "off": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[options.level if options.optimize else "off"]
    if not options.spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not options.packing:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if options.dequantize:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if options.folder is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(options.folder))
    if options.profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.profile)
    if options.save is not None:
        settings.optimized_model_filepath = str(options.save)
    return settings


_NEWER = (
    "\nThe file is newer than this ONNX Runtime: pip install --upgrade onnxruntime, or export it for an older operator "
    "set (onnx.version_converter.convert_version does so too)."
)
_CUSTOM = (
    "\nIf a library has this operator, name it with --custom-ops LIB (that of ai.onnx.contrib comes with "
    "pip install onnxruntime-extensions)."
)
_LOCALE = (
    "\nThis system lacks the locale that StringNormalizer asks for; on Debian and Ubuntu: apt-get install locales, "
    "then locale-gen en_US.UTF-8"
)
_FIXES = {
    "Failed to construct locale": _LOCALE,
    "INVALID_PROTOBUF": " (not an ONNX file, or truncated: export it again)",
    "under development and support for this is limited": _NEWER,
    "Unsupported model IR version": _NEWER,
    "is not a registered function/op": _CUSTOM,
    "Error No opset import for domain": _CUSTOM,
}
"""What to do, by words of a refusal."""
_PLACE = re.compile(r"/onnxruntime_src/\S+ .*?\)(?: const)? (?=[A-Z])")
"""Where in ONNX Runtime's source a message comes from, with the function's signature."""


def _lacks_memory(line: str) -> bool:
    return "Failed to allocate memory" in line or "bad_alloc" in line


def _failed(error: Exception) -> RunError:
    line = _first_line(error)
    if _lacks_memory(line):
        return NoMemory(f"no memory is left to run the model: {line}")
    return RunError(f"ONNX Runtime failed to run the model: {line}")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return _PLACE.sub("", text.splitlines()[0]) if text else type(error).__name__


def _about(name: str) -> Availability:
    """What this machine lacks for a provider."""
    known = PROVIDERS[name]
    try:
        import onnxruntime as ort
    except ImportError:
        return Availability(known.device, "", f"needs ONNX Runtime: {known.install}")
    if known.provider in ort.get_available_providers():
        return Availability(known.device, f"onnxruntime {ort.__version__}", "")
    text = f"ONNX Runtime {ort.__version__} here comes without {known.provider}: {known.install}"
    return Availability(known.device, "", text)


def _open(name: str, model: Path | bytes, options: SessionOptions) -> Session:
    lacking = _about(name).missing
    if lacking:
        raise BackendMissing(f"backend {name}: {lacking}")
    return OrtSession(model, options, name)


for _name in PROVIDERS:
    backend(_name, partial(_about, _name))(partial(_open, _name))
