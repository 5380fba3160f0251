"""CUDA and TensorRT as far as the adapter uses them: device memory that is checked, engines that ONNX Runtime runs, and
refusals where the real ones refuse."""

from __future__ import annotations

import ctypes
import io
import sys
import types
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

DTYPES = {1: "FLOAT", 10: "HALF", 7: "INT64", 6: "INT32", 9: "BOOL"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_}


class Cuda:
    """The CUDA runtime's functions over host memory. Everything handed out has to come back."""

    def __init__(self, devices=1, fail=None):
        self.memory, self.live, self.called, self.clock = {}, set(), [], 0.0
        self.devices, self.fail, self.handles, self.marks, self.capturing = devices, fail or {}, 100, {}, None
        self.graphs, self.refuses_to_run = {}, ""
        self.layer_takes, self.run_takes = (lambda node, model: 5e-4), (lambda model: 0.002)  # seconds
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def function(*arguments):
            self.called.append(name)
            if name in self.fail:
                return self.fail[name], None
            found = getattr(self, f"_{name}")(*arguments)
            return (0, *found) if isinstance(found, tuple) else (0,) if found is None else (0, found)

        return function

    def cudaGetErrorName(self, status):
        return 0, {2: b"cudaErrorMemoryAllocation", 35: b"cudaErrorInsufficientDriver"}.get(status, b"cudaErrorUnknown")

    def cudaGetErrorString(self, status):
        return 0, {2: b"out of memory", 35: b"CUDA driver version is insufficient"}.get(status, b"unknown error")

    def _new(self):
        self.handles += 1
        self.live.add(self.handles)
        return self.handles

    def _gone(self, handle):
        self.live.remove(handle)  # raises where it is given back twice

    def _cudaGetDeviceCount(self):
        return self.devices

    def _cudaGetDeviceProperties(self, _):
        return SimpleNamespace(name=b"Fake RTX", major=8, minor=6, totalGlobalMem=1 << 30)

    def _cudaDeviceGetPCIBusId(self, length, device):
        return b"0000:0B:00.0\0".ljust(length)

    def _cudaDriverGetVersion(self):
        return 13000

    def _cudaMalloc(self, size):
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return address

    def _cudaFree(self, address):
        del self.memory[address]

    def _cudaMemcpyAsync(self, to, source, size, kind, stream):
        assert (to if kind == 1 else source) in self.memory
        assert stream in self.live
        ctypes.memmove(to, source, size)

    def _cudaStreamCreate(self):
        return self._new()

    _cudaEventCreate = _cudaStreamCreate

    def _cudaStreamDestroy(self, handle):
        self._gone(handle)

    _cudaEventDestroy = _cudaGraphExecDestroy = _cudaGraphDestroy = _cudaStreamDestroy

    def _cudaStreamSynchronize(self, handle):
        assert handle in self.live

    def _cudaEventRecord(self, event, stream):
        assert stream in self.live
        self.marks[event] = self.clock

    def _cudaEventElapsedTime(self, first, last):
        return 1e3 * (self.marks[last] - self.marks[first])

    def _cudaStreamBeginCapture(self, stream, mode):
        self.capturing = []

    def _cudaStreamEndCapture(self, stream):
        handle = self._new()
        self.graphs[handle], self.capturing = self.capturing, None
        return handle

    def _cudaGraphInstantiate(self, graph, flags):
        handle = self._new()
        self.graphs[handle] = self.graphs[graph]
        return handle

    def _cudaGraphLaunch(self, graph, stream):
        for work in self.graphs[graph]:
            work()


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    def __init__(self):
        pass


class IProfiler:
    def __init__(self):
        pass


class Tensor:
    def __init__(self, name, kind, shape):
        self.name, self.kind, self.shape = name, kind, shape
        self.dtype = SimpleNamespace(name=DTYPES.get(kind, "FLOAT"))
        self.is_shape_tensor = False


class Network:
    def __init__(self, flags):
        self.flags, self.model = flags, None

    def feed(self, model):
        self.model = model
        self.inputs = [_tensor(v) for v in model.graph.input]

    num_inputs = property(lambda self: len(self.inputs))
    num_layers = property(lambda self: len(self.model.graph.node))

    def get_input(self, k):
        return self.inputs[k]

    def get_layer(self, k):
        node = self.model.graph.node[k]
        outputs = [Tensor(o, 1, ()) for o in node.output]
        kind = SimpleNamespace(name=node.op_type.upper())
        return SimpleNamespace(name=node.name, type=kind, num_outputs=len(outputs), get_output=lambda i: outputs[i])


def _tensor(value):
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
    return Tensor(value.name, value.type.tensor_type.elem_type, dims)


class Config:
    builder_optimization_level = 3
    hardware_compatibility_level = 0
    profiling_verbosity = 0

    def __init__(self):
        self.flags, self.profiles, self.limits, self.cache = set(), [], {}, None

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def clear_flag(self, flag):
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return SimpleNamespace(data=data, serialize=lambda: b"timings")

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return cache.data in (b"", b"timings")

    def get_timing_cache(self):
        return self.cache


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, best, high):
        self.shapes[name] = (tuple(low), tuple(best), tuple(high))


def fake_tensorrt(version="10.9.0", cuda=None, said=()):
    """A module as TensorRT of that version; ``said`` is logged by every build."""
    trt = types.ModuleType("tensorrt")
    trt.__version__, trt.ILogger, trt.IProfiler, trt.configs, trt.networks = version, ILogger, IProfiler, [], []
    major = int(version.split(".")[0])
    names = ["SPARSE_WEIGHTS", "REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE", "TF32"]
    trt.BuilderFlag = IntEnum("BuilderFlag", names + (["FP16", "INT8"] if major < 11 else []))
    flags = ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if major < 11 else ["PREFER_AOT_PYTHON_PLUGINS"]
    trt.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", flags, start=0)
    trt.MemoryPoolType = IntEnum("MemoryPoolType", ["WORKSPACE"])
    trt.ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["DETAILED"])
    trt.HardwareCompatibilityLevel = IntEnum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"])
    trt.LayerInformationFormat = IntEnum("LayerInformationFormat", ["ONELINE", "JSON"])
    trt.TensorIOMode = IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            if major >= 11 and flags & ~1:
                raise TypeError("unknown flag")
            trt.networks.append(Network(flags))
            return trt.networks[-1]

        def create_builder_config(self):
            trt.configs.append(Config())
            return trt.configs[-1]

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            for level, text in said:
                self.logger.log(Severity[level], text)
            if any(level == "ERROR" for level, _ in said):
                return None
            file = io.BytesIO()
            profiles = np.array([[n, *map(str, s)] for p in config.profiles for n, s in p.items()], dtype="U64")
            own = [number for number, p in enumerate(config.profiles) for _ in p]
            lean = "VERSION_COMPATIBLE" in config.flags
            model = np.frombuffer(network.model.SerializeToString(), np.uint8)
            np.savez(file, model=model, profiles=profiles, own=own, lean=lean)
            return file.getvalue()

    class OnnxParser:
        def __init__(self, network, logger):
            self.network, self.errors = network, []

        num_errors = property(lambda self: len(self.errors))

        def get_error(self, k):
            return self.errors[k]

        def parse_from_file(self, path):
            model = onnx.load(path)
            for node in model.graph.node:
                if node.op_type == "Det":
                    code = SimpleNamespace(name="UNSUPPORTED_NODE")
                    error = {"desc": "false", "code": code, "node_name": node.name, "node_operator": node.op_type}
                    self.errors.append(SimpleNamespace(**{k: (lambda v=v: v) for k, v in error.items()}))
            self.network.feed(model)
            return not self.errors

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, data):
            try:
                archive = np.load(io.BytesIO(data))
                if archive["lean"] and not self.engine_host_code_allowed:
                    self.logger.log(Severity.ERROR, "Host executable code is not allowed")
                    return None
                return Engine(archive, trt, cuda, self.logger)
            except Exception:
                self.logger.log(Severity.ERROR, "Serialization assertion magicTagRead failed")
                return None

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, OnnxParser, Runtime
    return trt


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, archive, trt, cuda, logger):
        self.trt, self.cuda, self.logger, self.contexts = trt, cuda, logger, 0
        self.model = model = onnx.load_from_string(archive["model"].tobytes())
        self.session = onnxruntime.InferenceSession(archive["model"].tobytes(), providers=["CPUExecutionProvider"])
        self.tensors = {v.name: _tensor(v) for v in (*model.graph.input, *model.graph.output)}
        self.given, self.nodes = {v.name for v in model.graph.input}, [n.name for n in model.graph.node]
        self.profiles = [{} for _ in range(int(archive["own"].max()) + 1)] if len(archive["own"]) else []
        for number, row in zip(archive["own"], archive["profiles"], strict=True):
            self.profiles[int(number)][row[0]] = tuple(_ints(t) for t in row[1:])
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), max(len(self.profiles), 1)

    def get_tensor_name(self, k):
        return list(self.tensors)[k]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name in self.given else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.tensors[name].dtype

    def get_tensor_shape(self, name):
        return tuple(self.tensors[name].shape)

    def get_tensor_profile_shape(self, name, k):
        own = (tuple(self.tensors[name].shape),) * 3
        return self.profiles[k].get(name, own) if self.profiles else own

    def create_execution_context(self):
        self.contexts += 1
        return Context(self)

    def create_engine_inspector(self):
        layers = ", ".join(f'{{"Name": "{n}", "TacticName": "kernel"}}' for n in self.nodes)
        return SimpleNamespace(get_engine_information=lambda form: f'{{"Layers": [{layers}]}}')


def _ints(text):
    return tuple(int(p) for p in text.strip("()").split(",") if p.strip())


class Context:
    profiler = None

    def __init__(self, engine):
        self.engine, self.profile, self.shapes, self.places = engine, 0, {}, {}

    def set_optimization_profile_async(self, k, stream):
        if not 0 <= k < self.engine.num_optimization_profiles:
            raise RuntimeError("Error in set optimization profile async.")
        self.profile = k
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return len(shape) == len(low) and all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name, pointer):
        assert pointer in self.engine.cuda.memory
        self.places[name] = pointer
        return True

    def infer_shapes(self):
        lacking = [n for n in self.engine.given if n not in self.shapes]
        try:
            lacking or self._run()
        except Exception as error:
            self.engine.logger.log(Severity.ERROR, "dimensions not compatible")
            raise RuntimeError("infer_shapes error code: -1") from error
        return lacking

    def get_tensor_shape(self, name):
        return self._run()[name].shape

    def execute_async_v3(self, stream):
        cuda = self.engine.cuda
        if cuda.refuses_to_run:
            self.engine.logger.log(Severity.ERROR, cuda.refuses_to_run)
            return False
        if cuda.capturing is not None:
            cuda.capturing.append(self._write)
        else:
            self._write()
        return True

    def _feeds(self):
        feeds = {}
        for name, shape in self.shapes.items():
            dtype = np.dtype(NUMPY[self.engine.tensors[name].dtype.name])
            count = int(np.prod(shape)) * dtype.itemsize
            place = self.places.get(name)
            raw = self.engine.cuda.memory[place].raw[:count] if place else bytes(count)
            feeds[name] = np.frombuffer(raw, dtype).reshape(shape)
        return feeds

    def _run(self):
        outputs = [n for n in self.engine.tensors if n not in self.engine.given]
        return dict(zip(outputs, self.engine.session.run(outputs, self._feeds()), strict=True))

    def _write(self):
        for name, values in self._run().items():
            data = np.ascontiguousarray(values).tobytes()
            assert len(data) <= len(self.engine.cuda.memory[self.places[name]])
            ctypes.memmove(self.places[name], data, len(data))
        cuda, model = self.engine.cuda, self.engine.model
        cuda.clock += cuda.run_takes(model)
        if self.profiler is not None:
            for node in model.graph.node:
                self.profiler.report_layer_time(node.name, 1e3 * cuda.layer_takes(node, model))


def install(monkeypatch, version="10.9.0", devices=1, fail=None, said=()):
    """Put both in the place of the real ones; returns (tensorrt, cuda)."""
    cuda = Cuda(devices, fail)
    trt = fake_tensorrt(version, cuda, said)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return trt, cuda
