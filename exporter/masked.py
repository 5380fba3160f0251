"""The masked original: the dense graph with gates that hide the removed units from every node that would read them.

Built from the plan alone, with another library (onnx-graphsurgeon) than the rewrite, so that a mistake in one is not
repeated in the other. It knows nothing of the rules either: what a hidden slot must look like to an operator is a table
of its own, ``exporter.gates``.
"""

from __future__ import annotations

import onnx

from exporter.gates import Masker
from exporter.graph import Graph
from exporter.plan import Plan


def masked_original(graph: Graph, plan: Plan) -> onnx.ModelProto:
    """Build the masked original.

    Args:
        graph: the dense graph.
        plan: which slots of which tensors are hidden.

    Returns:
        A model with the inputs and outputs of the dense one.
    """
    return Masker(graph, plan).build()


def hides(plan: Plan) -> bool:
    """Say whether a plan hides anything: one that only reorders takes all of every axis."""
    takes = (take for axes in plan.hide.values() for take in axes.values())
    return bool(plan.drop) or any(len(take.keep) < take.size for take in takes)
