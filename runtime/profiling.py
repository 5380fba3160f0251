"""Time per node: ONNX Runtime's profile, without warm-up, mapped back to the nodes of the file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from runtime.backends import SessionOptions
from runtime.backends.ort import PROVIDERS, OrtSession
from runtime.errors import BadRequest, RunError
from runtime.feeds import Feeds
from runtime.fusions import Kernel, all_nodes, main_node, name_nodes, trace
from runtime.recording import record
from runtime.robust import Times
from runtime.runners import Asked, prepare
from runtime.work import Shape, macs_of

Shapes = tuple[Sequence[Shape], Sequence[Shape]]
"""Of what a node reads, and of what it makes, without those that are left out."""

_SUFFIX = "_kernel_time"
_ROUNDS = 20
_RECORDING = 1e-5
"""Most seconds that recording adds to an event; it is about half."""
_AROUND = 2
"""What recording an event takes after its end, where the node around it is at work, in parts of what it adds to it."""
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")


@dataclass(frozen=True)
class NodeTime:
    """What one kernel took.

    Attributes:
        name: of the file's node it is called after; of the kernel, where it was added.
        op: operators it stands for, joined by ``+``; the kernel's own where it was added.
        kernel: the kernel's operator, with its domain unless standard.
        keys: first outputs of the file's nodes it stands for.
        reorder: whether it only changes the layout.
        seconds: of one run (the mean of the middle half of the runs).
        macs: multiply-accumulates of one run.
        bytes: read and written in one run: activations, weights, results.
        inputs: shapes of what it reads, weights included, in the kernel's own layout.
        types: element types of the same, as ONNX Runtime calls them (``float``, ``int64``).
        provider: the execution provider that ran it.
        starts: how often it starts in one run: once for each iteration of a loop around it.
    """

    name: str
    op: str
    kernel: str
    keys: tuple[str, ...]
    reorder: bool
    seconds: float
    macs: int
    bytes: int
    inputs: tuple[Shape, ...]
    types: tuple[str, ...] = ()
    provider: str = ""
    starts: float = 1.0

    @property
    def rate(self) -> float:
        """Floating-point operations in a second, two for each multiply-accumulate."""
        return 2 * self.macs / self.seconds if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Profile:
    """Times of all kernels of a model.

    Attributes:
        model: file name.
        backend, threads, shapes: how it was run.
        runs: how many runs were recorded.
        latency: median wall time of a run that is not profiled, taken in turn with those that are.
        busy: the same by CPU time, where one thread does all the work: waiting for the processor does not count.
        nodes: the kernels, in the order in which they ran.
        events: the recorded events of the last run, as Chrome's trace viewer takes them; each is called after the node
            of the file that its kernel stands for, and its category is the kernel's operator.
    """

    model: str
    backend: str
    threads: int
    shapes: Mapping[str, tuple[int, ...]]
    runs: int
    latency: float
    busy: float
    nodes: tuple[NodeTime, ...]
    events: tuple[Mapping[str, Any], ...]

    @property
    def kernels(self) -> float:
        """Seconds in kernels; what is missing to the latency is the backend's own."""
        return sum(n.seconds for n in self.nodes)


def check_profiled(backend: str) -> None:
    """Refuse a backend whose time per node is not known with a BadRequest."""
    if backend not in PROVIDERS:
        able = ", ".join(PROVIDERS)
        raise BadRequest(f"--backend {backend}: profiles come from ONNX Runtime; choose from {able}.")


def profile(
    path: Path, asked: Asked, *, seconds: float = 3.0, progress: Callable[[str], None] | None = None
) -> Profile:
    """Profile a model.

    Args:
        path: the file.
        asked: how to run it.
        seconds: most time to spend on runs.
        progress: called with a line before each step.

    Raises:
        BadRequest: no such file, or the backend is not ONNX Runtime.
        RunError: the model does not load or run.
    """
    step = progress or (lambda _: None)
    check_profiled(asked.backend)
    step(f"loading {path.name}")
    plain = prepare(path, asked)
    model = onnx.load(path, load_external_data=False)
    name_nodes(model)
    data = model.SerializeToString()
    with tempfile.TemporaryDirectory() as scratch:
        step("finding the shapes of all nodes")
        shapes = node_shapes(data, path.parent, Path(scratch), plain.feeds[0])
    found = record(plain, data, seconds, step)
    kernels = trace(model, found.optimised)
    work = node_work(model, shapes)
    recorded = _by_run(found.events)[-found.runs :]
    times = _times(model, kernels, work, recorded, found.busy)
    return Profile(
        path.name,
        asked.backend,
        asked.options.threads,
        plain.shapes,
        len(recorded),
        found.latency,
        found.busy,
        tuple(times.values()),
        tuple(_called(event, times[_event_name(event)]) for event in recorded[-1]) if recorded else (),
    )


def node_shapes(data: bytes, home: Path, folder: Path, feed: Feeds) -> dict[str, list[Shapes]]:
    """Shapes of what each node of a file reads and makes, by its name, from one run as the file stands.

    A node in a loop has those of every iteration.

    Args:
        data: the file, after ``name_nodes``.
        home: where its external data lies.
        folder: for scratch files.
        feed: the inputs; none are found where the file does not run on them.
    """
    # weights that were packed would be missing from the shapes
    options = SessionOptions(optimize=False, packing=False, profile=folder / "shapes", folder=home.absolute())
    try:
        session = OrtSession(data, options)
        session.run(feed)
    except RunError:
        return {}  # runs only when it is optimised; then work is not known
    found: dict[str, list[Shapes]] = {}
    for event in json.loads(session.end_profiling().read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            read, made = (
                [tuple(s) for entry in event["args"].get(key, []) for s in entry.values()]
                for key in ("input_type_shape", "output_type_shape")
            )
            found.setdefault(_event_name(event), []).append((read, made))
    return found


def node_work(model: ModelProto, shapes: Mapping[str, Sequence[Shapes]]) -> dict[str, int]:
    """Multiply-accumulates of every node of a file in one run, by its name.

    Args:
        model: the file, after ``name_nodes``.
        shapes: as ``node_shapes`` finds them.
    """
    work: dict[str, int] = {}
    for node in all_nodes(model.graph):
        for read, made in shapes.get(node.name, ()):
            inputs, outputs = (
                [next(known, None) if name else None for name in names]
                for names, known in ((node.input, iter(read)), (node.output, iter(made)))
            )
            work[node.name] = work.get(node.name, 0) + macs_of(node, inputs, outputs)
    return work


def _by_run(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Node events of each run, in the order in which they began."""
    starts = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    nodes = sorted(
        (e for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith(_SUFFIX)),
        key=lambda e: (e["ts"], -e["dur"]),
    )
    runs: list[list[Mapping[str, Any]]] = [[] for _ in starts]
    places = np.searchsorted(starts, [e["ts"] for e in nodes], side="right") - 1
    for event, place in zip(nodes, places, strict=True):
        if place >= 0:
            runs[place].append(event)
    return runs


def _times(
    model: ModelProto,
    kernels: Mapping[str, Kernel],
    work: Mapping[str, int],
    runs: Sequence[Sequence[Mapping[str, Any]]],
    latency: float,
) -> dict[str, NodeTime]:
    """What each kernel took, by the name of its events, in the order in which they ran."""
    seen = _seen(runs)
    times = without_overhead(
        np.array([_middle(np.array(each.own)) for each in seen.values()]),
        np.array([each.recorded / len(runs) for each in seen.values()]),
        latency,
    )
    by_name = {node.name: node for node in all_nodes(model.graph)}
    stored = {t.name: _bytes(t) for t in model.graph.initializer}
    found = {}
    for (name, each), taken in zip(seen.items(), times, strict=True):
        args = each.args
        kernel = kernels.get(name, Kernel(name, args.get("op_name", ""), "", (), False))
        covered = [by_name[n] for n in kernel.covers]
        main = main_node(kernel, work)
        working = [n.op_type for n in covered if work.get(n.name) or n.name == main]
        after = [n.op_type for n in covered[-2:] if n.op_type not in working and n.op_type != "Constant"]
        found[name] = NodeTime(
            main or name,
            "+".join([*working, *after]) if covered else kernel.op,
            f"{kernel.domain}::{kernel.op}" if kernel.domain not in ("", "ai.onnx") else kernel.op,
            tuple(next((o for o in n.output if o), "") for n in covered),
            kernel.reorder,
            float(taken),
            sum(work.get(n, 0) for n in kernel.covers),
            _moved(each, covered, stored, len(runs)),
            tuple(tuple(s) for entry in args.get("input_type_shape", []) for s in entry.values()),
            tuple(kind for entry in args.get("input_type_shape", []) for kind in entry),
            args.get("provider", ""),
            each.events / len(runs),
        )
    return found


@dataclass
class _Seen:
    """What the events of one kernel say: seconds in each run, and the sums over all of them.

    Attributes:
        own: seconds without those of what is inside, of each run.
        args: of the last event.
        events: how many there are.
        recorded: parts of recording that the seconds hold.
        activations, parameters: bytes.
    """

    own: list[float]
    args: Mapping[str, Any] = field(default_factory=dict)
    events: int = 0
    recorded: int = 0
    activations: int = 0
    parameters: int = 0


def _seen(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, _Seen]:
    """What is recorded of each kernel, by the name of its events, in the order in which they began."""
    found: dict[str, _Seen] = {}
    for number, run in enumerate(runs):
        around = _around(run)
        for event, own, outer in zip(run, _own_times(run, around), around, strict=True):
            mine = found.setdefault(_event_name(event), _Seen([0.0] * len(runs)))
            mine.own[number] += own
            mine.args = event["args"]
            mine.events += 1
            mine.recorded += 1
            mine.activations += sum(int(mine.args.get(k) or 0) for k in ("activation_size", "output_size"))
            mine.parameters += int(mine.args.get("parameter_size") or 0)
            if outer is not None:
                found[_event_name(run[outer])].recorded += _AROUND
    return found


def _event_name(event: Mapping[str, Any]) -> str:
    """The name of the kernel that an event is of."""
    return str(event["name"]).removesuffix(_SUFFIX)


def _called(event: Mapping[str, Any], node: NodeTime) -> dict[str, Any]:
    """An event by the name of the file's node; the kernel's own is kept among its arguments."""
    args = {**event.get("args", {}), "kernel": _event_name(event)}
    return {**event, "name": node.name, "cat": node.kernel, "args": args}


def _moved(seen: _Seen, covered: Sequence[NodeProto], stored: Mapping[str, int], runs: int) -> int:
    """Bytes a kernel reads and writes in a run. The profile leaves packed weights out: they are the file's."""
    weights = sum(stored.get(name, 0) for name in {i for node in covered for i in node.input})
    return round((seen.activations + (weights * seen.events or seen.parameters)) / runs)


def _bytes(tensor: TensorProto) -> int:
    """Size of a constant, its data wherever they lie."""
    if tensor.data_type == TensorProto.STRING:
        return 0
    dtype: np.dtype[np.generic] = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(math.prod(tensor.dims)) * dtype.itemsize


def _around(run: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Place of the node that each event lies inside of: a node that runs a subgraph contains that subgraph's nodes."""
    found: list[int | None] = []
    around: list[int] = []
    for place, event in enumerate(run):
        while around and run[around[-1]]["ts"] + run[around[-1]]["dur"] < event["ts"] + event["dur"]:
            around.pop()
        found.append(around[-1] if around and run[around[-1]]["tid"] == event["tid"] else None)
        if event["args"].get("op_name") in _CONTROL:
            around.append(place)
    return found


def _own_times(run: Sequence[Mapping[str, Any]], around: Sequence[int | None]) -> list[float]:
    """Seconds of each event without those inside it; ``around`` says what each lies in."""
    own = [event["dur"] * 1e-6 for event in run]
    for event, outer in zip(run, around, strict=True):
        if outer is not None:
            own[outer] -= event["dur"] * 1e-6
    return [max(t, 0.0) for t in own]


def without_overhead(times: Times, counts: Times, latency: float) -> Times:
    """Take out of kernels what a run that is not recorded does not take.

    Recording adds some microseconds to each event, and to a node that runs a subgraph some for each event inside, so
    the excess is shared by them. What is beyond is waiting for the processor on a loaded machine, longer for longer
    kernels: it is shared in proportion.

    Args:
        times: seconds of each kernel, shape (kernels,).
        counts: events of each in a run, with what others add to it in parts of one, of the same shape.
        latency: seconds of a run that is not recorded.
    """
    left = times.copy()
    target = max(latency, times.sum() - _RECORDING * counts.sum())
    for _ in range(_ROUNDS):
        excess, able = left.sum() - target, left > 0
        if excess <= 1e-9 or not able.any():
            break
        left = np.where(able, np.maximum(left - excess * counts / counts[able].sum(), 0.0), 0.0)
    return left * min(latency / left.sum(), 1.0) if left.any() else left


def _middle(values: Times) -> float:
    """Mean of the middle half: the clock of a profile ticks in microseconds, a median could not go between."""
    ordered = np.sort(values)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())
