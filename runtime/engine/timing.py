"""How long an engine takes, measured as trtexec does, and layer by layer through TensorRT's own profiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime import clocks
from runtime.backends import Session
from runtime.backends.tensorrt import ENGINES, EngineSession
from runtime.engine.inspection import EngineLayer
from runtime.engine.loading import inspect_engine
from runtime.errors import BadRequest
from runtime.feeds import Feeds
from runtime.robust import Times
from runtime.runners import Asked, prepare

WARM_SECONDS = 0.2
SECONDS = 3.0
_FEWEST = 10
_QUEUED = 32


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
    """

    layer: EngineLayer
    seconds: float


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


def time_layers(path: Path, asked: Asked, runs: int = 50) -> tuple[list[LayerTime], float]:
    """Seconds of every layer, and of a run that is not profiled.

    Args:
        path: of the engine or ONNX file.
        asked: how to run it; the backend is one of ``ENGINES``.
        runs: how many runs to profile.

    Raises:
        BadRequest: another backend.
        BackendMissing: there is no GPU.
    """
    if asked.backend not in ENGINES:
        raise BadRequest(f"--backend {asked.backend}: choose from {', '.join(ENGINES)}.")
    runner = prepare(path, asked)
    engine = _engine(runner.session)
    plain = time_engine(engine, runner.feeds[0], 0.5)
    known = {layer.name: layer for layer in inspect_engine(engine.loaded)}
    times = engine.layer_times(runner.feeds[0], runs)
    layers = [LayerTime(known.get(n, EngineLayer(n)), float(np.median(t))) for n, t in times.items()]
    return layers, float(np.median(plain.device))


def _engine(session: Session) -> EngineSession:
    if not isinstance(session, EngineSession):
        raise BadRequest("only engines are timed so; see: secateur bench")
    return session


def slowest(layers: Sequence[LayerTime], count: int) -> list[LayerTime]:
    """The layers that take longest, the slowest first."""
    return sorted(layers, key=lambda each: -each.seconds)[:count]
