"""Reorder the units of groups so that a pattern keeps more, and prove that nothing else changes.

A group of units may stand in any order, as long as every axis it spans follows: the analysis behind pruning knows these
axes, and taking all of an axis in another order is the edit pruning makes. The reordered model is proved equal to the
original as a pruned one is, in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.edits import constant_takes
from exporter.errors import GoalError, ModelError
from exporter.fits import fingerprint
from exporter.graph import Graph
from exporter.groups import Groups, find_groups
from exporter.plan import AxisTake, Plan
from exporter.proof import Proof
from exporter.rewriter import rewrite
from exporter.slots import Axis, Fixed, Ids
from exporter.solve import Solution
from exporter.sparsity.choice import choose_weights
from exporter.sparsity.codes import stored_values
from exporter.sparsity.layers import Weight
from exporter.sparsity.order import Scores, find_order, kept
from exporter.sparsity.patterns import Pattern
from exporter.verifier import CannotRun, verify
from runtime.steps import Count

_ROWS = 2048
"""Rows of a group's weights that the search looks at; of more, some are drawn."""
_MIXES, _MOST_MIXES = 40_000, 400
"""Rounds of mixing: so many divided by the number of columns, because each takes longer the more there are."""
_LEAST_GAIN = 1e-4
_SEVERAL = "its inputs are not the units of one group, in their order"

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Permuted:
    """What reordering did.

    Attributes:
        groups: number of groups that were reordered.
        weights: number of weights whose runs lie along these.
        still: names of the weights whose runs stay as they are, by reason.
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
    """A weight whose runs lie along the units of a group, in their order: magnitudes, shape [rows, units]."""

    weight: Weight
    scores: Scores


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
    """
    step("finding what may be reordered")
    groups = find_groups(graph)
    taken, _ = choose_weights(graph, pattern, *names)
    columns, still = _columns(groups, taken)
    counted = _held_still(groups)
    orders: dict[int, Order] = {}
    gained = 0.0
    total, before = _kept_of_all(graph, taken, pattern)
    for i, (number, found) in enumerate(sorted(columns.items()), 1):
        width = groups.groups[number].width
        whole = width // pattern.of * pattern.of
        if number in counted or whole < 2 * pattern.of:
            why = "a selection or a shuffle counts on the order" if number in counted else "all inputs are in one run"
            still |= {c.weight.name: why for c in found}
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
            gained += gain
        else:
            still |= {c.weight.name: "no order was found that keeps more" for c in found}
    share, reasons = before / max(total, 1e-30), _by_reason(taken, still)
    if not orders:
        return graph, Permuted(0, 0, reasons, share, share)
    plan = _plan(groups, orders)
    reordered = rewrite(graph, plan)
    step("proving the reordered model equal to the original")
    proof = _proved(reordered, graph, plan, step)
    after = (before + gained) / max(total, 1e-30)
    moved = len(taken) - len(still)
    return reordered, Permuted(len(orders), moved, reasons, share, after, proof.error, proof.pieces, proof.warnings)


def _proved(reordered: Graph, graph: Graph, plan: Plan, step: Callable[[str], None]) -> Proof:
    """Prove the reordered graph; what stands against it, and that there is a way without."""
    try:
        return verify(reordered, graph, plan, progress=step)
    except CannotRun as error:
        why = str(error.__cause__ or error)
        raise ModelError(
            f"--permute cannot prove its order: {why}\n"
            "Give sizes that the dynamic axes accept with --shape NAME:1x3x224x224, or leave out --permute."
        ) from error
    except GoalError as error:
        why, _, _ = str(error).partition(" Nothing was written.")
        raise GoalError(
            f"the order of --permute failed its proof (below, pruned means reordered): {why} Nothing was written.\n"
            "This is a defect of Secateur: leave out --permute, and please report it with the model."
        ) from error


def _by_reason(taken: Sequence[Weight], still: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    rows: dict[str, list[str]] = {}
    for name in (w.name for w in taken if w.name in still):
        rows.setdefault(still[name], []).append(name)
    return {reason: tuple(found) for reason, found in rows.items()}


def _columns(groups: Groups, taken: Sequence[Weight]) -> tuple[dict[int, list[_Column]], dict[str, str]]:
    """The weights that a group's order matters to, by number of the group; why the others' runs stay, by name."""
    found: dict[int, list[_Column]] = {}
    still: dict[str, str] = {}
    for weight in taken:
        use = weight.uses[0]
        axis = use.operand.axis
        key = groups.analysis.use.get((use.node.key, use.index), (use.node.inputs[use.index],))
        axes = groups.analysis.axes.get(key)
        if len(weight.uses) > 1:
            still[weight.name] = "several layers read it"
            continue
        if axis is None or use.layout is None or axes is None:
            still[weight.name] = "what stands before its layer is not followed"
            continue
        ids = axes[axis]
        if isinstance(ids, Fixed):
            still[weight.name] = "its inputs are no channels"
            continue
        group, unit = groups.units(ids)
        number = int(group[0].max())
        if number < 0 or ids.size != groups.groups[number].width:
            still[weight.name] = _why_fixed(groups, ids)
            continue
        mine = np.where(group == number, unit, -1).max(1)
        if not np.array_equal(mine, np.arange(ids.size)):
            still[weight.name] = _SEVERAL
            continue
        sizes = stored_values(groups.graph, weight).magnitudes()
        strides = [sizes.itemsize * s for s in use.layout.strides]
        seen = np.lib.stride_tricks.as_strided(sizes, use.layout.dims, strides, writeable=False)
        found.setdefault(number, []).append(_Column(weight, np.moveaxis(seen, axis, -1).reshape(-1, ids.size)))
    return found, still


def _why_fixed(groups: Groups, ids: Ids) -> str:
    """Why a weight's inputs stay in order: the first reason that any of them has."""
    why = groups.solution.why[groups.solution.root[ids]]
    numbers = why[why != Solution.NOT_FROZEN]
    return f"its inputs must stay: {groups.analysis.facts.reasons[int(numbers[0])].text}" if numbers.size else _SEVERAL


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
