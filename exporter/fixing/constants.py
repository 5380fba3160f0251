"""Nodes that read constants alone are computed once, where what is fixed made these constants."""

from __future__ import annotations

import math
from collections.abc import Set
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto

from exporter import tensors
from exporter.computed_weights import evaluate
from exporter.errors import ModelError
from exporter.graph import IR_WITH_FREE_INITIALIZERS
from exporter.inferred import Inferred, are_numbers
from exporter.protos import constant_tensors, drop_unread, reads, set_nodes, subgraphs
from exporter.values import UNPREDICTABLE, is_standard
from runtime.errors import RunError

_MOST_BYTES = 1 << 18
"""Of a tensor that is computed: beyond, the file would grow for what is quickly made of a few numbers."""
_MOST_READ = 1 << 30
"""Of all that is read for it: a message holds 2 GB."""


def fold_new_constants(model: ModelProto, folder: Path, static: Inferred, given: Set[str]) -> bool:
    """Compute what nodes of the main graph make of constants, in place.

    What a file computes from its own constants alone stays: weights in fewer bits are dequantized on purpose.

    Args:
        model: nodes in topological order.
        folder: where its external data lies.
        static: types and shapes of its tensors.
        given: constants that the file had before anything was fixed.

    Returns:
        Whether anything changed.
    """
    fed = {v.name for v in model.graph.input} if model.ir_version >= IR_WITH_FREE_INITIALIZERS else set()
    constants = {n: t for n, t in constant_tensors(model).items() if n not in fed}  # the others are defaults
    new = constants.keys() - given
    made, room = set[str](), _MOST_READ
    kept: list[NodeProto] = []
    computed: list[NodeProto] = []
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        names = [name for name in node.input if name]
        ready = all(name in constants or name in made for name in names) and not new.isdisjoint(names)
        reading = sum(tensors.nbytes(constants[name]) for name in names if name in constants) if ready else 0
        if ready and reading <= room and _computes(node, static) and outputs.isdisjoint(node.output):
            room -= reading
            computed.append(node)
            made.update(filter(None, node.output))
            new |= made
        else:
            kept.append(node)
    wanted = sorted(made & set().union(*map(reads, kept)))
    if not wanted:
        return False
    try:
        values = evaluate(model, folder, computed, wanted)
    except (ModelError, RunError, MemoryError):  # left to who runs the file
        return False
    set_nodes(model.graph, kept)
    model.graph.initializer.extend(values)
    drop_unread(model, {t.name for t in model.graph.initializer} - {v.name for v in model.graph.input})
    return True


def _computes(node: NodeProto, static: Inferred) -> bool:
    """Say whether a node gives the same, and not too much, in every run."""
    if not is_standard(node) or subgraphs(node) or node.op_type in UNPREDICTABLE or node.op_type == "Constant":
        return False
    return all(_is_small(name, static) for name in node.output if name)


def _is_small(name: str, static: Inferred) -> bool:
    dims, kind = static.dims.get(name, ("?",)), static.dtype.get(name, TensorProto.STRING)
    if not are_numbers(dims) or kind in (TensorProto.STRING, TensorProto.UNDEFINED):
        return False
    return math.prod(int(d) for d in dims) * tensors.dtype_bits(kind) <= 8 * _MOST_BYTES
