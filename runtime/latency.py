"""Latency: warm up, then take samples in turn over all models, so that a noisy moment hits them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime import feeds
from runtime.backends import Session, SessionOptions, TensorSpec, open_session
from runtime.errors import BadRequest, RunError

P90_SAMPLES = 64
P99_SAMPLES = 662
"""Fewest samples for which a percentile means something: below, it is one or two unlucky moments."""

_WARM_UPS = 2
_MIN_SAMPLES = 8
_MAX_SAMPLES = 20_000
_BOOTSTRAP = 400
_RATIO_SAMPLES = 300

Times = NDArray[np.float64]

try:
    import resource
except ImportError:  # Windows: the scheduler's interference is not seen there

    def _switches() -> int:
        return 0

else:

    def _switches() -> int:
        """How often the scheduler took the processor away from this process so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True)
class Latency:
    """Wall time of one run, in seconds.

    Attributes:
        model: file name.
        backend, threads: how it was run; threads 0 is the backend's choice.
        shapes: input shapes.
        load: time to load the model.
        first: time of the first run.
        samples: wall time of each sample, shape (samples,).
        cpu: CPU time of the process during each sample, all threads, shape (samples,).
        switched: whether the scheduler took the processor away during a sample, shape (samples,).
    """

    model: str
    backend: str
    threads: int
    shapes: Mapping[str, tuple[int, ...]]
    load: float
    first: float
    samples: Times
    cpu: Times
    switched: NDArray[np.bool_]

    @property
    def median(self) -> float:
        """Median wall time."""
        return float(np.median(self.samples))

    def percentile(self, q: float) -> float | None:
        """A percentile of the wall time, or None where there are too few samples for it (see ``P90_SAMPLES``)."""
        needed = P99_SAMPLES if q >= 99 else P90_SAMPLES if q >= 90 else 1
        return float(np.percentile(self.samples, q)) if self.samples.size >= needed else None


@dataclass(frozen=True)
class Ratio:
    """How two models' latencies compare: ``value`` is other / first, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass
class _Runner:
    path: Path
    session: Session
    call: Callable[[], None]
    shapes: dict[str, tuple[int, ...]]
    load: float
    first: float


def bench(
    models: Sequence[Path],
    backend: str = "ort-cpu",
    *,
    threads: int = 0,
    seconds: float = 3.0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Latency]:
    """Measure models against each other in one interleaved session.

    Args:
        models: the files.
        backend: a name in ``runtime.backends.BACKENDS``.
        threads: threads inside one operator; 0 lets the backend choose.
        seconds: time to spend sampling each model, after warm-up.
        shapes: concrete input shapes by name; other dynamic axes get default sizes, the same for all models. They are
            those of the first model: another keeps its own size on an axis that both fix (a cache that was cut), and
            may lack an input.
        seed: of the inputs.
        progress: called with a line before each step.

    Returns:
        One result per model, in order. Sample ``i`` of all of them was taken in the same moment.

    Raises:
        BadRequest: no models, or a shape does not fit.
        BackendMissing: the backend is not installed.
        RunError: a model does not load or run.
    """
    if not models:
        raise BadRequest("name at least one model to measure.")
    if not 0 < seconds < math.inf:
        raise BadRequest(f"--seconds {seconds:g}: must be a finite number above zero.")
    if threads < 0:
        raise BadRequest(f"--threads {threads}: must be a number of threads, or 0 for the backend's choice.")
    step = progress or (lambda _: None)
    runners: list[_Runner] = []
    for path in models:
        step(f"loading {path.name}")
        runners.append(_prepare(path, backend, threads, shapes or {}, seed, runners[0] if runners else None))
    step(f"sampling for {seconds * len(runners):.0f} s")
    wall, cpu, switched = _sample([r.call for r in runners], seconds * len(runners))
    return [
        Latency(r.path.name, backend, threads, r.shapes, r.load, r.first, wall[i], cpu[i], switched[i])
        for i, r in enumerate(runners)
    ]


def compare(first: Latency, other: Latency, seed: int = 0) -> Ratio:
    """Ratio other / first of two interleaved measurements.

    Hodges-Lehmann estimate on the log ratios of pairs taken in the same moment (the median of their pairwise means),
    with a bootstrap interval. Pairs during which the scheduler took the processor away are left out if enough others
    remain.
    """
    rng = np.random.default_rng(seed)
    ratios = np.log(other.samples) - np.log(first.samples)
    undisturbed = ~(first.switched | other.switched)
    if undisturbed.sum() >= _MIN_SAMPLES:
        ratios = ratios[undisturbed]
    if ratios.size > _RATIO_SAMPLES:  # the estimate is quadratic in the number of pairs
        ratios = rng.choice(ratios, _RATIO_SAMPLES, replace=False)
    draws = [_hodges_lehmann(rng.choice(ratios, ratios.size)) for _ in range(_BOOTSTRAP)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Ratio(math.exp(_hodges_lehmann(ratios)), math.exp(low), math.exp(high))


def _hodges_lehmann(values: Times) -> float:
    i, j = np.triu_indices(values.size)
    return float(np.median((values[i] + values[j]) / 2))


def input_shapes(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> list[dict[str, tuple[int, ...]]]:
    """Candidate shapes for a model's inputs, the likeliest first."""
    known = {spec.name for spec in inputs}
    own = {name: shape for name, shape in shapes.items() if name in known}
    candidates = []
    for profile in feeds.PROFILES:
        bound = feeds.bind(inputs, own, profile).shapes
        if bound not in candidates:
            candidates.append(bound)
    return candidates


def _prepare(
    path: Path,
    backend: str,
    threads: int,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    reference: _Runner | None,
) -> _Runner:
    if not path.is_file():
        raise BadRequest(f"{path}: no such file.")
    started = time.perf_counter()
    session = open_session(path, backend, SessionOptions(threads=threads))
    load = time.perf_counter() - started
    if reference is not None:
        shapes = _fitted(shapes, reference.session.inputs, session.inputs)
    unknown = set(shapes) - {spec.name for spec in session.inputs}
    if unknown:
        raise BadRequest(f"--shape {unknown.pop()}: {path} has no such input.")
    allowed = feeds.constraints(onnx.load(path, load_external_data=False).graph)
    failure: RunError | None = None
    for bound in input_shapes(session.inputs, shapes):
        values = feeds.seeded(session.inputs, bound, seed, allowed)
        try:
            call = session.bind(values)
            started = time.perf_counter()
            call()
            return _Runner(path, session, call, bound, load, time.perf_counter() - started)
        except RunError as error:
            failure = failure or error
    raise RunError(f"{path} does not run: {failure}\nGive the sizes it expects with --shape NAME:1x3x224x224.")


def _fitted(
    shapes: Mapping[str, tuple[int, ...]], first: Sequence[TensorSpec], mine: Sequence[TensorSpec]
) -> dict[str, tuple[int, ...]]:
    """Shapes asked of the first model, as another takes them that fixes other sizes or lacks an input."""
    theirs, own = {s.name: s for s in first}, {s.name: s for s in mine}
    fitted = {}
    for name, shape in shapes.items():
        if name not in own or len(own[name].shape) != len(shape):
            if name not in theirs or name in own:
                fitted[name] = shape  # refused further on
            continue
        declared = zip(shape, theirs[name].shape, own[name].shape, strict=True)
        fitted[name] = tuple(o if isinstance(o, int) and isinstance(t, int) else s for s, t, o in declared)
    return fitted


def _sample(calls: Sequence[Callable[[], None]], seconds: float) -> tuple[Times, Times, NDArray[np.bool_]]:
    """Samples of every call in turn: wall seconds, CPU seconds, whether the scheduler interfered; (calls, samples)."""
    for call in calls:
        for _ in range(_WARM_UPS):
            call()
    rows: list[list[tuple[float, float, bool]]] = []
    end = time.perf_counter() + seconds
    while len(rows) < _MAX_SAMPLES and (len(rows) < _MIN_SAMPLES or time.perf_counter() < end):
        # every other round backwards, so that no model always runs in another's wake
        order = range(len(calls)) if len(rows) % 2 == 0 else range(len(calls) - 1, -1, -1)
        row: list[tuple[float, float, bool]] = [(0.0, 0.0, False)] * len(calls)
        for i in order:
            before = _switches()
            cpu = time.process_time()
            wall = time.perf_counter()
            calls[i]()
            wall = time.perf_counter() - wall
            cpu = time.process_time() - cpu
            row[i] = wall, cpu, _switches() > before
        rows.append(row)
    table = np.array(rows, np.float64)
    return table[:, :, 0].T, table[:, :, 1].T, table[:, :, 2].T.astype(bool)
