"""Which weights of a pruned model no longer hold what its plan leaves of the original: those changed after the cut."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from exporter.graph import Graph
from exporter.plan import Plan
from exporter.plan_check import fingerprint
from exporter.rewriter import rewrite

_COUNTS = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
"""Types that hold sizes and indices: nothing that fits or trains weights changes those."""


def changed_weights(pruned: Graph, graph: Graph, plan: Plan) -> tuple[str, ...]:
    """Weights that differ from those the plan leaves, where values of weights are all that differs.

    The plan is carried out on the original once more and compared with the pruned model. This explains a proof that
    failed; it proves nothing, since it asks the rewrite that a proof is to judge.

    Args:
        pruned: the model after pruning, as it was read.
        graph: the model before.
        plan: what was cut.

    Returns:
        Names of the constants, in the order of the file; empty where none differs, or where nodes, shapes, types or
        numbers that count something differ too.

    Raises:
        UsageError: the plan is for another model.
    """
    cut = rewrite(graph, plan)
    if fingerprint(cut).structure != fingerprint(pruned).structure:
        return ()
    changed = tuple(name for name in pruned.constants if not _same(cut, pruned, name))
    return () if any(pruned.constants[name].data_type in _COUNTS for name in changed) else changed


def _same(one: Graph, other: Graph, name: str) -> bool:
    a, b = one.array(name), other.array(name)
    return bool(np.array_equal(a, b)) if a.dtype == object else a.tobytes() == b.tobytes()
