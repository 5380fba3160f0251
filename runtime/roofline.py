"""What a kernel could take at best on this machine, and what holds it back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runtime.backends import SessionOptions, open_session
from runtime.cache import keep, read_cached
from runtime.engine.flavour import gpu_facts
from runtime.environment import fingerprint
from runtime.feeds import Feeds
from runtime.fusions import BLOCKED
from runtime.profiling import NodeTime
from runtime.runners import bound as bound_call
from runtime.sampling import best_clock, take

_MATRIX, _GPU_MATRIX = 512, 4096
_STREAM, _GPU_STREAM = 1 << 22, 1 << 26
"""Elements of each array whose sum measures the memory: 16 MB, beyond most caches; 256 MB on a GPU."""
_SECONDS = 0.4
_OVERHEAD_SECONDS = 8e-6
_OVERHEAD_SHARE = 0.25
_BOUND = 0.5


@dataclass(frozen=True)
class Peaks:
    """The best this machine does, measured.

    Attributes:
        flops: floating-point operations in a second, in a large float32 matrix product.
        bandwidth: bytes in a second, adding large arrays.
    """

    flops: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """Operations for each byte from which on arithmetic, not memory, is the limit."""
        return self.flops / self.bandwidth


def peaks(backend: str = "ort-cpu", threads: int = 0) -> Peaks:
    """Measure the machine's peaks, or read them from the cache.

    Raises:
        BackendMissing: the backend is not installed.
    """
    gpu = gpu_facts(backend)
    matrix, stream = (_GPU_MATRIX, _GPU_STREAM) if gpu else (_MATRIX, _STREAM)
    more = (matrix, stream, *gpu) if gpu else ()
    name = f"peaks-{fingerprint(backend, threads, *more)}"
    known = read_cached(name)
    if known is not None and {"flops", "bandwidth"} <= known.keys():
        return Peaks(float(known["flops"]), float(known["bandwidth"]))
    best = partial(_best, backend, SessionOptions(threads=threads))
    weight = np.random.default_rng(0).standard_normal((matrix, matrix)).astype(np.float32)
    product = best(_one("MatMul", {"x": (matrix, matrix)}, {"w": weight}))
    total = best(_one("Add", {"x": (stream,), "y": (stream,)}, {}))
    found = Peaks(2 * matrix**3 / product, 3 * 4 * stream / total)
    keep(name, {"flops": found.flops, "bandwidth": found.bandwidth})
    return found


def bound(node: NodeTime, machine: Peaks) -> float:
    """Seconds the node would take at the machine's peaks: those of its arithmetic or of its bytes."""
    return max(2 * node.macs / machine.flops, node.bytes / machine.bandwidth)


def bottleneck(node: NodeTime, machine: Peaks) -> str:
    """What holds a kernel back.

    Returns:
        ``layout``: it only changes the layout of a tensor.
        ``alignment``: a convolution outside the blocked layout, because of its number of channels.
        ``overhead``: so short that starting it counts.
        ``memory``: it reads and writes about as fast as the machine can.
        ``compute``: it computes about as fast as the machine can.
        ``kernel``: neither; the kernel itself is slow for these sizes.
    """
    if node.reorder:
        return "layout"
    best = bound(node, machine)
    if node.seconds < _OVERHEAD_SECONDS * node.starts and best < _OVERHEAD_SHARE * node.seconds:
        return "overhead"
    if unblocked(node):
        return "alignment"
    if best < _BOUND * node.seconds:
        return "kernel"
    return "memory" if node.bytes / machine.bandwidth > 2 * node.macs / machine.flops else "compute"


def held_back(nodes: Iterable[NodeTime], machine: Peaks) -> dict[str, float]:
    """Seconds of kernels by what holds them back, as ``bottleneck`` calls it; the most first."""
    sums: dict[str, float] = {}
    for node in nodes:
        kind = bottleneck(node, machine)
        sums[kind] = sums.get(kind, 0.0) + node.seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def unblocked(node: NodeTime) -> bool:
    """Say whether a convolution of images runs outside the blocked layout although its operator has one."""
    operator = node.kernel.rpartition("::")[2]
    if operator not in ("Conv", "FusedConv") or node.kernel.startswith(BLOCKED) or len(node.inputs) < 2:
        return False
    data, kernel = node.inputs[:2]
    return len(data) == 4 and bool(node.macs) and bool(kernel[0] % 4 or data[1] % 4)


def _one(op: str, inputs: dict[str, tuple[int, ...]], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs.items()]
    node = helper.make_node(op, [*inputs, *constants], ["out"])
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph([node], "one", values, [out], tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def _best(backend: str, options: SessionOptions, model: onnx.ModelProto) -> float:
    """Shortest time of a run of a small model."""
    session = open_session(model.SerializeToString(), backend, options)
    rng = np.random.default_rng(0)
    feeds: Feeds = {
        s.name: rng.standard_normal([d for d in s.shape if isinstance(d, int)]).astype(np.float32)
        for s in session.inputs
    }
    taken = take([bound_call(session, feeds)], _SECONDS)
    # waiting for the processor is not the machine's best
    return float(best_clock(taken, backend == "ort-cpu" and options.threads == 1).min())
