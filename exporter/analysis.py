"""Run the rules over a graph: the facts of every node, and a frozen axis for whatever has no rule."""

from __future__ import annotations

from exporter.graph import Graph, Node
from exporter.rules import FROZEN, RULES
from exporter.rules.site import Analysis, Site
from exporter.shuffles import Shuffle, find_shuffles
from exporter.slots import ONE, Fixed, Reason, SlotError


def analyse(graph: Graph) -> Analysis:
    """State the facts of every node."""
    analysis = Analysis(graph)
    for name in graph.inputs:
        shape = graph.shape(name)
        if shape is not None:
            why = Reason("graph input", f"input '{name}'")
            analysis.axes[name,] = [Fixed(s, why) for s in shape]
    analysis.shuffles = find_shuffles(graph)
    inside = {n.index for s in analysis.shuffles for n in s.nodes}
    ends: dict[int, list[Shuffle]] = {}
    for shuffle in analysis.shuffles:
        ends.setdefault(shuffle.nodes[0].index, []).append(shuffle)
    for node in graph.nodes:
        if node.op == "Constant" and node.key in graph.constants:
            continue
        if node.index not in inside:
            _apply(analysis, node)
        for shuffle in ends.get(node.index, ()):
            _apply_shuffle(analysis, shuffle)
    for name in graph.outputs:
        _freeze_all(analysis, name, Reason("graph output", f"output '{name}'"))
    return analysis


def _apply(analysis: Analysis, node: Node) -> None:
    """Run the rule of one node; freeze everything it touches where there is none or it does not apply."""
    site = Site(analysis, node)
    checkpoint = len(analysis.facts.resizes), len(analysis.facts.takes), len(analysis.work)
    try:
        if node.op not in RULES:
            kind = "control flow is not analysed" if node.captured or _has_graph(node) else f"no rule for {node.op}"
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
        for i, name in enumerate(node.inputs):
            if name and name in analysis.graph.constants and analysis.graph.shape(name) is not None:
                for axis in site.axes(i):
                    analysis.facts.freeze(axis, why)
            elif name:
                _freeze_all(analysis, name, why)
        for o, name in enumerate(node.outputs):
            if name:
                site.leave(o, why)
    else:
        site.close()
    for name in node.captured:
        _freeze_all(analysis, name, Reason("read inside a subgraph", node.label))


def _has_graph(node: Node) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.proto.attribute)


def _apply_shuffle(analysis: Analysis, shuffle: Shuffle) -> None:
    axes = list(analysis.axes[shuffle.source,])
    whole = axes[shuffle.axis]
    if isinstance(whole, Fixed):
        axes[shuffle.axis] = Fixed(len(shuffle.indices), whole.why)
    else:
        axes[shuffle.axis] = whole[shuffle.indices]
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
