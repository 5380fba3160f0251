"""Write out attributes whose default depends on a size, so that a cut does not change what they mean.

The scale of an attention node defaults to one over the root of the head size: with fewer dimensions left it would be
another number.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, NodeProto

from exporter.graph import op_of
from exporter.shapes import Inferred

Step = Callable[[NodeProto, Inferred], None]

STEPS: dict[str, Step] = {}


def explicit(*operators: str) -> Callable[[Step], Step]:
    """Register what writes out the attributes of operators (``Attention``, ``com.microsoft::Attention``)."""

    def register(function: Step) -> Step:
        for operator in operators:
            if operator in STEPS:
                raise ValueError(f"two steps for {operator}: {STEPS[operator].__name__} and {function.__name__}")
            STEPS[operator] = function
        return function

    return register


def write_out(model: ModelProto, inferred: Inferred) -> None:
    """Write out, in place, the attributes that depend on the sizes in ``inferred``."""
    for node in model.graph.node:
        step = STEPS.get(op_of(node))
        if step is not None:
            step(node, inferred)
