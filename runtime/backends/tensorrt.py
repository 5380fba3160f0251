"""TensorRT and TensorRT for RTX: engines, or ONNX files from which one is built first and kept."""

from __future__ import annotations

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime import cuda
from runtime.backends.protocol import Array, Availability, Session, SessionOptions, TensorSpec, backend
from runtime.cache import cache_folder
from runtime.device import Buffer, Event, Recording, Stream
from runtime.engine.building import build_engine
from runtime.engine.flavour import PACKAGES, capabilities, installed, load_flavour
from runtime.engine.loading import Loaded, deserialize, profile_recorder
from runtime.engine.log import captured, telling
from runtime.engine.metadata import StaleEngine, check_engine, describe, is_described, read_description, write_engine
from runtime.errors import BackendMissing, BadRequest, RunError
from runtime.model_files import digest_of, near

ENGINES = tuple(PACKAGES)
SUFFIXES = frozenset({".engine", ".plan", ".trt"})
"""Of files that are engines; others are ONNX files."""


@contextmanager
def _explained(loaded: Loaded) -> Iterator[None]:
    """Make one RunError of what fails, with the reason that TensorRT logs; what it raises itself is a RuntimeError."""
    with captured() as log:
        try:
            yield
        except RunError as error:
            said = telling(log, "error")
            if type(error) is not RunError or not said:
                raise
            raise RunError(f"{error}\n{loaded.flavour.title} says: {said[0].text}") from error
        except RuntimeError as error:
            said = telling(log, "error")
            raise RunError(f"{loaded.flavour.title}: {said[0].text if said else error}") from error


class _Bound:
    """An execution context whose tensors lie at fixed addresses."""

    def __init__(self, session: EngineSession, feeds: Mapping[str, Array]) -> None:
        self.loaded, self.stream = session.loaded, session.stream
        with _explained(self.loaded):
            self._set_up(session, feeds)

    def _set_up(self, session: EngineSession, feeds: Mapping[str, Array]) -> None:
        engine = self.loaded.engine
        self.context = engine.create_execution_context()
        if self.context is None:
            raise RunError("TensorRT makes no context: the GPU's memory may not suffice for the largest sizes.")
        self.arrays = session.arrays(feeds)
        if engine.num_optimization_profiles > 1:
            number = session.profile_for(self.arrays)
            if not self.context.set_optimization_profile_async(number, int(self.stream.handle)):
                raise RunError(f"TensorRT refuses profile {number}.")
            self.stream.wait()
        self.buffers: dict[str, Buffer] = {}
        for name, array in self.arrays.items():
            if not self.context.set_input_shape(name, array.shape):
                raise RunError(f"input '{name}' of shape {list(array.shape)} is outside {session.allowed(name)}.")
            self._place(name, array.nbytes)
        lacking = self.context.infer_shapes()
        if lacking:
            raise RunError(f"the inputs lack {', '.join(lacking)}.")
        self.shapes: dict[str, tuple[int, ...]] = {}
        for spec in self.loaded.outputs:
            shape = tuple(int(d) for d in self.context.get_tensor_shape(spec.name))
            if any(d < 0 for d in shape) or spec.dtype is None:
                raise RunError(
                    f"output '{spec.name}' has a size that depends on data; run it with --backend ort-tensorrt."
                )
            self.shapes[spec.name] = shape
            self._place(spec.name, int(np.prod(shape, dtype=np.int64)) * spec.dtype.itemsize)
        self.upload()
        self.stream.wait()

    def fill(self, arrays: Mapping[str, Array]) -> None:
        """Take other inputs of the same shapes."""
        self.arrays = dict(arrays)
        self.upload()

    def _place(self, name: str, size: int) -> None:
        self.buffers[name] = Buffer(size)
        if not self.context.set_tensor_address(name, self.buffers[name].pointer):
            raise RunError(f"TensorRT refuses an address for '{name}'.")

    def upload(self) -> None:
        """Queue the copy of the inputs to the device."""
        for name, array in self.arrays.items():
            if array.nbytes:
                self.buffers[name].fill(array, self.stream)

    def enqueue(self) -> None:
        """Queue one run."""
        if not self.context.execute_async_v3(int(self.stream.handle)):
            raise RunError("TensorRT failed to run the engine.")

    def download(self, names: Sequence[str]) -> dict[str, Array]:
        """Outputs on the host, when everything queued is done."""
        found: dict[str, Array] = {}
        for spec in self.loaded.outputs:
            if spec.name in names:
                found[spec.name] = np.empty(self.shapes[spec.name], spec.dtype)
                if found[spec.name].nbytes:
                    self.buffers[spec.name].read(found[spec.name], self.stream)
        self.stream.wait()
        return found

    def ready(self, capture: bool) -> Callable[[], None]:
        """What queues one run: the run itself, or a recording of it."""
        with _explained(self.loaded):
            self.enqueue()  # the first run sets things up that must not be recorded
            self.stream.wait()
            if not capture:
                return self.enqueue
            recording = Recording(self.enqueue, self.stream)
        return lambda: recording.launch(self.stream)


class EngineSession:
    """An engine on the GPU.

    Attributes:
        loaded: the engine.
        stream: where its work is queued.
        inputs, outputs: signature.
    """

    def __init__(self, loaded: Loaded, options: SessionOptions, description: Mapping[str, Any] | None = None) -> None:
        self.loaded, self.options = loaded, options
        self.stream = Stream()
        known = (description or {}).get("inputs", {})
        self.inputs = tuple(_named(spec, known.get(spec.name)) for spec in loaded.inputs)
        self.outputs = loaded.outputs
        self._kept: tuple[dict[str, tuple[int, ...]], _Bound] | None = None
        """The context of the last ``run``, for the shapes it had."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; outputs by name."""
        names = list(outputs) if outputs is not None else [o.name for o in self.outputs]
        arrays = self.arrays(feeds)
        shapes = {name: array.shape for name, array in arrays.items()}
        if self._kept is None or self._kept[0] != shapes:
            self._kept = None  # its memory goes before more is taken
            self._kept = shapes, _Bound(self, arrays)
        else:
            self._kept[1].fill(arrays)
        bound = self._kept[1]
        with _explained(self.loaded):
            bound.enqueue()
            found = bound.download(names)
        return {name: found[name] for name in names}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Fix the inputs; the returned call queues a run and waits for it."""
        bound = self._bound(feeds)
        queue = bound.ready(self.options.capture)
        copies, names = not self.options.binding, [o.name for o in self.outputs]

        def call() -> None:
            if copies:
                bound.upload()
            queue()
            if copies:
                bound.download(names)
            else:
                bound.stream.wait()

        return call

    def bind_timed(self, feeds: Mapping[str, Array]) -> Callable[[], float]:
        """As ``bind``; the call returns the seconds between CUDA events around the run."""
        bound = self._bound(feeds)
        queue = bound.ready(self.options.capture)
        before, after = Event(), Event()
        copies, names = not self.options.binding, [o.name for o in self.outputs]

        def call() -> float:
            if copies:
                bound.upload()
            before.record(bound.stream)
            queue()
            after.record(bound.stream)
            if copies:
                bound.download(names)
            else:
                bound.stream.wait()
            return after.since(before)

        return call

    def queue(self, feeds: Mapping[str, Array]) -> tuple[Callable[[], None], Stream]:
        """What queues a run without waiting, and the stream to wait for: for throughput."""
        return self._bound(feeds).ready(self.options.capture), self.stream

    def layer_times(self, feeds: Mapping[str, Array], runs: int) -> dict[str, list[float]]:
        """Seconds of every layer in each of several runs, by TensorRT's own profiler, which adds to them.

        Args:
            feeds: the inputs.
            runs: how many.
        """
        bound = self._bound(feeds)
        bound.enqueue()
        bound.stream.wait()
        times: dict[str, list[float]] = {}
        bound.context.profiler = profile_recorder(
            self.loaded.flavour, lambda name, seconds: times.setdefault(name, []).append(seconds)
        )
        for _ in range(runs):
            bound.enqueue()
            bound.stream.wait()
        return times

    def _bound(self, feeds: Mapping[str, Array]) -> _Bound:
        self._kept = None
        return _Bound(self, feeds)

    def arrays(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs as the engine takes them.

        Raises:
            BadRequest: one is missing.
        """
        missing = [s.name for s in self.inputs if s.name not in feeds]
        if missing:
            raise BadRequest(f"the inputs lack {', '.join(missing)}.")
        return {s.name: np.asarray(feeds[s.name], dtype=s.dtype, order="C") for s in self.inputs}

    def profile_for(self, arrays: Mapping[str, Array]) -> int:
        """The first profile whose ranges hold all inputs.

        Raises:
            RunError: none does.
        """
        engine = self.loaded.engine
        for k in range(engine.num_optimization_profiles):
            ranges = {n: engine.get_tensor_profile_shape(n, k) for n in arrays}
            if all(_holds(ranges[n], a.shape) for n, a in arrays.items()):
                return k
        shapes = "; ".join(f"{n} {list(a.shape)}" for n, a in arrays.items())
        raise RunError(f"no profile of the engine holds {shapes}; it allows {self.allowed(next(iter(arrays)))}.")

    def allowed(self, name: str) -> str:
        """Ranges of an input, for messages."""
        engine = self.loaded.engine
        found = []
        for k in range(engine.num_optimization_profiles):
            low, _, high = engine.get_tensor_profile_shape(name, k)
            found.append(f"{'x'.join(map(str, low))}..{'x'.join(map(str, high))}")
        return " or ".join(found)


def _holds(sizes: Sequence[Sequence[int]], shape: Sequence[int]) -> bool:
    """Whether a shape lies within the least and largest sizes of a profile."""
    low, _, high = sizes
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def _named(spec: TensorSpec, known: Any) -> TensorSpec:
    """A signature with the names the ONNX file had for its dynamic axes."""
    dims = known[1] if isinstance(known, list) and len(known) == 2 else None
    if not isinstance(dims, list) or len(dims) != len(spec.shape):
        return spec
    shape = tuple(d if own is None and isinstance(d, str) else own for d, own in zip(dims, spec.shape, strict=True))
    return TensorSpec(spec.name, spec.dtype, shape)


def _open(name: str, model: Path | bytes, options: SessionOptions) -> Session:
    flavour = load_flavour(name)
    if not options.optimize or options.level != "all":
        raise BadRequest(
            f"--level: {name} has no levels of graph optimisation; build at another with: secateur build --level N"
        )
    if options.dequantize:
        raise BadRequest(f"--dequantize: {name} has no such choice; it is ONNX Runtime's.")
    if options.profile is not None or options.save is not None:
        raise BadRequest(f"{name} writes neither profiles nor optimised models; see secateur build --json.")
    device = cuda.need_gpu()
    if isinstance(model, bytes):
        return EngineSession(deserialize(flavour, _built(name, model), "the engine"), options)
    if not model.is_file():
        raise BadRequest(f"{model}: no such file.{near(model)}")
    if model.suffix.lower() not in SUFFIXES:
        file, engine, known = _engine_of(name, model, flavour.version, device)
        return EngineSession(deserialize(flavour, engine, str(file)), options, known)
    data = model.read_bytes()
    description = check_engine(model, data, name, flavour.version, device)
    flags = description["flags"] if description is not None else {}
    weights = _weights(model, description) if description is not None and flags["strip"] else None
    loaded = deserialize(flavour, data, str(model), weights, bool(flags.get("version_compatible")))
    return EngineSession(loaded, options, description)


def _weights(engine: Path, description: Mapping[str, Any]) -> Path:
    """The ONNX file that an engine without weights gets them back from."""
    source = Path(description["source"]["path"])
    if description.get("precision") in ("fp16", "bf16"):
        raise BadRequest(f"{engine} lacks its weights, and they were converted; build it again without --strip.")
    if not source.is_file():
        raise BadRequest(f"{engine} lacks its weights, and {source}, which holds them, is not there.")
    return source


def _built(name: str, model: bytes) -> bytes:
    """An engine for a model in memory, which nobody will ask for again."""
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(model)
        return build_engine(file, name, called="a model in memory").engine


def _engine_of(name: str, model: Path, version: str, device: cuda.Gpu) -> tuple[Path, bytes, dict[str, Any]]:
    """An engine for an ONNX file, built once for this content, version and GPU: its file, bytes and description."""
    digest = digest_of(model)
    key = hashlib.sha256("|".join((name, version, device.name, device.capability, digest)).encode()).hexdigest()[:24]
    target = cache_folder() / "engines" / f"{model.stem}-{key}.engine"
    kept = _kept(target)
    if kept is not None:
        return target, *kept
    built = build_engine(model, name)
    command = shlex.join(["secateur", "build", str(model), "-o", str(target), "--backend", name])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        description = describe(built, model, command, device)
        write_engine(target, built, description)
    except OSError as error:
        raise BadRequest(
            f"the engine for {model} cannot be kept in {target.parent}: {error.strerror}.\n"
            "Name another folder with SECATEUR_CACHE, or build it yourself with: secateur build"
        ) from error
    return target, built.engine, description


def _kept(engine: Path) -> tuple[bytes, dict[str, Any]] | None:
    """A kept engine and its description, if it is the file that was written for; its name says the rest."""
    if not engine.is_file():
        return None
    data = engine.read_bytes()
    try:
        known = read_description(engine)
        return (data, known) if known is not None and is_described(data, known) else None
    except (StaleEngine, KeyError, TypeError):
        return None


def _about(name: str) -> Availability:
    device = PACKAGES[name].device
    version, lacking = installed(name)
    if lacking:
        return Availability(device, "", lacking)
    try:
        gpu = cuda.need_gpu()
    except BackendMissing as error:
        builds = "; secateur build works without" if name == "tensorrt-rtx" else ""
        return Availability(device, version, f"{str(error).splitlines()[0]}{builds}")
    text = f"{gpu.name}, compute capability {gpu.capability}"
    known = capabilities(load_flavour(name))
    if known and gpu.capability not in known:
        why = f"its engines run on compute capability {', '.join(known)}, this is {text}; secateur build works"
        return Availability(text, version, why)
    return Availability(text, version, "")


for _name in ENGINES:
    backend(_name, partial(_about, _name))(partial(_open, _name))
