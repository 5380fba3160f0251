"""Run the rules over a graph: the facts of every node, and a frozen axis for whatever has no rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exporter.graph import Graph, Node
from exporter.interface import rows_selected
from exporter.rules import FROZEN, RULES, positions
from exporter.rules.site import Analysis, Site
from exporter.shuffles import Shuffle, find_shuffles
from exporter.slots import ONE, Fixed, Reason, SlotError


def analyse(graph: Graph, free: Mapping[str, Sequence[int]] | None = None) -> Analysis:
    """State the facts of every node.

    Args:
        graph: the graph.
        free: axes of graph inputs and outputs that may shrink, by name; all others stay.
    """
    free = free or {}
    analysis = Analysis(graph)
    for name in graph.inputs:
        shape = graph.shape(name)
        if shape is not None:
            why = Reason("graph input", f"input '{name}'")
            own = free.get(name, ())
            analysis.axes[name,] = [
                analysis.facts.fresh(s) if k in own and s > 1 else Fixed(s, why) for k, s in enumerate(shape)
            ]
            if len(shape) in own:
                _free_ids(analysis, name, why)
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
        _freeze_all(analysis, name, Reason("graph output", f"output '{name}'"), free.get(name, ()))
    positions.settle(analysis)
    return analysis


def _free_ids(analysis: Analysis, name: str, why: Reason) -> None:
    """The ids an input may hold, as an axis after its last: they may go where they only select rows of tables."""
    ids = analysis.facts.fresh(rows_selected(analysis.graph, name) or 1)
    shape = analysis.graph.shape(name) or ()
    analysis.axes[name, "ids"] = [*(Fixed(s, why) for s in shape), ids]
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
    analysis.axes[shuffle.result,] = axes


def _freeze_all(analysis: Analysis, name: str, why: Reason, but: Sequence[int] = ()) -> None:
    if name in analysis.graph.constants:
        # a constant that is read whole: every use of it stays as it is
        shape = analysis.graph.shape(name)
        for key in [k for k in analysis.axes if k[0] == name]:
            for axis in analysis.axes[key]:
                analysis.facts.freeze(axis, why)
        if shape is not None and (name,) not in analysis.axes:
            analysis.axes[name,] = [Fixed(s, why if s > 1 else ONE) for s in shape]
        return
    for k, axis in enumerate(analysis.axes.get((name,), ())):
        if k not in but:
            analysis.facts.freeze(axis, why)
