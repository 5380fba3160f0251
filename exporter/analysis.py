"""Run the rules over a graph: the facts of every node, and a frozen axis for whatever has no rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from exporter.errors import ModelError, UsageError
from exporter.graph import Graph, Node
from exporter.hints import interface_hint
from exporter.interface import rows_selected
from exporter.rules import FROZEN, RULES, positions
from exporter.rules.site import Analysis, Site
from exporter.shuffles import Shuffle, find_shuffles
from exporter.slots import FLAT_LIMIT, ONE, Facts, Fixed, Reason, SlotError, TooManySlots

_SLOTS = 1 << 25
_SLOTS_PER_WEIGHT = 8
"""Slots that tensors and facts may name: what every model may, and what each number in its constants pays for.

A graph of fifty nodes can make axes of millions (ConstantOfShape, Expand, Tile, Pad); each slot costs memory and time.
"""


def analyse(graph: Graph, free: Mapping[str, Sequence[int]] | None = None) -> Analysis:
    """State the facts of every node.

    Args:
        graph: the graph.
        free: axes of graph inputs and outputs that may shrink, by name; all others stay.

    Raises:
        ModelError: the axes of the graph are longer than its weights account for, by far.
        UsageError: more ids are to be free than can be looked at.
    """
    weights = sum(math.prod(t.dims) for t in graph.constants.values())
    analysis = Analysis(graph, Facts(most=_SLOTS + _SLOTS_PER_WEIGHT * weights))
    try:
        _state(analysis, graph, free or {})
    except TooManySlots as error:
        raise ModelError(_too_long(graph, analysis.facts.most or 0, weights)) from error
    analysis.facts.most = None
    return analysis


def _too_long(graph: Graph, most: int, weights: int) -> str:
    """Say which tensor to blame."""
    made = [(sum(graph.shape(name) or ()), name, node) for node in graph.nodes for name in node.outputs if name]
    _, name, node = max(made, key=lambda m: m[0])
    shape = " x ".join(f"{s:,}" for s in graph.shape(name) or ())
    return (
        f"the axes of the tensors here have more than {most:,} positions in all, which the {weights:,} numbers the "
        f"file holds do not account for. The longest are those of '{name}' ({shape}), made by {node.label}. Give "
        "smaller sizes to dynamic axes with --shape, or export without the nodes that make tensors of such sizes."
    )


def _state(analysis: Analysis, graph: Graph, free: Mapping[str, Sequence[int]]) -> None:
    for name in graph.inputs:
        shape = graph.shape(name)
        if shape is not None:
            whys = _interface(graph, "input", name, len(shape))
            own = free.get(name, ())
            analysis.axes[name,] = [
                analysis.facts.axis(s, whys[k].where) if k in own else Fixed(s, whys[k]) for k, s in enumerate(shape)
            ]
            if len(shape) in own:
                _free_ids(analysis, name, whys)
    shuffles = find_shuffles(graph)
    inside = {n.index for s in shuffles for n in s.nodes}
    ends: dict[int, list[Shuffle]] = {}
    for shuffle in shuffles:
        ends.setdefault(shuffle.nodes[0].index, []).append(shuffle)

    def visit(node: Node) -> None:
        if node.op == "Constant" and node.key in graph.constants:
            return
        if node.index not in inside:
            _apply(analysis, node)
        for shuffle in ends.get(node.index, ()):
            _apply_shuffle(analysis, shuffle)
            analysis.shuffles.append(shuffle)

    analysis.visit = visit
    for node in graph.nodes:
        if node.depth == 0:
            visit(node)
    for name in graph.outputs:
        axes, own = analysis.axes.get((name,), ()), free.get(name, ())
        whys = _interface(graph, "output", name, len(axes))
        if name in graph.constants:
            _freeze_all(analysis, name, Reason("graph output", f"output '{name}'"))
            continue
        for k, (axis, why) in enumerate(zip(axes, whys, strict=True)):
            if k not in own:
                analysis.facts.freeze(axis, why)
    positions.settle(analysis)


def _interface(graph: Graph, kind: str, name: str, rank: int) -> list[Reason]:
    """Why each axis of a graph input or output stays, and what to type to free it."""
    dims = graph.static.dims.get(name, ())
    dynamic = [k >= len(dims) or isinstance(dims[k], str) for k in range(rank)]
    return [Reason(f"graph {kind}", f"{kind} '{name}'", interface_hint(name, k, dynamic[k])) for k in range(rank)]


def _free_ids(analysis: Analysis, name: str, whys: Sequence[Reason]) -> None:
    """The ids an input may hold, as an axis after its last: they may go where they only select rows of tables."""
    rows = rows_selected(analysis.graph, name) or 1
    if rows > FLAT_LIMIT:
        raise UsageError(f"--io {name}:ids: the table has {rows:,} rows; up to {FLAT_LIMIT:,} can be looked at.")
    ids = analysis.facts.fresh(rows)
    shape = analysis.graph.shape(name) or ()
    analysis.axes[name, "ids"] = [*(Fixed(s, why) for s, why in zip(shape, whys, strict=True)), ids]
    analysis.positions[name] = ids
    analysis.roles.setdefault("token", []).append(ids)


def _apply(analysis: Analysis, node: Node) -> None:
    """Run the rule of one node; freeze everything it touches where there is none or it does not apply."""
    site = Site(analysis, node)
    checkpoint = len(analysis.facts.resizes), len(analysis.facts.takes), len(analysis.work)
    try:
        if node.op not in RULES:
            kind = "control flow is not analysed" if node.bodies else f"no rule for {node.op}"
            raise SlotError(FROZEN.get(node.op, kind))
        RULES[node.op](site)
    except (SlotError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # a node that lacks an input or an attribute its operator needs is left alone like one without a rule
        text = str(error) if isinstance(error, SlotError) else f"{node.op} is not used as its definition says"
        del (
            analysis.facts.resizes[checkpoint[0] :],
            analysis.facts.takes[checkpoint[1] :],
            analysis.work[checkpoint[2] :],
        )
        why = Reason(text, getattr(error, "where", "") or node.label)
        for inner in (n for body in node.bodies for n in body.everything()):
            _leave(analysis, inner, why)
        _leave(analysis, node, why)
    else:
        site.close()
        positions.carry(analysis, node)


def _leave(analysis: Analysis, node: Node, why: Reason) -> None:
    """Freeze everything a node reads and makes, whether its rule has been applied or not."""
    site = Site(analysis, node)
    for i, name in enumerate(node.inputs):
        if name and name in analysis.graph.constants and analysis.graph.shape(name) is not None:
            for axis in site.axes(i):
                analysis.facts.freeze(axis, why)
        elif name:
            _freeze_all(analysis, name, why)
    for o, name in enumerate(node.outputs):
        if name:
            _freeze_all(analysis, name, why)
            site.leave(o, why)


def _apply_shuffle(analysis: Analysis, shuffle: Shuffle) -> None:
    axes = list(analysis.axes[shuffle.source,])
    whole = axes[shuffle.axis]
    if isinstance(whole, Fixed):
        axes[shuffle.axis] = Fixed(len(shuffle.indices), whole.why)
    else:
        axes[shuffle.axis] = whole[shuffle.indices]
        analysis.facts.name(axes[shuffle.axis])
    analysis.axes[shuffle.result,] = axes


def _freeze_all(analysis: Analysis, name: str, why: Reason) -> None:
    if name in analysis.graph.constants:
        # a constant that is read whole: every use of it stays as it is
        shape = analysis.graph.shape(name)
        for key in [k for k in analysis.axes if k[0] == name]:
            for axis in analysis.axes[key]:
                analysis.facts.freeze(axis, why)
        if shape is not None and (name,) not in analysis.axes:
            analysis.axes[name,] = [Fixed(s, why if s > 1 else ONE) for s in shape]
        return
    for axis in analysis.axes.get((name,), ()):
        analysis.facts.freeze(axis, why)
