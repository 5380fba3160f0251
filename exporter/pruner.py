"""Prune a file: load, analyse, plan, rewrite, prove, save."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.blocks import Blocks, find_blocks
from exporter.choice import Grounds
from exporter.cost import CostModel
from exporter.errors import CannotRun
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.model_file import load, save
from exporter.one_round import Chosen, Outcome, carry_out, chosen_by, chosen_for
from exporter.plan import Plan
from exporter.plan_check import check_fits, check_model
from exporter.proof import Proof
from exporter.request import Means, Progress, Request, means_of
from exporter.request_check import check_output, check_request
from exporter.rounds import Round, in_rounds
from exporter.search import Search, smallest
from exporter.sizes import at_sizes

if TYPE_CHECKING:
    from exporter.calibration.cache import Cache
    from exporter.calibration.data import Source
    from exporter.calibration.fidelity import Fidelity
    from runtime.images import Preprocess


@dataclass(frozen=True)
class Totals:
    """Size of a model: parameters, multiply-accumulates per sample, bytes of its file (None: unknown).

    Where the batch is dynamic, ``macs`` is the work of one run divided by the batch size taken.
    """

    parameters: int
    macs: int
    file_bytes: int | None


@dataclass(frozen=True)
class Result:
    """What ``prune`` did.

    Attributes:
        plan: what was cut.
        groups: the analysis behind it.
        before, after: totals; after a dry run the file size is unknown.
        proof: what the proof found; None where it was skipped.
        output: the file written; None after a dry run.
        seconds: wall time of the whole call.
        warnings: what the reader should know.
        blocks: the residual blocks of the dense graph, where some of them were to go.
        fidelity: how true the result is to the original, where calibration inputs were given.
        search: how the budget was found, with ``max_drop``.
        rounds: what each round did, with ``steps``.
        grounds: what units were chosen on; None where a plan was given, or only blocks go.
    """

    plan: Plan
    groups: Groups
    before: Totals
    after: Totals
    proof: Proof | None
    output: Path | None
    seconds: float
    warnings: tuple[str, ...]
    blocks: Blocks | None = None
    fidelity: Fidelity | None = None
    search: Search | None = None
    rounds: tuple[Round, ...] = ()
    grounds: Grounds | None = None


def prune(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
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
    plan: Plan | None = None,
    calib: Source | None = None,
    preprocess: Preprocess | None = None,
    calib_samples: int = 512,
    labels: str | None = None,
    metric: str | None = None,
    max_drop: float | str | None = None,
    of: str = "macs",
    sure: bool = False,
    steps: int = 1,
    compensate: bool = True,
    cache: bool = False,
    dry_run: bool = False,
    prove: bool = True,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Prune an ONNX file and prove the result before writing it.

    Args:
        model: the file to prune; it is not changed unless ``output`` names it too.
        output: the file to write. May be left out for a dry run.
        ratio, macs, params: the budget, exactly one; see ``make_plan``. None of them with ``plan`` or ``max_drop``.
        layers: drop this many residual blocks; may stand alone, or with a budget that the widths then meet.
        score: see ``score``; with ``calib`` also ``reconstruction``, the default there: how badly the layers that read
            a unit can do without it.
        layer_score: see ``exporter.influence.score_blocks``.
        consumers: count the weights that read a unit too.
        scope: see ``make_plan``; by default ``damage`` with ``calib`` and ``macs`` or ``params``, else ``local``.
        align, min_width, keep, only: see ``make_plan``; patterns may match residual blocks too.
        granularity: kinds of groups, as for ``make_plan``, and ``layers``; ``exporter.choice`` says how depth and width
            share a budget.
        io: ``GLOB:AXIS`` of graph inputs and outputs that may shrink; see ``find_groups``.
        plan: carry out this plan instead of making one.
        calib: calibration inputs, unlabelled: a path or feeds as ``exporter.calibration.data`` takes them, or
            ``synthetic``. They choose what goes, and the layers that stay are fitted to them.
        preprocess: for images and pixels in ``calib``.
        calib_samples: most of them to use.
        labels: name of the array in ``calib`` that holds labels; by default y, label or labels, if there is one.
        metric: how outputs are judged: a name in ``runtime.metrics.METRICS`` or ``plugin:...``; by default ``top1``
            with labels, else ``agreement``.
        max_drop: find the smallest model that is at most so much worse, instead of giving a budget: ``"0.5%"`` (points
            for a rate, else relative) or a number in the unit of ``metric``. Judged on inputs that nothing is fitted
            to; see ``exporter.search``.
        of: what ``max_drop`` makes small: ``macs`` or ``params``.
        sure: the whole 95 % interval of the drop must be within ``max_drop``.
        steps: prune and fit in so many rounds towards the budget; see ``exporter.rounds``.
        compensate: fit the layers that stay.
        cache: look for predictions in ``$XDG_CACHE_HOME/secateur``, and keep them there, as the command line does.
        dry_run: stop after planning; with ``max_drop`` or ``steps``, before writing.
        prove: prove the result equal to its masked original before writing it. Without, errors in the analysis would go
            unnoticed.
        shapes: concrete shapes of inputs with dynamic axes, used for the cost model and the proof.
        inputs: ``.npz`` of recorded inputs for the proof, to rank ids with, and residual blocks where there is no
            ``calib``; keyed by input name, samples along the leading axis.
        seed: for random scores, the subset of ``calib`` and synthetic inputs.
        progress: called with a line before each step that may take time.

    Returns:
        The plan, totals before and after, and the proof.

    Raises:
        UsageError: an option is out of range, the plan is for another model, or ``output`` cannot be written.
        ModelError: the file cannot be read, has nothing to prune, or does not run in ONNX Runtime.
        GoalError: the budget cannot be reached, no model is within ``max_drop``, or the proof failed.
        BadRequest: calibration inputs, labels or metric do not fit the model. Nothing is written in any of these cases.
    """
    started = time.perf_counter()
    step = progress or (lambda _: None)
    check_output(output, dry_run)
    request = Request(
        ratio, macs, params, layers, score, layer_score, consumers, scope, align, min_width, granularity, keep, only,
        io, seed, max_drop, of, sure, steps,
    )  # fmt: skip
    check_request(request, plan is not None, calib, preprocess, compensate, labels, metric)
    means = means_of(calib, inputs, cache, compensate, prove, step)
    refused: CannotRun | None = None
    step("reading and analysing the model")
    for graph in at_sizes(model, shapes) if plan is None or shapes else iter([load_for(plan, model)]):
        if calib is not None:
            from exporter.calibration.data import calibration_of

            calibration = calibration_of(
                calib, graph, preprocess=preprocess, limit=calib_samples, seed=seed, labels=labels, metric=metric,
                judged=max_drop is not None, strict=max_drop is not None,
            )  # fmt: skip
            means = replace(means, calibration=calibration)
        try:
            done = _done(graph, plan, request, means, dry_run)
        except CannotRun as error:
            refused = refused or error
            if isinstance(calib, Iterator):  # it is used up
                break
            step("reading and analysing the model")
        else:
            return _result(graph, request, done, means, None if dry_run else output, started)
    assert refused is not None
    raise refused


@dataclass(frozen=True)
class _Done:
    """What was carried out; None after a dry run of one round."""

    chosen: Chosen
    outcome: Outcome | None = None
    search: Search | None = None
    rounds: tuple[Round, ...] = ()


def _done(graph: Graph, plan: Plan | None, request: Request, means: Means, dry_run: bool) -> _Done:
    if request.max_drop is not None:
        outcome, search = smallest(graph, request, means)
        return _Done(outcome.chosen, outcome, search)
    if request.steps > 1:
        outcome, rounds = in_rounds(graph, request, means)
        return _Done(outcome.chosen, outcome, rounds=rounds)
    chosen = chosen_by(plan, graph) if plan is not None else chosen_for(graph, request, means)
    return _Done(chosen, None if dry_run else carry_out(graph, chosen, means))


def carried(
    graph: Graph, request: Request, chosen: Chosen, means: Means, output: str | os.PathLike[str], started: float
) -> Result:
    """Carry out what was chosen: the last step of every search for a budget.

    Args:
        graph: the dense graph.
        request: what was asked.
        chosen: what is to go.
        means: what with.
        output: the file to write.
        started: when the search began, by ``time.perf_counter``.

    Raises:
        GoalError: the proof failed.
        CannotRun: a model does not run at the sizes taken for its dynamic axes.
    """
    return _result(graph, request, _Done(chosen, carry_out(graph, chosen, means)), means, output, started)


def _result(
    graph: Graph,
    request: Request,
    done: _Done,
    means: Means,
    output: str | os.PathLike[str] | None,
    started: float,
) -> Result:
    """Write what was carried out, if that is wanted, and put together what is said of it."""
    chosen, outcome = done.chosen, done.outcome
    before = totals(graph, chosen.whole)
    blocks = find_blocks(chosen.whole) if request.deep or chosen.plan.drop else None
    if outcome is None:
        cached = _finished(means.cache)
        after = _predicted(chosen.groups, chosen.plan)
        warnings = (*chosen.notes, *cached)
        return Result(
            chosen.plan, chosen.groups, before, after, None, None, _since(started), warnings, blocks,
            grounds=chosen.grounds,
        )  # fmt: skip
    written = None
    if output is not None:
        means.step("writing the result")
        written = save(outcome.pruned, output, progress=means.step)
    cached = _finished(means.cache)
    after = replace(totals(outcome.pruned, find_groups(outcome.pruned)), file_bytes=written)
    proof = outcome.proof
    warnings = (
        *chosen.notes,
        *(proof.warnings if proof is not None else ["not proved: --no-verify"]),
        *(means.calibration.fit.notes if means.calibration is not None else ()),
        *outcome.notes,
        *cached,
    )
    return Result(
        plan=chosen.plan,
        groups=chosen.groups,
        before=before,
        after=after,
        proof=proof,
        output=Path(output) if output is not None else None,
        seconds=_since(started),
        warnings=warnings,
        blocks=blocks,
        fidelity=outcome.fidelity,
        search=done.search,
        rounds=done.rounds,
        grounds=chosen.grounds,
    )


def load_for(plan: Plan, model: str | os.PathLike[str]) -> Graph:
    """Load the model a plan is for, under the shapes it was made with.

    Raises:
        UsageError: the plan is for another model.
        ModelError: the file cannot be read.
    """
    graph, shapes = load(model), dict(plan.model.shapes)
    if graph.binding.shapes != shapes:
        check_model(plan, graph)  # before its shapes are asked of a model it is not for
        graph = load(model, shapes)
    check_fits(plan, graph)
    return graph


def totals(graph: Graph, groups: Groups) -> Totals:
    """Parameters, multiply-accumulates and file size of a graph as it is."""
    cost = CostModel(groups)
    return Totals(graph.parameters, round(cost.macs(cost.widths) / graph.batch), graph.source.size or None)


def _predicted(groups: Groups, plan: Plan) -> Totals:
    cost = CostModel(groups)
    kept = {g.name: len(g.keep) for g in plan.groups}
    counts = [kept.get(g.name, g.width) for g in groups]
    return Totals(round(cost.parameters(counts)), round(cost.macs(counts) / groups.graph.batch), None)


def _finished(cache: Cache | None) -> tuple[str, ...]:
    """What the cache has to say in the end; what it kept for a run after this one is not needed any more."""
    if cache is None:
        return ()
    from exporter.calibration.journal import remove

    remove(cache)
    went_on = f"went on from a run that was interrupted: {cache.resumed} of its steps were not computed again"
    return (*([went_on] if cache.resumed else []), *cache.notes)


def _since(started: float) -> float:
    return time.perf_counter() - started
