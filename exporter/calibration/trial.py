"""Which plan is best once its layers are fitted: try some, quickly.

The damage to a group is measured with the rest of the network as it is. When a cut network is fitted layer after layer,
those after a group mend part of what it did, the more the more of them there are; how much differs between networks
(of the early layers' damage about half on ResNet-56, nine tenths on MobileNetV2). So plans are made for several shares
of it, fitted to few samples, and judged by the outputs on others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from exporter.calibration.cache import Cache, key_of
from exporter.calibration.compensation import compensate
from exporter.calibration.damage import affordable
from exporter.calibration.data import Calibration
from exporter.calibration.fidelity import comparable
from exporter.calibration.journal import open_journal
from exporter.calibration.runner import Runner
from exporter.calibration.sensitivity import answers, deviation
from exporter.graph import Graph
from exporter.plan import Plan
from exporter.rewriter import rewrite
from runtime.steps import Count

_SAMPLES, _FEWEST, _WORK = 256, 32, 1e11
"""Samples of a trial: as many as some multiply-accumulates are enough for; no trial where that is fewer than the
fewest."""

_JUDGES, _FITTED = 4, 96
"""One of so many samples of a trial judges it at least, and most samples that are fitted to: the others judge, because
on few of them plans differ by chance."""

USUAL_SHARE = 0.7
"""What is tried first, and taken where nothing can be tried."""

_MORE, _LESS, _MOST = 0.9, 0.3, 0.97
_CLEAR = 0.9
"""Another share is taken where it leaves so much of the error: quick fits to few samples like large shares too well."""

_RISING = 1.1
"""Less is tried where more leaves so much more of the error: else it cannot be far from the best."""

_NOTHING = 0.0


def best_plan(
    graph: Graph,
    plan_for: Callable[[float], Plan],
    calibration: Calibration,
    macs: float,
    step: Callable[[str], None],
    cache: Cache | None = None,
) -> Plan:
    """The plan that is best once its layers are fitted; where they cannot be, the one for which nothing is mended.

    Args:
        graph: the dense graph.
        plan_for: makes the plan for a share of the damage that is taken for mended.
        calibration: inputs; the samples held out for the report are not touched.
        macs: multiply-accumulates of a sample.
        step: called with a line before each trial.
        cache: where results are kept for the next run, if this one is killed.
    """
    usual = plan_for(USUAL_SHARE)
    pruned = rewrite(graph, usual)
    if not comparable(pruned, graph, usual):
        return plan_for(_NOTHING)
    judge = _judge(graph, calibration, macs, cache)
    if judge is None:
        return usual
    plans = {USUAL_SHARE: usual}
    found: dict[str, float] = {}

    def error(share: float) -> float:
        plan = plans[share] = plans.get(share) or plan_for(share)
        key = str([g.keep for g in plan.groups])
        if key not in found:
            step(f"trying a plan, number {len(found) + 1}")
            found[key] = judge(pruned if plan is usual else rewrite(graph, plan), plan, True)
        return found[key]

    first, more = error(USUAL_SHARE), error(_MORE)
    if more < _CLEAR * first:
        return plans[_MOST] if error(_MOST) < more else plans[_MORE]
    if more < _RISING * first:
        return plans[USUAL_SHARE]
    return plans[_LESS] if error(_LESS) < _CLEAR * first else plans[USUAL_SHARE]


def errors_of(
    graph: Graph,
    plans: Sequence[Plan],
    calibration: Calibration,
    macs: float,
    fitting: bool,
    step: Callable[[str], None],
) -> list[float]:
    """Output errors that plans leave on samples nothing was fitted to, each after a quick fit; empty where too few
    samples are affordable, or inputs and outputs shrink.

    Args:
        graph: the dense graph.
        plans: what to try.
        calibration: inputs; the samples held out for the report are not touched.
        macs: multiply-accumulates of a sample.
        fitting: whether layers will be fitted in the end.
        step: called with a line before each trial.
    """
    judge = _judge(graph, calibration, macs)
    if judge is None:
        return []
    errors = []
    for number, plan in enumerate(plans, 1):
        step(Count("trying blocks against widths", number - 1, len(plans)))
        pruned = rewrite(graph, plan)
        if not comparable(pruned, graph, plan):
            return []
        errors.append(judge(pruned, plan, fitting))
    return errors


def _judge(
    graph: Graph, calibration: Calibration, macs: float, cache: Cache | None = None
) -> Callable[[Graph, Plan, bool], float] | None:
    """What gives the error that a pruned graph, its plan carried out, leaves; after a quick fit or without. None where
    too few samples are affordable."""
    count = affordable(_WORK, macs, _SAMPLES)
    if count < min(_FEWEST, len(calibration.fit)):
        return None
    samples = calibration.fit.first(count)
    run = samples.run
    cut = max(min(len(samples) - max(len(samples) // _JUDGES, 1), _FITTED) // run, 1) * run
    if cut >= len(samples):  # one run, which cannot fit and judge
        return None
    fit, others = samples.part(0, cut), samples.part(cut, len(samples))
    journal = open_journal(
        cache, lambda: key_of(graph, kind="trials", samples=samples.digest, cut=cut, batch=calibration.batch)
    )

    @functools.cache
    def original() -> Runner:
        return answers(graph, others, calibration.batch)

    def tried(pruned: Graph, plan: Plan, fitting: bool) -> float:
        if fitting:
            pruned, _ = compensate(pruned, graph, plan, fit, calibration.batch, quick=True)
        return deviation(pruned, original(), others, calibration.batch)

    def error(pruned: Graph, plan: Plan, fitting: bool) -> float:
        name = f"{plan.to_json()} {fitting}" if journal.key else ""
        found = journal.remember(name, lambda: {"error": np.array(tried(pruned, plan, fitting))})
        return float(found["error"])

    return error
