"""How long an engine takes, measured as trtexec does, and layer by layer through TensorRT's own profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime import clocks
from runtime.backends import Session
from runtime.backends.tensorrt import ENGINES, SUFFIXES, EngineSession
from runtime.engine.inspection import EngineLayer
from runtime.engine.kernels import kernels_of
from runtime.engine.loading import inspect_engine
from runtime.engine.metadata import read_description
from runtime.errors import BadRequest
from runtime.feeds import Feeds
from runtime.fusions import name_nodes
from runtime.profiling import NodeTime, Profile, Shapes, node_shapes, without_overhead
from runtime.robust import Times
from runtime.runners import Asked, Runner, prepare

WARM_SECONDS = 0.2
SECONDS = 3.0
_FEWEST = 10
_QUEUED = 32
_PROFILED = 50
_PLAIN_SECONDS = 0.5


@dataclass(frozen=True)
class EngineTiming:
    """Times of an engine, in seconds.

    Attributes:
        device: of each run by CUDA events, shape (runs,).
        host: of each run by the host's clock, until its result was there; shape (runs,).
        rate: runs in a second when the next is queued before the last is done.
    """

    device: Times
    host: Times
    rate: float


@dataclass(frozen=True)
class LayerTime:
    """One layer of an engine.

    Attributes:
        layer: what the inspector says of it.
        seconds: median over the runs; the profiler keeps layers from overlapping, so they sum to more than a run.
        node: what it stands for in the ONNX file, its multiply-accumulates and bytes.
    """

    layer: EngineLayer
    seconds: float
    node: NodeTime


def time_engine(session: Session, feeds: Feeds, seconds: float = SECONDS, warm: float = WARM_SECONDS) -> EngineTiming:
    """Measure an engine: ``warm`` seconds unmeasured, then at least ``seconds`` one after another, then queued.

    Raises:
        BadRequest: the session is no engine's.
    """
    engine = _engine(session)
    run = engine.bind_timed(feeds)
    device: list[float] = []
    host: list[float] = []
    end = clocks.wall() + warm
    while clocks.wall() < end:
        run()
    end = clocks.wall() + seconds
    while clocks.wall() < end or len(host) < _FEWEST:
        started = clocks.wall()
        device.append(run())
        host.append(clocks.wall() - started)
    queue, stream = engine.queue(feeds)
    started, count = clocks.wall(), 0
    while clocks.wall() - started < seconds / 3 or not count:
        for _ in range(_QUEUED):
            queue()
        stream.wait()
        count += _QUEUED
    return EngineTiming(np.array(device), np.array(host), count / (clocks.wall() - started))


def time_layers(
    path: Path, asked: Asked, runs: int = 50, seconds: float = _PLAIN_SECONDS
) -> tuple[list[LayerTime], float]:
    """Seconds of every layer, and of a run that is not profiled.

    Args:
        path: of the engine or ONNX file.
        asked: how to run it; the backend is one of ``ENGINES``.
        runs: how many runs to profile.
        seconds: how long to measure runs that are not.

    Raises:
        BadRequest: another backend.
        BackendMissing: there is no GPU.
    """
    layers, plain, _ = _timed(path, asked, runs, seconds)
    return layers, plain


def profile_engine(
    path: Path, asked: Asked, *, seconds: float = SECONDS, progress: Callable[[str], None] | None = None
) -> Profile:
    """Profile an engine as ``runtime.profiling.profile`` does a model: by the device's clock, a kernel for each layer.

    Args:
        path: of the engine or ONNX file.
        asked: how to run it; the backend is one of ``ENGINES``.
        seconds: most time to spend on runs.
        progress: called with a line before each step.

    Raises:
        BadRequest: another backend, or no such file.
        BackendMissing: there is no GPU.
    """
    step = progress or (lambda _: None)
    step(f"loading {path.name}")
    layers, plain, runner = _timed(path, asked, _PROFILED, seconds / 2)
    times = without_overhead(np.array([e.seconds for e in layers]), np.ones(len(layers)), plain)
    nodes = tuple(replace(e.node, seconds=float(t)) for e, t in zip(layers, times, strict=True))
    return Profile(
        path.name, asked.backend, 0, runner.shapes, _PROFILED, plain, plain, nodes, tuple(layer_events(layers))
    )


def layer_events(layers: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """One run as Chrome's trace viewer takes it: the layers one after another, by the median of each."""
    events = []
    at = 0.0
    for each in layers:
        node, took = each.node, 1e6 * each.seconds
        about = {"macs": node.macs, "precision": each.layer.precision, "tactic": each.layer.tactic}
        about |= {"layer": each.layer.name, "nodes": list(node.keys)}
        events.append(
            {"name": node.name, "cat": node.op, "ph": "X", "pid": 0, "tid": 0, "ts": at, "dur": took, "args": about}
        )
        at += took
    return events


def _timed(path: Path, asked: Asked, runs: int, seconds: float) -> tuple[list[LayerTime], float, Runner]:
    if asked.backend not in ENGINES:
        raise BadRequest(f"--backend {asked.backend}: choose from {', '.join(ENGINES)}.")
    runner = prepare(path, asked)
    engine, feed = _engine(runner.session), runner.feeds[0]
    plain = time_engine(engine, feed, seconds)
    known = {layer.name: layer for layer in inspect_engine(engine.loaded)}
    taken = engine.layer_times(feed, runs)
    layers = [(known.get(n, EngineLayer(n)), float(np.median(t))) for n, t in taken.items()]
    model, shapes = _source(path, feed)
    nodes = kernels_of(layers, model, shapes, asked.backend)
    timed = [LayerTime(layer, took, node) for (layer, took), node in zip(layers, nodes, strict=True)]
    return timed, float(np.median(plain.device)), runner


def _source(path: Path, feed: Feeds) -> tuple[onnx.ModelProto | None, dict[str, list[Shapes]]]:
    """The ONNX file of an engine, its nodes named, and the shapes of its tensors; none where it is not at hand."""
    description = read_description(path)
    source = path if description is None else Path(str(description.get("source", {}).get("path", "")))
    if source.suffix.lower() in SUFFIXES or not source.is_file():
        return None, {}
    model = onnx.load(source, load_external_data=False)
    name_nodes(model)
    with tempfile.TemporaryDirectory() as scratch:
        return model, node_shapes(model.SerializeToString(), source.parent, Path(scratch), feed)


def _engine(session: Session) -> EngineSession:
    if not isinstance(session, EngineSession):
        raise BadRequest("only engines are timed so; see: secateur bench")
    return session


def slowest(layers: Sequence[LayerTime], count: int) -> list[LayerTime]:
    """The layers that take longest, the slowest first."""
    return sorted(layers, key=lambda each: -each.seconds)[:count]
