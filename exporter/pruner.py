"""Prune a file: load, analyse, plan, rewrite, prove, save."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.atomic import obstacle
from exporter.blocks import Blocks, find_blocks
from exporter.choice import Request, choose
from exporter.cost import CostModel
from exporter.depth import drop
from exporter.errors import UsageError
from exporter.fits import check_fits
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.interface import patterns_for
from exporter.learned import LEARNED
from exporter.model_file import load, save
from exporter.normalise import input_specs
from exporter.plan import Plan
from exporter.rewriter import rewrite
from exporter.verifier import CannotRun, Proof, verify
from runtime import feeds
from runtime.samples import load_samples

if TYPE_CHECKING:
    from exporter.calibration.data import Calibration, Source
    from exporter.calibration.fidelity import Fidelity
    from runtime.images import Preprocess

Progress = Callable[[str], None]


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
    compensate: bool = True,
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
        ratio, macs, params: the budget, exactly one; see ``make_plan``. None of them with ``plan``.
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
        labels: key of the labels beside the inputs of ``calib``, for scores that use them (``gradient``, ``taylor``,
            ``fisher``, and learned masks).
        compensate: fit the layers that stay.
        dry_run: stop after planning.
        prove: prove the result equal to its masked original before writing it. Without, errors in the analysis would go
            unnoticed.
        shapes: concrete shapes of inputs with dynamic axes, used for the cost model and the proof.
        inputs: ``.npz`` of recorded inputs for the proof, and to rank residual blocks and ids with; keyed by input
            name, samples along the leading axis.
        seed: for random scores, the subset of ``calib`` and synthetic inputs.
        progress: called with a line before each step that may take time.

    Returns:
        The plan, totals before and after, and the proof.

    Raises:
        UsageError: an option is out of range, the plan is for another model, or ``output`` cannot be written.
        ModelError: the file cannot be read, has nothing to prune, or does not run in ONNX Runtime.
        GoalError: the budget cannot be reached, or the proof failed. Nothing is written in any of these cases.
    """
    started = time.perf_counter()
    step = progress or (lambda _: None)
    _check_output(output, dry_run)
    if plan is not None and any(v is not None for v in (ratio, macs, params, layers)):
        raise UsageError("--plan already says what to keep; leave out --ratio, --macs, --params and --layers.")
    if plan is not None and io:
        raise UsageError("--plan already says which inputs and outputs shrink; leave out --io.")
    request = Request(
        ratio, macs, params, layers, score, layer_score, consumers, scope, align, min_width, granularity, keep, only,
        io, seed,
    )  # fmt: skip
    if calib is None and (preprocess is not None or not compensate or labels is not None):
        raise UsageError("--preprocess, --labels and --no-compensate need calibration inputs: give --calib.")
    if labels is not None and score not in LEARNED:
        raise UsageError(f"--labels is for scores that use them: {', '.join(LEARNED)}. Choose one with --score.")
    wanted = dict(shapes or {})
    for attempt in range(len(feeds.PROFILES)):
        step("reading and analysing the model")
        if plan is not None and not wanted:
            graph, wanted = load_for(plan, model), dict(plan.model.shapes)
        else:
            graph = load(model, wanted, profile=attempt)
        calibration = _calibration(calib, graph, preprocess, calib_samples, labels, seed) if calib is not None else None
        try:
            chosen, whole, groups, warnings = _chosen(graph, plan, request, inputs, calibration, step)
        except CannotRun:
            if wanted or not graph.binding.symbols or attempt == len(feeds.PROFILES) - 1:
                raise
            continue
        before = totals(graph, whole)
        blocks = find_blocks(whole) if request.deep or chosen.drop else None
        if dry_run:
            after = _predicted(groups, chosen)
            return Result(chosen, groups, before, after, None, None, _since(started), tuple(warnings), blocks)
        step("rewriting the graph")
        pruned = rewrite(graph, chosen)
        try:
            proof = _prove(pruned, graph, chosen, inputs, step) if prove else None
        except CannotRun:
            # sizes taken for dynamic axes may be too small for the model: try others, unless the user gave them
            if wanted or not graph.binding.symbols or attempt == len(feeds.PROFILES) - 1:
                raise
            continue
        warnings += proof.warnings if proof is not None else ["not proved: --no-verify"]
        assert output is not None
        fidelity = None
        if calibration is not None:
            from exporter.calibration.fidelity import fitted

            pruned, fidelity, notes = fitted(pruned, graph, chosen, calibration, compensate, step)
            warnings += [*calibration.fit.notes, *notes]
        step("writing the result")
        written = save(pruned, output)
        after = totals(pruned, find_groups(pruned))
        after = Totals(after.parameters, after.macs, written)
        return Result(
            chosen, groups, before, after, proof, Path(output), _since(started), tuple(warnings), blocks, fidelity
        )
    raise AssertionError("unreachable: the last attempt returns or raises")


def _prove(pruned: Graph, graph: Graph, plan: Plan, inputs: str | os.PathLike[str] | None, step: Progress) -> Proof:
    recorded = feeds.recorded(Path(inputs), input_specs(graph.model)) if inputs is not None else ()
    return verify(pruned, graph, plan, inputs=recorded, progress=step)


def load_for(plan: Plan, model: str | os.PathLike[str]) -> Graph:
    """Load the model a plan is for, under the shapes it was made with.

    Raises:
        UsageError: the plan is for another model.
        ModelError: the file cannot be read.
    """
    graph = load(model)
    check_fits(plan, graph)  # before its shapes are asked of a model it is not for
    shapes = dict(plan.model.shapes)
    return graph if graph.binding.shapes == shapes else load(model, shapes)


def _calibration(
    calib: Source, graph: Graph, preprocess: Preprocess | None, limit: int, labels: str | None, seed: int
) -> Calibration:
    from exporter.calibration.data import calibration_of

    if labels is None or not isinstance(calib, (str, os.PathLike)):
        return calibration_of(calib, graph, preprocess=preprocess, limit=limit, seed=seed)
    samples = load_samples(
        Path(calib), input_specs(graph.model), preprocess=preprocess, limit=limit, seed=seed, labels=(labels,)
    )
    if samples.answers is None:
        raise UsageError(f"--labels {labels}: {calib} has no such array.")
    return replace(calibration_of(samples, graph, limit=limit, seed=seed), source=str(calib))


def _chosen(
    graph: Graph,
    plan: Plan | None,
    request: Request,
    inputs: str | os.PathLike[str] | None,
    calibration: Calibration | None,
    step: Progress,
) -> tuple[Plan, Groups, Groups, list[str]]:
    """The plan, the analysis of the dense graph and that without the blocks that go, and what to say of them."""
    if plan is None:
        whole = find_groups(graph, request.io)
        step("scoring and choosing what goes")
        plan, groups = choose(whole, request, Path(inputs) if inputs is not None else None, calibration, step)
        return plan, whole, groups, list(plan.notes)
    warning = check_fits(plan, graph)
    groups = find_groups(drop(graph, plan.drop), patterns_for(plan.io))
    whole = find_groups(graph) if plan.drop else groups
    return plan, whole, groups, [*([warning] if warning else []), *plan.notes]


def totals(graph: Graph, groups: Groups) -> Totals:
    """Parameters, multiply-accumulates and file size of a graph as it is."""
    cost = CostModel(groups)
    return Totals(graph.parameters, round(cost.macs(cost.widths) / graph.binding.batch), graph.source.size or None)


def _predicted(groups: Groups, plan: Plan) -> Totals:
    cost = CostModel(groups)
    kept = {g.name: len(g.keep) for g in plan.groups}
    counts = [kept.get(g.name, g.width) for g in groups]
    return Totals(round(cost.parameters(counts)), round(cost.macs(counts) / groups.graph.binding.batch), None)


def _check_output(output: str | os.PathLike[str] | None, dry_run: bool) -> None:
    """Find out before the work whether its result could be written."""
    if output is None:
        if not dry_run:
            raise UsageError("say where to write the result with -o OUT.onnx, or try --dry-run.")
        return
    if Path(output).is_dir():
        raise UsageError(f"{output} is a folder; name a file with -o OUT.onnx.")
    why = obstacle(Path(output))
    if why:
        raise UsageError(f"{output} cannot be written: {why}.")


def _since(started: float) -> float:
    return time.perf_counter() - started
