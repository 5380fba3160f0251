"""Prune to a latency: choose what goes by a table of seconds, build, measure against the original, correct, repeat."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.atomic import scratch
from exporter.choice import Shallow, recorded, without_blocks
from exporter.errors import SMALLER, GoalError, OutOfReach, UsageError
from exporter.graph import Graph
from exporter.groups import find_groups
from exporter.latency.choice import Candidate, Chooser, check_competition, chooser
from exporter.latency.cost import LatencyCost
from exporter.latency.device import Device, device_for, discard, runnable
from exporter.model_file import load
from exporter.normalise import serialize_with_data
from exporter.one_round import chosen_by
from exporter.plan import Plan
from exporter.pruner import Result, carried
from exporter.request import Request, means_of
from exporter.request_check import check_inputs, check_output
from exporter.rewriter import rewrite
from runtime.backends import need_backend
from runtime.comparison import Comparison, compare_models
from runtime.engine.timing import profile_engine
from runtime.profiling import Profile, profile
from runtime.robust import Ratio
from runtime.roofline import peaks
from runtime.runners import Asked
from runtime.savings import Saving, find_savings
from runtime.staircase import staircase, usual_threads

if TYPE_CHECKING:
    from exporter.calibration.data import Source
    from runtime.images import Preprocess

CLOSE = 0.02
"""How far from the target a measured result may be, as a share of the target."""
_ROUNDS = 6
_PRECISION = 0.01
_PROFILE_SECONDS = 3.0
_COMPARE_SECONDS = 8.0
"""Most time for a profile and a comparison; short models need less."""
_PROFILED_RUNS = 500
_COMPARED_RUNS = 2000
_LESS = 0.97
_MORE = 1 + 1e-6
_NUDGES = 20
_DENSE = "dense.onnx"
_NOTHING = "Nothing was written."

Key = tuple[tuple[int, ...], frozenset[str]]
"""What tells one cut from another."""


@dataclass(frozen=True)
class Target:
    """What to reach: a share of the original's latency, or seconds."""

    share: float | None = None
    seconds: float | None = None

    @property
    def text(self) -> str:
        """As it is given on the command line."""
        return f"{self.share:g}x" if self.share is not None else f"{1e3 * (self.seconds or 0):g}ms"


@dataclass(frozen=True)
class LatencyOutcome:
    """What pruning to a latency came to.

    Attributes:
        target: what was asked for, and ``share`` it is of the original's latency.
        share: the same, relative to the original.
        predicted: by the table, after it learned from what was tried.
        comparison: the result against the original, measured.
        tried: predicted and measured ratios of every round.
        savings: what each layer saved, and what holds it back.
    """

    target: Target
    share: float
    predicted: float
    comparison: Comparison
    tried: tuple[tuple[float, Ratio], ...]
    savings: tuple[Saving, ...]

    @property
    def ratio(self) -> Ratio:
        """Measured latency relative to the original's."""
        return self.comparison.ratio


@dataclass(frozen=True)
class _Try:
    candidate: Candidate
    predicted: float
    comparison: Comparison
    profile: Profile

    def miss(self, share: float) -> float:
        """How far from the target, relative to it; being too slow counts more than being too fast by as much."""
        apart = self.comparison.ratio.value / share - 1
        return apart if apart > 0 else -apart * (1 - 1e-6)


@dataclass(frozen=True)
class _Bench:
    """Where candidates are built and measured.

    Attributes:
        graph: the original, and ``file`` what runs it, in a folder of its own.
        device: what runs it.
        dense: its profile.
        step: called with a line before each step.
    """

    graph: Graph
    file: Path
    device: Device
    dense: Profile
    step: Callable[[str], None]

    def profiled(self, graph: Graph) -> Profile:
        """A profile of another graph."""
        built = self._built(graph, "other")
        found = _profiled(built, self.device, _PROFILE_SECONDS, graph.binding.shapes)
        discard(built)
        return found

    def measured(self, plan: Plan, name: str) -> tuple[Comparison, Profile]:
        """What a plan leaves, against the original."""
        built = self._built(rewrite(self.graph, plan), name)
        busy = self.dense.busy
        seconds = min(max(_COMPARED_RUNS * busy, _COMPARE_SECONDS / 4), _COMPARE_SECONDS)
        comparison = compare_models(
            self.file, built, self.device.asked, seconds=seconds, clock=self.device.clock, precision=_PRECISION,
            outputs=False,
        )  # fmt: skip
        seconds = min(max(_PROFILED_RUNS * busy, _PROFILE_SECONDS / 6), _PROFILE_SECONDS / 2)
        found = _profiled(built, self.device, seconds, comparison.other.shapes)  # an input may have shrunk
        discard(built)
        return comparison, found

    def _built(self, graph: Graph, name: str) -> Path:
        return runnable(_written(graph, self.file.with_name(f"{name}.onnx")), self.device, self.step)


def parse_latency(text: str) -> Target:
    """Read ``0.6x``, ``60%`` or ``5ms``.

    Raises:
        UsageError: not of that form, or no gain.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(x|%|ms|us|s)\s*", text)
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if not found or number <= 0:
        raise UsageError(f"--latency {text}: expected a share such as 0.6x, or a time such as 5ms.")
    unit = found[2]
    if unit in ("x", "%"):
        share = number if unit == "x" else number / 100
        if share >= 1:
            raise UsageError(f"--latency {text}: the share that may be left must be below 1x.")
        return Target(share=share)
    return Target(seconds=number * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit])


def prune_to_latency(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    target: Target,
    asked: Asked,
    *,
    layers: int | None = None,
    score: str | None = None,
    layer_score: str = "similarity",
    consumers: bool = False,
    scope: str | None = None,
    align: int | str = "auto",
    min_width: int = 1,
    granularity: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    io: Sequence[str] = (),
    calib: Source | None = None,
    preprocess: Preprocess | None = None,
    calib_samples: int = 512,
    labels: str | None = None,
    metric: str | None = None,
    compensate: bool = True,
    cache: bool = False,
    prove: bool = True,
    inputs: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> tuple[Result, LatencyOutcome]:
    """Prune a file until it takes a given share of its latency, as measured on this machine.

    Args:
        model, output: the file to prune, and the one to write.
        target: the latency to reach.
        asked: backend, threads and shapes it is measured with. For TensorRT an engine is built of every candidate.
        layers: drop this many residual blocks first; the widths of what is left then meet the target. Without it, and
            with ``layers`` and other kinds in ``granularity``, blocks compete with widths.
        score, layer_score, consumers, scope, align, min_width, granularity, keep, only, io, calib, preprocess,
            calib_samples, labels, metric, compensate, cache, prove, inputs, seed: as for ``prune``. ``auto`` alignment
            is to this machine's staircase.
        progress: called with a line before each step.

    Returns:
        What ``prune`` returns, and what was measured.

    Raises:
        BackendMissing: this machine lacks the backend or its device.
        UsageError, ModelError: as for ``prune``.
        GoalError: the latency cannot be reached, or nothing that was tried is faster than the original. Nothing is
            written.
    """
    started = time.perf_counter()
    step = progress or (lambda _: None)
    need_backend(asked.backend)
    check_output(output)
    check_inputs(calib, preprocess, compensate, labels, metric)
    request = Request(
        layers=layers, score=score, layer_score=layer_score, consumers=consumers, scope=scope, align=align,
        min_width=min_width, granularity=granularity, keep=keep, only=only, io=io, seed=seed,
    )  # fmt: skip
    check_competition(request, calib is not None)
    means = means_of(calib, inputs, cache, compensate, prove, step)
    step("reading and analysing the model")
    graph = load(model, dict(asked.shapes or {}))
    device = device_for(asked, graph)
    groups = find_groups(graph, io)
    if calib is not None:
        from exporter.calibration.data import calibration_of

        found = calibration_of(
            calib, graph, preprocess=preprocess, limit=calib_samples, seed=seed, labels=labels, metric=metric
        )
        means = replace(means, calibration=found)
    options = recorded(request, means)
    options |= {"latency": target.text, "device": device.asked.backend, "threads": device.asked.options.threads}
    with scratch() as folder:
        step("profiling the original")
        file = runnable(_written(graph, folder / _DENSE), device, step)
        dense = _profiled(file, device, _PROFILE_SECONDS)
        if dense.shapes and dict(dense.shapes) != graph.binding.shapes:  # it does not run at those taken first
            graph = load(model, dense.shapes)
            groups = find_groups(graph, io)
        bench = _Bench(graph, file, device, dense, step)
        share = target.share if target.share is not None else (target.seconds or 0.0) / dense.latency
        if share >= 1:
            raise GoalError(
                f"--latency {target.text}: the original takes {1e3 * dense.latency:.3g} ms already; nothing to do."
            )
        request = request.with_budget("macs", share)
        left = Shallow(groups, request, ())
        if layers is not None:
            step("ranking residual blocks")
            left = without_blocks(groups, request, means)
        backend, threads = device.asked.backend, device.asked.options.threads
        stairs = staircase(backend, usual_threads(backend, threads), half=device.half, progress=step)
        cost = LatencyCost(groups, dense, stairs, device.least)
        if left.groups is not groups:
            step("profiling what is left without the residual blocks")
            cost = LatencyCost(left.groups, bench.profiled(left.groups.graph), stairs, device.least, cost.whole)
        choose = chooser(cost, left.request, means, options, left.notes)
        tries = _search(bench, cost, choose, share, target)
        best = min(tries, key=lambda t: t.miss(share))
        _check_gain(best, share, target)
        savings = find_savings(dense, best.profile, peaks(backend, threads))
    chosen = replace(chosen_by(best.candidate.plan, graph), grounds=best.candidate.grounds)
    result = carried(graph, request, chosen, means, output, started)
    tried = tuple((t.predicted, t.comparison.ratio) for t in tries)
    return result, LatencyOutcome(target, share, best.predicted, best.comparison, tried, tuple(savings))


def _search(bench: _Bench, cost: LatencyCost, choose: Chooser, share: float, target: Target) -> list[_Try]:
    """Plans that were built and measured, until one is close to the target."""
    tries: list[_Try] = []
    seen: dict[Key, float] = {}
    wanted = share
    for number in range(1, _ROUNDS + 1):
        try:
            found = _unseen(choose, wanted, seen, share)
        except OutOfReach as error:
            if tries:
                break
            found = choose(min(error.left * _MORE, 1 - 1e-6))  # only the table says so: the smallest is measured
        except GoalError as error:
            if tries:
                break
            raise GoalError(_out_of_reach(str(error), target)) from error
        if _key(found) in seen:
            break  # alignment leaves nothing in between
        left = cost.without(found.gone)
        predicted = left.macs(found.counts) / cost.whole
        bench.step(f"round {number}: building and measuring (predicted {predicted:.3f}x)")
        comparison, measured = bench.measured(found.plan, str(number))
        ratio = seen[_key(found)] = comparison.ratio.value
        bench.step(f"round {number}: measured {ratio:.3f}x, target {share:.3f}x")
        tries.append(_Try(found, predicted, comparison, measured))
        if abs(ratio / share - 1) <= CLOSE:
            break
        left.observe(found.counts, measured)
        # what is left of the difference is no matter of single kernels: it scales
        wanted = share * (left.macs(found.counts) / cost.whole) / ratio
    return tries


def _unseen(choose: Chooser, wanted: float, seen: Mapping[Key, float], share: float) -> Candidate:
    """A plan for a share, with less of it where what it leaves was found too slow already."""
    for nudge in range(_NUDGES):
        found = choose(min(wanted * _LESS**nudge, 1 - 1e-6))
        if seen.get(_key(found), 0.0) <= share * (1 + CLOSE):
            break
    return found


def _key(found: Candidate) -> Key:
    return found.counts, found.gone


def _profiled(
    file: Path, device: Device, seconds: float, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Profile:
    asked = replace(device.asked, shapes=shapes) if shapes else device.asked
    return (profile_engine if device.engine else profile)(file, asked, seconds=seconds)


def _written(graph: Graph, path: Path) -> Path:
    path.write_bytes(serialize_with_data(graph.model, graph.folder))
    return path


def _check_gain(best: _Try, share: float, target: Target) -> None:
    ratio = best.comparison.ratio
    if ratio.high >= 1:
        raise GoalError(
            f"--latency {target.text}: the best result measures {ratio.value:.3f} ({ratio.low:.3f} .. {ratio.high:.3f})"
            f" of the original's latency: no gain. {_NOTHING}\n"
            "See why with: secateur profile MODEL"
        )
    if ratio.value > share * (1 + 2 * CLOSE):
        raise GoalError(_out_of_reach(f"the best result measures {ratio.value:.3f}x.\n{SMALLER}", target))


def _out_of_reach(why: str, target: Target) -> str:
    return f"--latency {target.text} cannot be reached: {why}\n{_NOTHING}"
