"""Runs recorded by ONNX Runtime's profiler, beside runs that are not.

A profile says how long a node kept the calling thread. On a CPU that is what its kernel takes. On a GPU it is what it
takes to start the kernel, unless every start waits for its end: CUDA and HIP do so where a variable of the environment
asks for it before they are loaded. Such runs are therefore recorded in a process of their own.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from runtime import clocks
from runtime.backends import SessionOptions
from runtime.backends.ort import PROVIDERS, OrtSession
from runtime.errors import RunError
from runtime.feeds import Feeds
from runtime.fresh import call_fresh
from runtime.nouns import counted
from runtime.runners import Runner
from runtime.sampling import WARM_UPS, take
from runtime.steps import Count

BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1", "HIP_LAUNCH_BLOCKING": "1"}
"""Makes the start of a kernel wait for its end."""

_EVENTS = 12_000
"""Most node events that are recorded; the file holds half a kilobyte of each."""
_FEWEST_RUNS = 8
_STARTING = 300.0
"""Seconds a process may take beyond its runs."""


@dataclass(frozen=True)
class Recorded:
    """What was recorded.

    Attributes:
        latency: median wall time of a run that is not recorded.
        busy: the same by CPU time, where one thread does all the work.
        runs: how many runs were recorded after warm-up, the last of all in ``events``.
        events: of the profiler.
        optimised: the model as the backend rewrote it.
    """

    latency: float
    busy: float
    runs: int
    events: list[dict[str, Any]]
    optimised: ModelProto


def record(plain: Runner, data: bytes, seconds: float, step: Callable[[Any], None]) -> Recorded:
    """Record runs of a model.

    Args:
        plain: the model, loaded; its first inputs are taken.
        data: the same file with a name on every node.
        seconds: most time to spend on runs.
        step: called with a line, or a count, before and during each step.

    Raises:
        RunError: the model does not load or run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = replace(
            plain.asked.options,
            profile=folder / "profile",
            save=folder / "optimised.onnx",
            folder=plain.path.absolute().parent,
            capture=False,  # what is replayed is no node any more
        )
        taken = _here if PROVIDERS[plain.asked.backend].memory == "cpu" else _elsewhere
        latency, busy, runs, events = taken(plain, data, options, seconds, step)
        optimised = onnx.load(folder / "optimised.onnx", load_external_data=False)
    return Recorded(latency, busy, runs, json.loads(events), optimised)


_Taken = tuple[float, float, int, str]


def _here(plain: Runner, data: bytes, options: SessionOptions, seconds: float, step: Callable[[Any], None]) -> _Taken:
    """Record in this process, in turn with runs that are not recorded."""
    recorder = OrtSession(data, options, plain.asked.backend)
    call, most = recorder.bind(plain.feeds[0]), _most(options)
    for _ in range(WARM_UPS):
        call()
    step("recording runs")
    taken = take(
        [plain.call(), call], seconds, lambda wall, _: wall.shape[1] >= most, 0, tick=_ticker(seconds, most, step)
    )
    wall, thread = (float(np.median(t[0])) for t in (taken.wall, taken.thread))
    single = plain.asked.options.threads == 1 and plain.asked.backend == "ort-cpu" and thread > 0
    events = recorder.end_profiling().read_text(encoding="utf-8")
    return wall, thread if single else wall, taken.wall.shape[1], events


def _elsewhere(
    plain: Runner, data: bytes, options: SessionOptions, seconds: float, step: Callable[[Any], None]
) -> _Taken:
    """Time runs in this process, then record others in one where kernels are waited for."""
    step("timing runs")
    timed = take([plain.call()], seconds / 2, tick=_ticker(seconds / 2, 0, step))
    folder = options.profile.parent if options.profile is not None else Path()
    (folder / "named.onnx").write_bytes(data)
    np.savez(folder / "feeds.npz", **plain.feeds[0])  # type: ignore[arg-type]
    request = {"backend": plain.asked.backend, "seconds": seconds / 2, "options": asdict(options)}
    step("recording runs, in a process that waits for every kernel")
    try:
        call_fresh(__name__, "child", [json.dumps(request, default=str), str(folder)], _STARTING + seconds, BLOCKING)
        runs, events = json.loads((folder / "recorded.json").read_text(encoding="utf-8"))
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise RunError(f"runs could not be recorded in a process of their own: {said[-1] if said else error}") from None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise RunError(f"runs could not be recorded in a process of their own: {error}") from error
    latency = float(np.median(timed.wall[0]))
    return latency, latency, runs, Path(events).read_text(encoding="utf-8")


def child(request: str, scratch: str) -> None:
    """Record runs in a process of its own; both arguments are those ``record`` gives on its command line."""
    asked, folder = json.loads(request), Path(scratch)
    given = asked["options"]
    paths = {k: Path(given[k]) for k in ("profile", "save", "folder")}
    options = SessionOptions(**{**given, **paths})
    with np.load(folder / "feeds.npz", allow_pickle=False) as held:
        feeds: Feeds = dict(held)
    recorder = OrtSession((folder / "named.onnx").read_bytes(), options, asked["backend"])
    most = _most(options)
    taken = take([recorder.bind(feeds)], asked["seconds"], lambda wall, _: wall.shape[1] >= most)
    answer = [taken.wall.shape[1], str(recorder.end_profiling())]
    (folder / "recorded.json").write_text(json.dumps(answer), encoding="utf-8")


def _most(options: SessionOptions) -> int:
    """How many runs are enough, by the number of nodes of the optimised model."""
    nodes = len(onnx.load(str(options.save), load_external_data=False).graph.node)
    return max(_EVENTS // max(nodes, 1), _FEWEST_RUNS)


def _ticker(seconds: float, most: int, step: Callable[[Any], None]) -> Callable[[int], None]:
    began = clocks.wall()

    def tick(rows: int) -> None:
        done = max((clocks.wall() - began) / seconds, rows / most if most else 0.0)
        step(Count("recording runs", min(done, 1.0) * seconds, seconds, "s", counted(rows, "run")))

    return tick
