"""Reorder the units of groups so that a pattern keeps more, and prove that nothing else changes.

A group of units may stand in any order, as long as every axis it spans follows: the analysis behind pruning knows these
axes, and taking all of an axis in another order is the edit pruning makes. The reordered model is proved equal to the
original as a pruned one is, in ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.edits import constant_takes
from exporter.errors import GoalError, ModelError
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.normalise import inline_data, is_large
from exporter.plan import AxisTake, Plan
from exporter.plan_check import fingerprint
from exporter.proof import Proof
from exporter.rewriter import rewrite
from exporter.sizes import at_sizes
from exporter.slots import Axis, Fixed, Ids
from exporter.solve import Solution
from exporter.sparsity.choice import choose_weights
from exporter.sparsity.codes import stored_values
from exporter.sparsity.layers import Weight
from exporter.sparsity.order import Scores, find_order, kept
from exporter.sparsity.patterns import Pattern
from exporter.verifier import verify
from exporter.widened import is_narrow, widened
from runtime import feeds
from runtime.backends import SessionOptions, open_session
from runtime.errors import Refused, RunError
from runtime.steps import Count

_ROWS = 2048
"""Rows of a group's weights that the search looks at; of more, some are drawn."""
_MIXES, _MOST_MIXES = 40_000, 400
"""Rounds of mixing: so many divided by the number of columns, because each takes longer the more there are."""
_LEAST_GAIN = 1e-4
_SEVERAL = "the runs do not lie along the units of one group"

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Permuted:
    """What reordering did.

    Attributes:
        groups: number of groups that were reordered.
        weights: number of weights that an order was chosen for.
        still: names of the other weights by reason: no order was chosen for them, though they follow that of others.
        before, after: share of the magnitude of all chosen weights that the pattern keeps.
        error: largest difference between the reordered dense model and the original, relative to the signal.
        pieces: in how many pieces the models were compared.
        notes: what the reader should know of the proof.
    """

    groups: int
    weights: int
    still: Mapping[str, tuple[str, ...]]
    before: float
    after: float
    error: float = 0.0
    pieces: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Column:
    """The part of a weight whose runs lie along the units of a group, in their order: magnitudes, [rows, units]."""

    weight: Weight
    scores: Scores


def load_running(model: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """Load a model at the first sizes of its dynamic axes at which it runs, because an order has to be proved.

    Args:
        model: the file.
        shapes: sizes of inputs; no others are tried.

    Raises:
        ModelError: the model cannot be read, or does not run.
    """
    why: RunError | None = None
    for graph in at_sizes(model, shapes):
        failure = None if is_large(graph.model) else _failure(graph)
        if failure is None:
            return graph
        why = why or failure
        if isinstance(failure, Refused):
            break
    sizes = "Give sizes that it accepts with --shape NAME:1x3x224x224, or leave out --permute."
    raise ModelError(
        f"--permute proves that an order changes nothing, and the model does not run: {why}\n"
        + ("Leave out --permute." if isinstance(why, Refused) else sizes)
    ) from why


def _failure(graph: Graph) -> RunError | None:
    """Why a model does not run as it is proved; None where it does."""
    own = widened(graph) if is_narrow(graph) else graph
    try:
        session = open_session(
            inline_data(own.model, own.folder).SerializeToString(), options=SessionOptions(optimize=False)
        )
        session.run(feeds.seeded(session.inputs, own.binding.shapes, 0, feeds.constraints(own.model.graph)))
    except RunError as error:
        return error
    return None


def permute_graph(
    graph: Graph,
    pattern: Pattern,
    names: tuple[Sequence[str], Sequence[str], Sequence[str]],
    *,
    seed: int = 0,
    step: Callable[[str], None] = lambda _: None,
) -> tuple[Graph, Permuted]:
    """Reorder the channels of a graph so that a pattern keeps more magnitude.

    Args:
        graph: the graph; it stays as it is.
        pattern: N:M.
        names: what is taken, left, and taken too; see ``choose_weights``.
        seed: of the search.
        step: called with a line before each step.

    Returns:
        The reordered graph (the same one where nothing is gained), and what was gained.

    Raises:
        GoalError: the reordered graph does not give what the original gives.
        ModelError: the graph does not run; see ``load_running``.
    """
    step("finding what may be reordered")
    groups = find_groups(graph)
    taken, _ = choose_weights(graph, pattern, *names)
    columns, passed = _columns(groups, taken, pattern.of)
    counted = _held_still(groups)
    orders: dict[int, Order] = {}
    total, before = _kept_of_all(graph, taken, pattern)
    for i, (number, found) in enumerate(sorted(columns.items()), 1):
        width = groups.groups[number].width
        whole = width // pattern.of * pattern.of
        if number in counted or whole < 2 * pattern.of:
            why = "a selection or a shuffle counts on the order" if number in counted else "all inputs are in one run"
            passed |= {c.weight.name: why for c in found}
            continue
        step(Count("searching for an order of channels, groups", i - 1, len(columns)))
        scores = np.concatenate([c.scores for c in found])
        order = np.arange(width)
        order[:whole] = find_order(
            _sample(scores, seed)[:, :whole],
            pattern.keep,
            pattern.of,
            rounds=min(_MIXES // whole, _MOST_MIXES),
            seed=seed,
        )
        now = kept(scores, pattern.keep, pattern.of)
        gain = kept(scores, pattern.keep, pattern.of, order) - now
        if gain > _LEAST_GAIN * now:
            orders[number] = order
        else:
            passed |= {c.weight.name: "no order was found that keeps more" for c in found}
    moved = {c.weight.name for number in orders for c in columns[number]}
    share, reasons = before / max(total, 1e-30), _by_reason(taken, passed, moved)
    if not orders:
        return graph, Permuted(0, 0, reasons, share, share)
    plan = _plan(groups, orders)
    reordered = rewrite(graph, plan)
    share_now = _kept_of_all(reordered, choose_weights(reordered, pattern, *names)[0], pattern)[1] / max(total, 1e-30)
    if share_now <= share:  # weights that follow the order of others lose what these gain
        return graph, Permuted(0, 0, _by_reason(taken, passed, set()), share, share)
    step("proving the reordered model equal to the original")
    proof = _proved(reordered, graph, plan, step)
    done = Permuted(len(orders), len(moved), reasons, share, share_now, proof.error, proof.pieces, proof.warnings)
    return reordered, done


def _proved(reordered: Graph, graph: Graph, plan: Plan, step: Callable[[str], None]) -> Proof:
    """Prove the reordered graph; what stands against it, and that there is a way without."""
    try:
        return verify(reordered, graph, plan, progress=step)
    except GoalError as error:
        why, _, _ = str(error).partition(" Nothing was written.")
        raise GoalError(
            f"the order of --permute failed its proof (below, pruned means reordered): {why} Nothing was written.\n"
            "This is a defect of Secateur: leave out --permute, and please report it with the model."
        ) from error


def _by_reason(taken: Sequence[Weight], why: Mapping[str, str], moved: set[str]) -> dict[str, tuple[str, ...]]:
    rows: dict[str, list[str]] = {}
    for name in (w.name for w in taken if w.name not in moved):
        rows.setdefault(why.get(name, "other weights would lose more"), []).append(name)
    return {reason: tuple(found) for reason, found in rows.items()}


def _columns(groups: Groups, taken: Sequence[Weight], of: int) -> tuple[dict[int, list[_Column]], dict[str, str]]:
    """The weights that a group's order matters to, by number of the group; why the others' runs stay, by name."""
    found: dict[int, list[_Column]] = {}
    still: dict[str, str] = {}
    for weight in taken:
        use = weight.uses[0]
        axis = use.operand.axis
        key = groups.analysis.use.get((use.node.key, use.index), (use.node.inputs[use.index],))
        axes = groups.analysis.axes.get(key)
        if len(weight.uses) > 1:
            still[weight.name] = "several layers read the weight"
            continue
        if axis is None or use.layout is None or axes is None:
            still[weight.name] = "what stands before the layer is not followed"
            continue
        ids = axes[axis]
        if isinstance(ids, Fixed):
            still[weight.name] = "the inputs are no channels"
            continue
        blocks = list(_blocks(groups, ids, of))
        if not blocks:
            still[weight.name] = _why_fixed(groups, ids)
            continue
        sizes = stored_values(groups.graph, weight).magnitudes()
        strides = [sizes.itemsize * s for s in use.layout.strides]
        seen = np.lib.stride_tricks.as_strided(sizes, use.layout.dims, strides, writeable=False)
        rows = np.moveaxis(seen, axis, -1).reshape(-1, ids.size)
        for number, start in blocks:
            part = rows[:, start : start + groups.groups[number].width]
            found.setdefault(number, []).append(_Column(weight, part))
    return found, still


def _blocks(groups: Groups, ids: Ids, of: int) -> Iterator[tuple[int, int]]:
    """Groups whose units stand in an axis one after another, from the start of a run on: (group, first place)."""
    group, unit = groups.units(ids)
    alone = (group >= 0).sum(1) == 1
    mine, place = group.max(1), unit.max(1)
    for number in np.unique(mine[alone]).tolist():
        at = np.flatnonzero((group == number).any(1))
        units = np.arange(groups.groups[number].width)
        if (
            at[0] % of == 0
            and alone[at].all()
            and np.array_equal(at - at[0], units)
            and np.array_equal(place[at], units)
        ):
            yield number, int(at[0])


def _why_fixed(groups: Groups, ids: Ids) -> str:
    """Why a weight's inputs stay in order: the first reason that any of them has."""
    why = groups.solution.why[groups.solution.root[ids]]
    numbers = why[why != Solution.NOT_FROZEN]
    return f"the inputs must stay: {groups.analysis.facts.reasons[int(numbers[0])].text}" if numbers.size else _SEVERAL


def _held_still(groups: Groups) -> set[int]:
    """Groups whose order something counts on: constant selections and shuffles, whose indices would have to change."""
    analysis = groups.analysis
    ids = [t.ids for t in analysis.facts.takes]
    for shuffle in analysis.shuffles:
        ids += [a for a in analysis.axes[shuffle.source,] if not isinstance(a, Fixed)]
    return {int(n) for each in ids for n in np.unique(groups.units(each)[0]) if n >= 0}


def _sample(scores: Scores, seed: int) -> Scores:
    if len(scores) <= _ROWS:
        return scores
    return scores[np.sort(np.random.default_rng(seed).choice(len(scores), _ROWS, replace=False))]


def _kept_of_all(graph: Graph, taken: Sequence[Weight], pattern: Pattern) -> tuple[float, float]:
    """Sum of the magnitudes of all weights, and of what the pattern keeps of them."""
    total = before = 0.0
    for weight in taken:
        sizes = stored_values(graph, weight).magnitudes()
        runs = sizes.reshape(-1, pattern.of, weight.uses[0].step)
        total += float(sizes.sum(dtype=np.float64))
        before += float(-np.partition(-runs, pattern.keep - 1, axis=1)[:, : pattern.keep].sum(dtype=np.float64))
    return total, before


def _plan(groups: Groups, orders: Mapping[int, Order]) -> Plan:
    """A plan that takes all of every axis, in another order."""

    def along(axes: Sequence[Axis]) -> dict[int, AxisTake]:
        found = {k: _order_of(groups, axis, orders) for k, axis in enumerate(axes) if not isinstance(axis, Fixed)}
        return {k: AxisTake(order.size, tuple(order.tolist())) for k, order in found.items() if order is not None}

    analysis, constants = groups.analysis, groups.graph.constants
    hide = {key[0]: along(axes) for key, axes in analysis.axes.items() if key[0] not in constants and len(key) == 1}
    return Plan(
        model=fingerprint(groups.graph),
        options={},
        notes=(),
        groups=(),
        take=constant_takes(groups, lambda _, axes: along(axes), {}),
        hide={name: axes for name, axes in hide.items() if axes},  # nothing is hidden; the proof compares in this order
        sizes=(),
        gathers=(),
        io=groups.io,
    )


def _order_of(groups: Groups, ids: Ids, orders: Mapping[int, Order]) -> Order | None:
    """Where each place of an axis takes its slot from; None where nothing moves.

    A place holds one unit of every group it is a product of, and a unit may have several places. The place whose units
    are those that come here, and that is as many-th of its kind, is the one.
    """
    group, unit = groups.units(ids)
    moved = unit.copy()
    for number, order in orders.items():
        mine = group == number
        moved[mine] = order[unit[mine]]
    if np.array_equal(moved, unit):
        return None
    here, there = (np.lexsort([*group.T, *u.T]) for u in (moved, unit))
    if not (np.array_equal(moved[here], unit[there]) and np.array_equal(group[here], group[there])):
        raise GoalError(
            "the channels cannot be reordered: an axis holds only some of a group's units.\n"
            "Leave out --permute, and please report the model."
        )
    order = np.empty(ids.size, np.int64)
    order[here] = there
    return order
