"""Which of two models is faster, and how sure that is: interleaved pairs, a ratio with an interval, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import clocks
from runtime.agreement import OutputDifference, output_differences
from runtime.contention import Flag, find_contention
from runtime.errors import BadRequest
from runtime.feeds import Array, Feeds, in_width
from runtime.latency import check_seconds
from runtime.layers import LayerDifference, layer_differences
from runtime.profiling import Profile, profile
from runtime.robust import Ratio, Times, ratio_of, undisturbed
from runtime.roofline import peaks
from runtime.runners import Asked, Runner, again, prepare_alike
from runtime.sampling import Samples, take
from runtime.savings import Saving, find_savings
from runtime.steps import Count

MARGIN = 0.01
"""A difference below one percent is none: where a model comes to lie in memory makes as much."""
ROUNDS = 16
_FEWEST_ROUNDS = 4
_FEWEST_PAIRS = 4
_FEW_QUARTILES = 24
"""Fewest undisturbed samples of a round that have a quartile worth the name."""
_MOVED = 0.9
"""Share of the pairs in which a clock must have moved: some machines' stand still now and then for a short run."""
_AGREEMENT_RUNS = 3
_ALIKE = 0.5
"""Share of the time in layers that both models have, from which on one counts as made of the other."""
_CLOCKS = ("auto", "wall", "cpu", "device")


@dataclass(frozen=True)
class Goal:
    """What is required of the other model.

    Attributes:
        slower: it may take at most so much longer than the first, as a share (0.02 is 2 %).
        speedup: it has to be so many times as fast as the first.
    """

    slower: float | None = None
    speedup: float | None = None

    @property
    def most(self) -> float | None:
        """The largest ratio of times that meets the goal."""
        limits = [1 + self.slower] if self.slower is not None else []
        limits += [1 / self.speedup] if self.speedup is not None else []
        return min(limits, default=None)

    def met(self, ratio: Ratio) -> bool | None:
        """Whether a ratio meets the goal; None where its interval leaves that open."""
        most = self.most
        if most is None or ratio.high <= most:
            return True
        return False if ratio.low > most else None


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        model: file name.
        backend, threads: how it was run.
        shapes: of its inputs.
        wall, cpu: seconds of each sample, on the wall clock and of the calling thread, shape (samples,).
        device: seconds on its device's own clock; NaN where it has none.
        switched: whether the scheduler interfered.
    """

    model: str
    backend: str
    threads: int
    shapes: dict[str, tuple[int, ...]]
    wall: Times
    cpu: Times
    device: Times
    switched: NDArray[np.bool_]

    @property
    def median(self) -> float:
        """Median wall time."""
        return float(np.median(self.wall))


@dataclass(frozen=True)
class Comparison:
    """Two models side by side. Ratios are other / first: below one the other is faster.

    Attributes:
        first, other: what was measured; sample ``i`` of both belongs to one moment.
        clock: the one that decides, ``wall``, ``cpu`` or ``device``.
        ratio: by that clock.
        wall: by the wall clock.
        verdict: of the other model: ``faster``, ``slower``, ``same`` (within a percent) or ``inconclusive``.
        rounds: how often both were loaded anew.
        goal: what was required; ``met`` says whether it is, None where the interval leaves that open.
        outputs: how far the outputs are apart.
        layers: what each layer takes in both.
        flags: signs that something else used the machine.
        savings: what each layer of the other saved, and what holds it back, where both were profiled and most of their
            layers are the same.
    """

    first: Side
    other: Side
    clock: str
    ratio: Ratio
    wall: Ratio
    verdict: str
    rounds: int
    goal: Goal
    met: bool | None
    outputs: tuple[OutputDifference, ...]
    layers: tuple[LayerDifference, ...] = ()
    flags: tuple[Flag, ...] = field(default=())
    savings: tuple[Saving, ...] = ()


def verdict_of(ratio: Ratio, margin: float = MARGIN) -> str:
    """The word for a ratio: a difference counts if the interval leaves out one and the estimate exceeds the margin."""
    if ratio.low > 1 and ratio.value >= 1 + margin:
        return "slower"
    if ratio.high < 1 and ratio.value <= 1 / (1 + margin):
        return "faster"
    return "same" if ratio.high <= 1 + margin and ratio.low >= 1 / (1 + margin) else "inconclusive"


def compare_models(
    first: Path,
    other: Path,
    asked: Asked,
    asked_other: Asked | None = None,
    *,
    seconds: float = 10.0,
    rounds: int = ROUNDS,
    clock: str = "auto",
    goal: Goal | None = None,
    precision: float | None = None,
    outputs: bool = True,
    layers: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare two models.

    Both are loaded anew in every round, in turns, because where they come to lie in memory is worth a percent that no
    number of samples removes. Within a round their runs alternate. It ends as soon as the question is answered: the
    goal is met or missed, or else the verdict is clear.

    Args:
        first, other: the files.
        asked: how to run the first.
        asked_other: how to run the other, if otherwise.
        seconds: most time for all samples.
        rounds: most rounds.
        clock: what decides. ``auto``: CPU time of the thread where both run in one thread on the CPU, because waiting
            for the processor does not count in it; else wall time.
        goal: what is required.
        precision: go on until the interval reaches no further than this share to either side as well.
        outputs: compare what comes out as well.
        layers: profile both as well.
        progress: called with a line before each step.

    Raises:
        BadRequest: an option does not fit.
        BackendMissing, RunError: as for ``prepare``.
    """
    check_seconds(seconds)
    asked_other, goal, step = asked_other or asked, goal or Goal(), progress or (lambda _: None)
    check_goal(goal)
    step(f"loading {first.name} and {other.name}")
    pair = prepare_alike([(first, asked), (other, asked_other)])
    pair[1] = replace(pair[1], feeds=_same_inputs(pair[0], pair[1]))
    clock = _clock(clock, pair)
    found = _agreement(pair) if outputs else []
    step(f"sampling for at most {seconds:.0f} s")
    taken = _rounds(pair, seconds, rounds, clock, goal, precision, step)
    ratio, wall = _ratio(taken, clock), _ratio(taken, "wall")
    rows: list[LayerDifference] = []
    savings: list[Saving] = []
    if layers:
        sides = [profile(r.path, r.asked, seconds=min(seconds, 4.0), progress=progress) for r in pair]
        rows = layer_differences(sides[0].nodes, sides[1].nodes)
        step("measuring what this machine does at its best")
        savings = _savings(sides[0], sides[1], asked_other)
    sides_ = [_side(pair[k], taken, k) for k in (0, 1)]
    flags = _flags(sides_, taken)
    return Comparison(
        sides_[0],
        sides_[1],
        clock,
        ratio,
        wall,
        verdict_of(ratio),
        len(taken),
        goal,
        goal.met(ratio) if goal.most is not None else None,
        tuple(found),
        tuple(rows),
        flags,
        tuple(savings),
    )


def _savings(first: Profile, other: Profile, asked: Asked) -> list[Saving]:
    """Why the other is not faster; nothing to say of models that have little in common."""
    found = find_savings(first, other, peaks(asked.backend, asked.options.threads))
    alike = sum(s.seconds for s in found if s.time_left is not None)
    return found if alike >= _ALIKE * sum(s.seconds for s in found) else []


def check_goal(goal: Goal) -> None:
    """Refuse a goal out of range with a BadRequest."""
    if goal.slower is not None and not 0 <= goal.slower < 10:
        raise BadRequest(f"--fail-if-slower {goal.slower:g}: must be a share such as 2% or 0.02.")
    if goal.speedup is not None and not 0 < goal.speedup < 1000:
        raise BadRequest(f"--min-speedup {goal.speedup:g}: must be above zero.")


def _same_inputs(first: Runner, other: Runner) -> tuple[Feeds, ...]:
    """Inputs of the other model: those of the first where they fit."""
    count = min(len(first.feeds), len(other.feeds))
    return tuple(
        {name: _fitting(given.get(name), own) for name, own in mine.items()}
        for given, mine in zip(first.feeds[:count], other.feeds[:count], strict=True)
    )


def _fitting(given: Array | None, own: Array) -> Array:
    """An input as the other model takes it, perhaps in another width (fp16); its own where it is another thing."""
    if given is None or given.shape != own.shape:
        return own
    found = in_width(given, own.dtype)
    return found if found.dtype == own.dtype else own


def check_clock(wanted: str) -> None:
    """Refuse a clock that there is not with a BadRequest."""
    if wanted not in _CLOCKS:
        raise BadRequest(f"--clock {wanted}: choose from {', '.join(_CLOCKS)}.")


def _clock(wanted: str, pair: Sequence[Runner]) -> str:
    check_clock(wanted)
    single = all(r.asked.backend == "ort-cpu" and r.asked.options.threads == 1 for r in pair)
    if wanted == "cpu" and not single:
        raise BadRequest("--clock cpu counts one thread: give --threads 1 (and the backend ort-cpu).")
    return ("cpu" if single else "wall") if wanted == "auto" else wanted


def _agreement(pair: Sequence[Runner]) -> list[OutputDifference]:
    first, other = pair
    given, mine = list(first.feeds), list(other.feeds)
    if len(given) == 1:  # seeded: some more
        for k in range(1, _AGREEMENT_RUNS):
            more = {n: _varied(v, k) for n, v in given[0].items()}
            given.append(more)
            mine.append({n: _fitting(more.get(n), _varied(v, k)) for n, v in mine[0].items()})
    return output_differences(first.session, other.session, given, mine)


def _varied(array: np.ndarray, k: int) -> np.ndarray:
    """Other values of the same distribution: the entries in another order; of text the rows, as columns differ."""
    if array.dtype.kind == "O" and array.ndim:
        return array[np.random.default_rng(k).permutation(len(array))]
    order = np.random.default_rng(k).permutation(array.size)
    return np.ascontiguousarray(array.ravel()[order].reshape(array.shape))


def _rounds(
    pair: list[Runner],
    seconds: float,
    most: int,
    clock: str,
    goal: Goal,
    precision: float | None,
    step: Callable[[str], None],
) -> list[Samples]:
    """Samples of each round; row 0 is the first model's."""
    taken: list[Samples] = []
    end = clocks.wall() + seconds
    current = list(pair)

    def tick(_: int = 0) -> None:
        done = min(seconds - (end - clocks.wall()), seconds)
        step(Count("sampling", done, seconds, "s", f"round {len(taken) + 1} of at most {most}"))

    for number in range(most):
        left = end - clocks.wall()
        if number >= _FEWEST_ROUNDS and left <= 0:
            break
        if number:
            for k in (1, 0) if number % 2 else (0, 1):
                current[k] = again(pair[k])
        share = max(left, 0.0) / (most - number)
        taken.append(take([r.call() for r in current], share, least=_FEWEST_PAIRS, tick=tick))
        if number + 1 >= _FEWEST_ROUNDS and _answered(_ratio(taken, clock), goal, precision):
            break
    return taken


def _answered(ratio: Ratio, goal: Goal, precision: float | None) -> bool:
    if precision is not None and max(ratio.high / ratio.value, ratio.value / ratio.low) > 1 + precision:
        return False
    if goal.most is not None:
        return goal.met(ratio) is not None
    return verdict_of(ratio) != "inconclusive"


def _ratio(taken: Sequence[Samples], clock: str) -> Ratio:
    """Of the pairs; where a round has many, of its lower quartiles: noise only adds time, so they repeat better."""
    logs, calm = [], []
    for samples in taken:
        times = {"wall": samples.wall, "cpu": samples.thread, "device": samples.device}[clock]
        moved = (times > 0).all(0)  # NaN where there is no such clock
        if moved.mean() < _MOVED:
            raise BadRequest(f"--clock {clock}: this backend has no such clock; choose wall.")
        times, disturbed = times[:, moved], samples.switches[:, moved].max(0) > 0
        logs.append(undisturbed(np.log(times[1]) - np.log(times[0]), disturbed))
        calm.append([undisturbed(row, disturbed) for row in times])
    if len(calm) >= _FEWEST_ROUNDS and all(first.size >= _FEW_QUARTILES for first, _ in calm):
        logs = [np.log(np.percentile(other, [25.0]) / np.percentile(first, [25.0])) for first, other in calm]
    return ratio_of(logs)


def _side(runner: Runner, taken: Sequence[Samples], k: int) -> Side:
    return Side(
        runner.path.name,
        runner.asked.backend,
        runner.asked.options.threads,
        runner.shapes,
        np.concatenate([s.wall[k] for s in taken]),
        np.concatenate([s.thread[k] for s in taken]),
        np.concatenate([s.device[k] for s in taken]),
        np.concatenate([s.switches[k] > 0 for s in taken]),
    )


def _flags(sides: Sequence[Side], taken: Sequence[Samples]) -> tuple[Flag, ...]:
    """Signs of contention in either series, each once."""
    others = np.concatenate([s.others[0] for s in taken])
    found: dict[str, Flag] = {}
    for side in sides:
        for flag in find_contention(side.wall, side.cpu, side.switched, others, side.threads, clocks.processors()):
            found.setdefault(flag.kind, flag)
    return tuple(found.values())
