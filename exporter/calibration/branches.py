"""Ifs that take the same way for all calibration inputs: while these are looked at, that branch is part of the graph.

A model for two sampling rates has its layers in the two branches of an If; calibration inputs are of one rate. Inside
the If they could not be fitted, since an If runs as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from exporter.calibration.runner import Runner
from exporter.decided_ifs import take_known_branches
from exporter.graph import Graph, make_nodes
from runtime.samples import Samples


def along(graphs: Sequence[Graph], samples: Samples, batch: int) -> list[Graph]:
    """The graphs with every If replaced by the branch that all samples take in each of them.

    Args:
        graphs: of the same Ifs.
        samples: calibration inputs.
        batch: samples in one run.

    Returns:
        Graphs to run and to look at; all names are what they were. The graphs themselves where there is nothing to do.
    """
    found = list(graphs)
    while same := _agreed([_conditions(graph, samples, batch) for graph in found]):
        taken = [_taken(graph, same) for graph in found]
        if taken == found:
            break
        found = taken
    return found


def _agreed(conditions: Sequence[dict[str, bool]]) -> dict[str, bool]:
    first, *others = conditions
    return {name: way for name, way in first.items() if all(c.get(name) == way for c in others)}


def _conditions(graph: Graph, samples: Samples, batch: int) -> dict[str, bool]:
    """Names of what decides an If of the main graph, with what it is for all samples."""
    ifs = [n for n in graph.nodes if n.op == "If" and n.depth == 0]
    names = sorted({name for node in ifs for name in node.inputs[:1] if name not in graph.constants})
    ways: dict[str, set[bool]] = {name: set() for name in names}
    for values in Runner(graph, samples, batch).branch(names, {}) if names else ():
        for name in names:
            ways[name] |= {bool(value) for value in values[name].flat}
    return {name: way.pop() for name, way in ways.items() if len(way) == 1}


def _taken(graph: Graph, conditions: dict[str, bool]) -> Graph:
    """The graph with the branches that known conditions lead to; itself where that changes nothing."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    if not take_known_branches(model, {name: np.array(way) for name, way in conditions.items()}):
        return graph
    found = replace(graph, model=model, nodes=make_nodes(model.graph, graph.opsets))
    fewer = {n for n in graph.constants if len(found.users.get(n, ())) < len(graph.users.get(n, ()))}
    return replace(found, shared=graph.shared | fewer)
