"""Why a pruned network kept more than a quarter of its work, and which of its parameters no unit holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

UNCUT = "one factor of a product axis is cut, the other stays"
SINGLE = "work with one axis that can shrink (depthwise convolution, products of attention)"
_MANY = 4
_HARDLY = 0.6


def shortfall(groups: Any, plan: Any) -> dict[str, list[list[Any]]]:
    """Name what holds back a cut.

    Args:
        groups: the analysis of the dense network.
        plan: what was cut.

    Returns:
        ``macs``: [share of all MACs left beyond a quarter, reason, where], ``parameters``: [share of all parameters
        that no unit holds, reason, where]; largest first, at most 4 each.
    """
    return {"macs": _most(_macs(groups, plan)), "parameters": _most(_parameters(groups))}


def _most(found: Counter[tuple[str, str]]) -> list[list[Any]]:
    total: Counter[str] = Counter()
    first: dict[str, str] = {}
    for (text, where), share in found.most_common():
        total[text] += share  # type: ignore[assignment]
        first.setdefault(text, where)
    return [[float(share), text, first[text]] for text, share in total.most_common(_MANY)]


def _macs(groups: Any, plan: Any) -> Counter[tuple[str, str]]:
    kept = {g.name: g.keep for g in plan.groups}
    masks = []
    for group in groups:
        mask = np.ones(group.width, bool)
        if group.name in kept:
            mask[:] = False
            mask[list(kept[group.name])] = True
        masks.append(mask)
    works = groups.analysis.work
    sizes = [float(w.factor) * float(np.prod([a.size for a in w.axes])) for w in works]
    found: Counter[tuple[str, str]] = Counter()
    for work, size in zip(works, sizes, strict=True):
        left = [float(groups.alive(a, masks).mean()) for a in work.axes]
        excess = size * (float(np.prod(left)) - 0.25) / max(sum(sizes), 1)
        if excess > 0:
            whole = [a for a, share in zip(work.axes, left, strict=True) if share > _HARDLY]
            if len(whole) < len(left) and _of_activations(groups.graph, work.node):
                whole = []
            found[_why(groups, whole, work.node)] += excess  # type: ignore[assignment]
    return found


def _of_activations(graph: Any, node: str) -> bool:
    """Say whether a node multiplies two activations, as attention does: positions on both sides stay."""
    found = graph.producer.get(node)
    return found is not None and not any(name in graph.constants for name in found.inputs)


def _why(groups: Any, axes: list[Any], where: str) -> tuple[str, str]:
    """The most frequent reason for which slots of some axes stay; ``axes``: those that were hardly cut."""
    if not axes:
        return SINGLE, where
    reasons: Counter[tuple[str, str]] = Counter()
    for axis in axes:
        numbers = groups.solution.why[groups.solution.root[axis]]
        for number in numbers[numbers != groups.solution.NOT_FROZEN]:
            reason = groups.analysis.facts.reasons[number]
            reasons[reason.text, reason.where] += 1
    return reasons.most_common(1)[0][0] if reasons else (UNCUT, where)


def _parameters(groups: Any) -> Counter[tuple[str, str]]:
    free: dict[str, dict[int, Any]] = {}
    for group in groups:
        for span in group.parameters:
            masks = free.setdefault(span.tensor, {})
            masks[span.axis] = masks.get(span.axis, False) | (span.units >= 0)
    rows: dict[str, list[Any]] = {}
    for row in groups.frozen:
        rows.setdefault(row.tensor, []).append(row)
    found: Counter[tuple[str, str]] = Counter()
    for name, frozen in rows.items():
        shape = groups.graph.shape(name) or ()
        stay = [s - int(free.get(name, {}).get(k, np.zeros(1)).sum()) for k, s in enumerate(shape)]
        row = max(frozen, key=lambda r: r.count)
        where = f"{row.reason.where}: '{name}'"
        found[row.reason.text, where] += float(np.prod(stay)) / max(groups.graph.parameters, 1)  # type: ignore[assignment]
    return found
