"""Latency: warm up, then take samples in turn over all models, so that a noisy moment hits them alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import clocks
from runtime.backends import SessionOptions
from runtime.cold import Cold, start_cold
from runtime.contention import Flag, find_contention
from runtime.errors import BadRequest
from runtime.gpu_state import GpuRecord, watched
from runtime.model_files import told_apart
from runtime.nouns import counted
from runtime.robust import Ratio, Times, median_interval, needed, ratio_of, undisturbed
from runtime.runners import Asked, prepare_alike
from runtime.sampling import take
from runtime.steps import Count
from runtime.streams import Stream, run_streams


@dataclass(frozen=True)
class Latency:
    """Time of one run, in seconds.

    Attributes:
        model: file name, with as many of its folders as tell it from the others.
        backend, threads: how it was run; threads 0 is the backend's choice.
        shapes: input shapes.
        load: time to load the model.
        first: time of the first run.
        samples: wall time of each sample, shape (samples,).
        cpu: CPU time of the process during each sample, all threads, shape (samples,).
        switched: whether the scheduler took the processor away during a sample, shape (samples,).
        switches: how often it did.
        thread: CPU time of the calling thread; with one thread that is all of it.
        others: how many processors other work kept busy in that moment; NaN where that is not known.
        device: time on the device's own clock; NaN where it has none.
        batch: samples in one run.
        settled: whether sampling ended because the interval of the median was narrow enough.
        flags: signs that something else used the machine.
        cold: a start in a fresh process, where it was asked for.
        streams: runs side by side, where they were asked for.
        gpu: clocks, power and temperature before and after, on an NVIDIA GPU.
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
    switches: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    thread: Times = field(default_factory=lambda: np.zeros(0))
    others: Times = field(default_factory=lambda: np.zeros(0))
    device: Times = field(default_factory=lambda: np.zeros(0))
    batch: int = 1
    settled: bool = False
    flags: tuple[Flag, ...] = ()
    cold: Cold | None = None
    streams: Stream | None = None
    gpu: GpuRecord | None = None

    @property
    def median(self) -> float:
        """Median wall time."""
        return float(np.median(self.samples))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the median."""
        return median_interval(self.samples)

    @property
    def throughput(self) -> float:
        """Samples in a second: from runs side by side, where these were asked for, else one after another."""
        return self.batch * (self.streams.rate if self.streams is not None else 1 / float(self.samples.mean()))

    @property
    def device_median(self) -> float | None:
        """Median time on the device's own clock, None where it has none."""
        known = self.device[np.isfinite(self.device)]
        return float(np.median(known)) if known.size else None

    def percentile(self, q: float) -> float | None:
        """A percentile of the wall time, or None where there are too few samples for it (see ``robust.needed``)."""
        return float(np.percentile(self.samples, q)) if self.samples.size >= needed(q) else None


def bench(
    models: Sequence[Path],
    backend: str = "ort-cpu",
    *,
    threads: int = 0,
    seconds: float = 3.0,
    precision: float | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    batch: int | None = None,
    inputs: Path | None = None,
    seed: int = 0,
    streams: int = 1,
    cold: bool = False,
    options: SessionOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Latency]:
    """Measure models against each other in one interleaved session.

    Args:
        models: the files.
        backend: a name in ``runtime.backends.BACKENDS``.
        threads: threads inside one operator; 0 lets the backend choose.
        seconds: most time to spend sampling each model, after warm-up.
        precision: stop earlier, as soon as the 95 % interval of every median reaches no further than this share to
            either side. None takes all of the time.
        shapes: concrete input shapes by name; other dynamic axes get default sizes, the same for all models. They are
            those of the first model: another keeps its own size on an axis that both fix (a cache that was cut), and
            may lack an input.
        batch: size of the batch axis.
        inputs: ``.npz`` of recorded inputs to cycle through, by input name.
        seed: of the inputs, where none are recorded.
        streams: also run each model in so many threads at a time, for as long again.
        cold: also load and run each model once in a fresh process, for the cold times and the peak memory.
        options: how to load the models; ``threads`` wins over it.
        progress: called with a line before each step.

    Returns:
        One result per model, in order. Sample ``i`` of all of them was taken in the same moment.

    Raises:
        BadRequest: no models, or an option does not fit.
        BackendMissing: the backend is not installed.
        RunError: a model does not load or run.
    """
    _check(models, seconds, precision, streams)
    asked = Asked(backend, replace(options or SessionOptions(), threads=threads), shapes, batch, seed, inputs)
    step = progress or (lambda _: None)
    runners = prepare_alike([(path, asked) for path in models], step)
    step(f"sampling for at most {seconds * len(runners):.0f} s")
    enough = partial(_settled, precision) if precision is not None else None
    began, most = clocks.wall(), seconds * len(runners)

    def tick(rows: int) -> None:
        step(Count("sampling", min(clocks.wall() - began, most), most, "s", counted(rows * len(runners), "sample")))

    record = watched(backend)
    taken = take([r.call() for r in runners], most, enough, tick=tick)
    gpu = record()
    side_by_side: list[Stream | None] = [None] * len(runners)
    if streams > 1:
        step(f"running {streams} at a time")
        side_by_side = [*run_streams(runners, streams, seconds)]
    results, names = [], told_apart(models)
    for i, r in enumerate(runners):
        if cold:
            step(f"starting {r.path.name} in a fresh process")
        switched = taken.switches[i] > 0
        flags = find_contention(taken.wall[i], taken.thread[i], switched, taken.others[i], threads, clocks.processors())
        results.append(
            Latency(
                names[i],
                backend,
                threads,
                r.shapes,
                r.load,
                r.first,
                taken.wall[i],
                taken.cpu[i],
                switched,
                taken.switches[i],
                taken.thread[i],
                taken.others[i],
                taken.device[i],
                r.batch,
                taken.settled,
                flags,
                start_cold(r) if cold else None,
                side_by_side[i],
                gpu,
            )
        )
    return results


def compare(first: Latency, other: Latency, seed: int = 0) -> Ratio:
    """Ratio other / first of two interleaved measurements.

    Hodges-Lehmann estimate on the log ratios of pairs taken in the same moment (the median of their pairwise means),
    with a bootstrap interval. Pairs during which the scheduler took the processor away are left out if enough others
    remain.
    """
    ratios = np.log(other.samples) - np.log(first.samples)
    return ratio_of([undisturbed(ratios, first.switched | other.switched)], seed)


def _settled(precision: float, wall: Times, _thread: Times) -> bool:
    """Say whether every median is known to within a share of itself."""
    for row in wall:
        low, high = median_interval(row)
        middle = float(np.median(row))
        if max(high - middle, middle - low) > precision * middle:
            return False
    return True


def _check(models: Sequence[Path], seconds: float, precision: float | None, streams: int) -> None:
    if not models:
        raise BadRequest("name at least one model to measure.")
    check_seconds(seconds)
    check_sampling(precision, streams)


def check_sampling(precision: float | None, streams: int) -> None:
    """Refuse a precision or a number of streams that is none with a BadRequest."""
    if precision is not None and not 0 < precision < 1:
        raise BadRequest(f"--precision {precision:g}: must be between 0 and 1, both excluded (1 % is 0.01).")
    if streams < 1:
        raise BadRequest(f"--streams {streams}: must be at least 1.")


def check_seconds(seconds: float) -> None:
    """Refuse a time limit that is none with a BadRequest."""
    if not 0 < seconds < math.inf:
        raise BadRequest(f"--seconds {seconds:g}: must be a finite number above zero.")
