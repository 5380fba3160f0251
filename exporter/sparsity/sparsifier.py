"""Make a file sparse: load, choose weights, choose what goes, fit what stays, check, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.atomic import obstacle
from exporter.errors import ModelError, UsageError
from exporter.graph import Graph
from exporter.model_file import finished, load, save
from exporter.protos import constant_tensors
from exporter.score_names import GRADIENTS
from exporter.sparsity.check import Checker
from exporter.sparsity.choice import LeftOut, choose_weights
from exporter.sparsity.codes import stored_values
from exporter.sparsity.judging import check, judged, unchecked
from exporter.sparsity.layers import Weight
from exporter.sparsity.patterns import SCHEDULES, Pattern, Plan, parse_pattern
from exporter.sparsity.selection import Chosen, choose_elements, one_by_one
from exporter.sparsity.storage import obstacle as cannot_hold
from exporter.sparsity.storage import saving
from exporter.sparsity.streaming import Stream
from exporter.sparsity.writing import Written, write
from exporter.tensors import Array
from runtime.nouns import out_of
from runtime.steps import Count

if TYPE_CHECKING:
    from exporter.calibration.data import Source
    from exporter.sparsity.calibrated import Fit
    from exporter.sparsity.permuting import Permuted
    from exporter.sparsity.within import Fitted, Held
    from runtime.images import Preprocess

METHODS = ("magnitude", "wanda", "obs", *GRADIENTS)
_CHUNK = 1 << 18
"""Elements described at a time."""
SCOPES = ("local", "global")
STORAGES = ("dense", "sparse")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class SparseLayer:
    """A weight that got the pattern.

    Attributes:
        weight: the weight.
        before, after: share of its elements that is zero.
        kept: what is left of the sum of its magnitudes.
        fit: what calibration inputs made of it; None where they were not asked, or tell nothing of it.
    """

    weight: Weight
    before: float
    after: float
    kept: float
    fit: Fit | None = None


@dataclass(frozen=True)
class Sparsified:
    """What ``sparsify`` did.

    Attributes:
        graph: the dense graph as it was read; its weights may be those of the result.
        pattern: the pattern.
        layers: the weights that got it, in the order of the graph.
        left: the weights that did not, and why.
        parameters, zeros: number of elements of all weights of layers, and of those that are zero now.
        before, after: bytes of the files; ``after`` is None after a dry run.
        smaller: bytes that sparse storage would save; 0 where it is used, or saves nothing.
        held: how true the result is to the original, where calibration inputs were given.
        permuted: what reordering did; None where it was not asked for.
        output: the file written.
        unchanged: whether all of the file but the values of weights is as it was, byte for byte.
        seconds: wall time of the whole call.
        notes: what the reader should know.
    """

    graph: Graph
    pattern: Pattern
    layers: tuple[SparseLayer, ...]
    left: tuple[LeftOut, ...]
    parameters: int
    zeros: int
    before: int
    after: int | None
    smaller: int
    held: Held | None
    permuted: Permuted | None
    output: Path | None
    unchanged: bool
    seconds: float
    notes: tuple[str, ...]


def sparsify(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    pattern: str = "2:4",
    method: str | None = None,
    scope: str = "local",
    schedule: str = "one-shot",
    refit: bool = True,
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    also: Sequence[str] = (),
    max_drop: float | None = None,
    permute: bool = False,
    storage: str = "dense",
    calib: Source | None = None,
    preprocess: Preprocess | None = None,
    calib_samples: int = 512,
    labels: str | None = None,
    metric: str | None = None,
    dry_run: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sparsified:
    """Put zeros into the weights of an ONNX file, and check the result before it replaces anything.

    Args:
        model: the file; it is not changed unless ``output`` names it too.
        output: the file to write; may be left out for a dry run.
        pattern: ``N:M`` keeps N of every M weights along the inputs of a layer; a number is the share of zeros.
        method: magnitude; with ``calib`` also wanda, and obs, the default there: what the layer's output loses; with
            torch also gradient, taylor and fisher: what the loss says of each weight.
        scope: of an unstructured pattern: local, the same share of every weight, or global: all ranked together.
        schedule: of an unstructured pattern with ``calib``: one-shot; in steps, fitting in between: iterative, as many
            weights in each, or cubic, most in the first.
        refit: with ``calib``, fit the weights that stay to the outputs of the original.
        only, keep, also: names of nodes and constants, with wildcards; see ``choose_weights``.
        max_drop: with ``calib``, the largest error of the outputs on held-out inputs, relative to their variance:
            layers stay dense, those that lose most first, until it is met.
        permute: reorder channels first, so that more magnitude stays.
        storage: dense, or sparse: as sparse initializers where that takes less room.
        calib: calibration inputs, unlabelled; as for ``prune``.
        preprocess: of these; see ``load_samples``.
        calib_samples: most of them to use.
        labels: name of the array in ``calib`` that holds labels: gradients use them, and the result is judged by them;
            by default y, label or labels, if there is one.
        metric: how the result is judged; as for ``prune``.
        dry_run: write nothing.
        shapes: sizes of inputs with dynamic axes.
        seed: of the calibration inputs taken, and of the search for an order.
        progress: called with a line before each step.

    Raises:
        UsageError: options that do not fit together, a name that matches nothing, or the file cannot be written.
        ModelError: the model cannot be read, has no weight the pattern can be put on, or does not run for ``permute``.
        GoalError: ``max_drop`` cannot be met, or the check found a run that breaks the pattern.
    """
    started, step = time.perf_counter(), progress or (lambda _: None)
    calibrated = calib is not None
    plan = plan_of(pattern, method, scope, schedule, refit, max_drop, calibrated)
    wanted = plan.pattern
    target = None if output is None else Path(output)
    check_options(plan, target, storage, permute, calibrated, dry_run, labels or metric)
    step("reading the model")
    source, graph, permuted = _read(model, shapes, wanted, (only, keep, also), permute, seed, step)
    taken, left = choose_weights(graph, wanted, only, keep, also)
    if not taken:
        raise ModelError(_nothing(graph, wanted, left))
    values: Mapping[str, Array]
    fitted: Fitted | None = None
    notes: list[str] = []
    if calib is not None:
        from exporter.calibration.data import calibration_of
        from exporter.sparsity.within import fit_within

        step("loading calibration inputs")
        data = calibration_of(
            calib, source, preprocess=preprocess, limit=calib_samples, seed=seed, labels=labels, metric=metric
        )

        def choose(now: Graph, weights: Sequence[Weight], share: float) -> Chosen:
            return choose_elements(now, weights, plan, share=share, data=data, seed=seed, step=step)

        step("choosing weights")
        fitted = fit_within(source, graph, taken, choose, plan, data, step)
        values = fitted.values
        left += [LeftOut(w, f"stays dense for --max-drop {max_drop:g}") for w in taken if w.name in fitted.dense]
        taken = [w for w in taken if w.name not in fitted.dense]
        notes += _untold(taken, fitted)
    else:
        streams = not permute and storage == "dense" and _outside(graph, taken)
        values = _stream(graph, plan, taken) if streams else _chosen(graph, plan, taken, step)
    where = None if dry_run else target
    if isinstance(values, Stream):
        layers, written = _streamed(graph, taken, values, where, step)
        notes += unchecked({w.name for w in taken} - values.seen) if wanted.grouped else []
        smaller = 0
    else:
        step("checking")
        notes += check(graph, wanted, taken, values) if wanted.grouped else []
        fits = fitted.fits if fitted is not None else {}
        layers = tuple(_layer(graph, w, values[w.name], fits.get(w.name)) for w in taken)
        smaller = _saved(graph, layers)
        step("writing")
        written = write(graph, values, [w.name for w in taken], where, storage, patching=permuted is None)
        notes += written.notes
        smaller = 0 if written.sparse else smaller
    zeros = [round(x.after * x.weight.size) for x in layers] + [_zeros(graph, x.weight) for x in left]
    return Sparsified(
        graph=source,
        pattern=wanted,
        layers=layers,
        left=tuple(left),
        parameters=sum(w.size for w in [*taken, *(x.weight for x in left)]),
        zeros=sum(zeros),
        before=source.source.size,
        after=written.size,
        smaller=smaller,
        held=fitted.held if fitted is not None else None,
        permuted=permuted,
        output=target if not dry_run else None,
        unchanged=written.unchanged,
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _read(
    model: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]] | None,
    pattern: Pattern,
    names: tuple[Sequence[str], Sequence[str], Sequence[str]],
    permute: bool,
    seed: int,
    step: Progress,
) -> tuple[Graph, Graph, Permuted | None]:
    """The graph as it was read, and in the order in which it gets the pattern."""
    if not permute:
        graph = load(model, shapes)
        return graph, graph, None
    from exporter.sparsity.permuting import load_running, permute_graph

    graph = load_running(model, shapes)
    return graph, *permute_graph(graph, pattern, names, seed=seed, step=step)


def plan_of(
    pattern: str, method: str | None, scope: str, schedule: str, refit: bool, max_drop: float | None, calibrated: bool
) -> Plan:
    """What is asked for, as ``sparsify`` says it.

    Raises:
        UsageError: there is no such pattern.
    """
    usual = "obs" if calibrated else "magnitude"
    return Plan(parse_pattern(pattern), method or usual, scope, schedule, refit, max_drop)


def check_options(
    plan: Plan,
    target: Path | None,
    storage: str,
    permute: bool,
    calibrated: bool,
    dry_run: bool,
    judged: str | None,
) -> None:
    """Refuse what would be ignored, or would fail only after the work."""
    for option, value, known in (
        ("--method", plan.method, METHODS),
        ("--scope", plan.scope, SCOPES),
        ("--schedule", plan.schedule, SCHEDULES),
        ("--storage", storage, STORAGES),
    ):
        if value not in known:
            raise UsageError(f"{option} {value}: there is {', '.join(known)}.")
    grouped = plan.pattern.grouped
    unmet = [
        (not calibrated and plan.method != "magnitude", f"--method {plan.method} needs inputs; add --calib DATA"),
        (not calibrated and judged is not None, "--labels and --metric say more of --calib; add it"),
        (not calibrated and plan.max_drop is not None, "--max-drop needs inputs to measure with; add --calib DATA"),
        (not calibrated and not plan.refit, "--no-refit says what is done with --calib; add it"),
        (not calibrated and plan.schedule != "one-shot", "--schedule fits in between; add --calib DATA"),
        (grouped and plan.schedule != "one-shot", f"--schedule is for a share of zeros, not for {plan.pattern}"),
        (plan.schedule != "one-shot" and plan.method == "wanda", "--schedule goes with any --method but wanda"),
        (plan.schedule != "one-shot" and not plan.refit, "--schedule fits in between; leave out --no-refit"),
        (grouped and plan.scope != "local", f"--scope is for a share of zeros: {plan.pattern} is the same everywhere"),
        (plan.max_drop is not None and plan.max_drop <= 0, "--max-drop is a positive share of the outputs' variance"),
        (permute and not grouped, f"--permute is for N:M: no order keeps more of a share of {plan.pattern}"),
        (target is None and not dry_run, "name the file to write with -o OUT, or add --dry-run"),
    ]
    for wrong, text in unmet:
        if wrong:
            raise UsageError(f"{text}.")
    why = obstacle(target) if target is not None and not dry_run else ""
    if why:
        raise UsageError(f"{target} cannot be written: {why}.")


def _nothing(graph: Graph, pattern: Pattern, left: Sequence[LeftOut]) -> str:
    name = graph.source.path or "the model"
    if not left:
        return f"{name} has no layer with a constant weight; there is nothing to make sparse."
    rows = list(dict.fromkeys(x.reason for x in left))[:3]
    return (
        f"{name} has no weight that {pattern} can be put on: "
        + "; ".join(rows)
        + ".\nSee all reasons with: secateur inspect MODEL --sparsity"
    )


def _untold(taken: Sequence[Weight], fitted: Fitted) -> list[str]:
    if fitted.left_out:
        return [fitted.left_out]
    alone = {w.name for w in taken} - fitted.fits.keys()
    return [
        f"{out_of(len(names), len(taken), 'weight', 'stays', 'stay')} as chosen one by one: {why}"
        for names, why in (
            (alone - fitted.large, "inputs tell nothing about this"),
            (alone & fitted.large, "choosing by what they do together does not fit into memory"),
        )
        if names
    ]


def _chosen(graph: Graph, plan: Plan, taken: Sequence[Weight], step: Progress) -> dict[str, Array]:
    step("choosing weights")
    return choose_elements(graph, taken, plan, share=plan.pattern.share).values


def _outside(graph: Graph, taken: Sequence[Weight]) -> bool:
    """Whether the file keeps weights outside of it, and names all of these: one inside a local function is not."""
    return graph.source.external and {w.name for w in taken} <= constant_tensors(finished(graph)).keys()


def _stream(graph: Graph, plan: Plan, taken: Sequence[Weight]) -> Stream[SparseLayer]:
    return Stream(
        taken,
        one_by_one(graph, taken, plan, plan.pattern.share),
        lambda w, values: _layer(graph, w, values, None),
        Checker(graph.model, graph.folder, plan.pattern) if plan.pattern.grouped else None,
        lambda rows: judged(rows, {w.name for w in taken}, plan.pattern),
    )


def _streamed(
    graph: Graph, taken: Sequence[Weight], values: Stream[SparseLayer], target: Path | None, step: Progress
) -> tuple[tuple[SparseLayer, ...], Written]:
    """Write a model whose weights lie outside, one weight at a time; without ``target``, only look."""
    size = None
    if target is not None:
        size = save(graph, target, values=values, progress=step, judge=lambda _: values.expect_all())
    for weight in taken if target is None else ():
        step(Count("checking weights", len(values.rows), len(taken)))
        values[weight.name]
    return tuple(values.rows[w.name] for w in taken), Written(size, False, 0)


def _zeros(graph: Graph, weight: Weight) -> int:
    stored = stored_values(graph, weight)
    return int(stored.values.size - stored.nonzero())


def _layer(graph: Graph, weight: Weight, values: Array, fit: Fit | None) -> SparseLayer:
    stored = stored_values(graph, weight)
    new = replace(stored, values=values.reshape(-1))
    total = left = 0.0
    before = after = 0
    for start in range(0, weight.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        count, size = stored.content(part)
        count_left, size_left = new.content(part)
        if fit is not None:  # what stays is not what it was
            size_left = float(stored.magnitudes(part).dot(new.stays(new.values[part], part)))
        total, left, before, after = total + size, left + size_left, before + count, after + count_left
    kept = left / total if total > 0 and np.isfinite(total) else 1.0
    return SparseLayer(weight, 1 - before / weight.size, 1 - after / weight.size, kept, fit)


def _saved(graph: Graph, layers: Sequence[SparseLayer]) -> int:
    """Bytes that sparse storage would save; codes with a zero point are stored as codes, and do not count."""
    if cannot_hold(graph):
        return 0
    plain = [x for x in layers if x.weight.coding is None or not x.weight.coding.zero]
    return sum(saving(graph.constants[x.weight.name], round((1 - x.after) * x.weight.size)) for x in plain)
