"""Gathers that copy: a flattened tensor read back in order, by indices that are computed from the batch size.

PyTorch's exporter writes ``as_strided`` this way (a mean over the image followed by a layer normalisation, in ConvNeXt
and Swin). Read as a Gather by data it would freeze the axis; what it does is a Reshape, so that is what it becomes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from exporter.inferred import Inferred
from exporter.protos import attributes_of
from exporter.values import is_standard


def candidates(nodes: Iterable[NodeProto], static: Inferred) -> list[NodeProto]:
    """Gathers along the first axis whose indices are computed at run time."""
    return [
        n
        for n in nodes
        if n.op_type == "Gather"
        and is_standard(n)
        and len(n.input) > 1
        and attributes_of(n).get("axis", 0) == 0
        and n.input[1] not in static.known
        and len(static.dims.get(n.input[0], ())) == 1
        and len(static.dims.get(n.input[1], ())) > 1
    ]


def replace_copies(model: ModelProto, static: Inferred, bindings: tuple[Inferred, Inferred]) -> bool:
    """Replace, in place, each candidate whose indices count up under two different sizes of the inputs.

    Returns:
        Whether there was one.
    """
    changed = False
    for node in candidates(model.graph.node, static):
        shapes = [_copied_shape(node, found) for found in bindings]
        one, other = shapes
        if one is None or other is None or len(one) != len(other):
            continue
        target = [a if a == b else -1 for a, b in zip(one, other, strict=True)]
        if target.count(-1) > 1:
            continue
        name = f"{node.output[0]}.shape"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(target, np.int64), name))
        node.op_type = "Reshape"
        node.input[1] = name
        del node.attribute[:]
        changed = True
    return changed


def _copied_shape(node: NodeProto, found: Inferred) -> tuple[int, ...] | None:
    """Shape of the result where the node copies its whole input in order."""
    indices, source = found.known.get(node.input[1]), found.dims.get(node.input[0])
    if indices is None or source is None or source != (indices.size,):
        return None
    return indices.shape if np.array_equal(indices.ravel(), np.arange(indices.size)) else None
