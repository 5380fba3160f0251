"""Prune to a latency: choose what goes by a table of seconds, build, measure against the original, correct, repeat."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.atomic import scratch
from exporter.choice import Request
from exporter.errors import GoalError, UsageError
from exporter.graph import Graph
from exporter.groups import find_groups
from exporter.latency_choice import Candidate, Chooser, chooser
from exporter.latency_cost import LatencyCost
from exporter.latency_device import Device, device_for, discard, runnable
from exporter.model_file import load
from exporter.normalise import serialize_with_data
from exporter.plan import Plan
from exporter.pruner import Result, check_inputs, prune
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
    from exporter.calibration.data import Calibration, Source
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
_NUDGES = 20
_DENSE = "dense.onnx"

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
    plan: Plan
    predicted: float
    comparison: Comparison
    profile: Profile

    def miss(self, share: float) -> float:
        """How far from the target, relative to it; being too slow counts more than being too fast by as much."""
        apart = self.comparison.ratio.value / share - 1
        return apart if apart > 0 else -apart * (1 - 1e-6)


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
        score, layer_score, consumers, scope, align, min_width, granularity, keep, only, io, calib, preprocess,
            calib_samples, labels, metric, compensate, prove, inputs, seed: as for ``prune``. ``auto`` alignment is to
            this machine's staircase. With ``layers`` and other kinds in ``granularity`` residual blocks compete with
            widths.
        progress: called with a line before each step.

    Returns:
        What ``prune`` returns, and what was measured.

    Raises:
        BackendMissing: this machine lacks the backend or its device.
        UsageError, ModelError: as for ``prune``.
        GoalError: the latency cannot be reached, or nothing that was tried is faster than the original. Nothing is
            written.
    """
    step = progress or (lambda _: None)
    need_backend(asked.backend)
    check_inputs(calib, preprocess, compensate, labels, metric)
    step("reading and analysing the model")
    graph = load(model, dict(asked.shapes or {}))
    device = device_for(asked, graph)
    asked = device.asked
    groups = find_groups(graph, io)
    calibration = _calibration(calib, graph, preprocess, calib_samples, seed, labels, metric)
    given = {"score": score, "scope": scope, "align": align, "min_width": min_width, "granularity": granularity}
    recorded: dict[str, object] = {
        **{k: list(v) if isinstance(v, (list, tuple)) else v for k, v in given.items() if v is not None},
        "latency": target.text,
        "device": asked.backend,
        "threads": asked.options.threads,
        "keep": list(keep),
        "only": list(only),
    }
    with scratch() as folder:
        step("profiling the original")
        whole = runnable(_written(graph, folder / _DENSE), device, step)
        dense = _profiled(whole, device, _PROFILE_SECONDS)
        threads = usual_threads(asked.backend, asked.options.threads)
        stairs = staircase(asked.backend, threads, half=device.half, progress=step)
        cost = LatencyCost(groups, dense, stairs, device.least)
        share = target.share if target.share is not None else (target.seconds or 0.0) / dense.latency
        if share >= 1:
            raise GoalError(
                f"--latency {target.text}: the original takes {1e3 * dense.latency:.3g} ms already; nothing to do."
            )
        request = Request(
            macs=share, score=score, layer_score=layer_score, consumers=consumers, scope=scope, align=align,
            min_width=min_width, granularity=granularity, keep=keep, only=only, seed=seed,
        )  # fmt: skip
        choose = chooser(cost, request, recorded, calibration, compensate, Path(inputs) if inputs else None, step)
        tries = _search(graph, cost, dense, choose, share, target, whole, device, step)
        best = min(tries, key=lambda t: t.miss(share))
        _check_gain(best, share, target)
        machine = peaks(asked.backend, asked.options.threads)
        savings = find_savings(dense, best.profile, machine)
    result = prune(
        model, output, plan=best.plan, calib=calib, preprocess=preprocess, calib_samples=calib_samples,
        labels=labels, metric=metric, compensate=compensate, prove=prove, inputs=inputs, seed=seed, progress=progress,
    )  # fmt: skip
    tried = tuple((t.predicted, t.comparison.ratio) for t in tries)
    return result, LatencyOutcome(target, share, best.predicted, best.comparison, tried, tuple(savings))


def _search(
    graph: Graph,
    cost: LatencyCost,
    dense: Profile,
    choose: Chooser,
    share: float,
    target: Target,
    whole: Path,
    device: Device,
    step: Callable[[str], None],
) -> list[_Try]:
    """Plans that were built and measured against ``whole``, until one is close to the target."""
    asked = device.asked
    tries: list[_Try] = []
    seen: dict[Key, float] = {}
    wanted = share
    seconds = min(max(_COMPARED_RUNS * dense.busy, _COMPARE_SECONDS / 4), _COMPARE_SECONDS)
    profiled = min(max(_PROFILED_RUNS * dense.busy, _PROFILE_SECONDS / 6), _PROFILE_SECONDS / 2)
    for number in range(1, _ROUNDS + 1):
        try:
            found = _unseen(choose, wanted, seen, share)
        except GoalError as error:
            if tries:
                break
            raise GoalError(_out_of_reach(str(error), target)) from error
        if _key(found) in seen:
            break  # alignment leaves nothing in between
        left = cost.without(found.gone)
        predicted = left.macs(found.counts) / cost.macs(cost.widths)
        step(f"round {number}: building and measuring (predicted {predicted:.3f}x)")
        written = _written(rewrite(graph, found.plan), whole.with_name(f"{number}.onnx"))
        file = runnable(written, device, step)
        comparison = compare_models(
            whole, file, asked, seconds=seconds, clock=device.clock, precision=_PRECISION, outputs=False
        )
        ratio = seen[_key(found)] = comparison.ratio.value
        step(f"round {number}: measured {ratio:.3f}x, target {share:.3f}x")
        measured = _profiled(file, device, profiled)
        tries.append(_Try(found.plan, predicted, comparison, measured))
        discard(written)
        if abs(ratio / share - 1) <= CLOSE:
            break
        left.observe(found.counts, measured)
        # what is left of the difference is no matter of single kernels: it scales
        wanted = share * (left.macs(found.counts) / cost.macs(cost.widths)) / ratio
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


def _profiled(file: Path, device: Device, seconds: float) -> Profile:
    return (profile_engine if device.engine else profile)(file, device.asked, seconds=seconds)


def _written(graph: Graph, path: Path) -> Path:
    path.write_bytes(serialize_with_data(graph.model, graph.folder))
    return path


def _check_gain(best: _Try, share: float, target: Target) -> None:
    ratio = best.comparison.ratio
    if ratio.high >= 1:
        raise GoalError(
            f"--latency {target.text}: the best result measures {ratio.value:.3f} ({ratio.low:.3f} .. {ratio.high:.3f})"
            " of the original's latency: no gain. Nothing was written.\n"
            "See why with: secateur profile MODEL"
        )
    if ratio.value > share * (1 + 2 * CLOSE):
        raise GoalError(_out_of_reach(f"the best result measures {ratio.value:.3f}x.", target))


def _out_of_reach(why: str, target: Target) -> str:
    return f"--latency {target.text} cannot be reached: {why}\nNothing was written."


def _calibration(
    calib: Source | None,
    graph: Graph,
    preprocess: Preprocess | None,
    limit: int,
    seed: int,
    labels: str | None,
    metric: str | None,
) -> Calibration | None:
    if calib is None:
        return None
    from exporter.calibration.data import calibration_of

    return calibration_of(calib, graph, preprocess=preprocess, limit=limit, seed=seed, labels=labels, metric=metric)
