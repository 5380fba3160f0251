"""Several runs of a model as one: each of its large weights is then read once, by a product of all runs' rows.

With few rows a product takes as long as reading its weight does, whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporter.graph import op_of, opsets_of
from exporter.protos import attributes_of, subgraphs

_WITH_SIZES = 13
"""The first operator set whose Split takes sizes that are computed."""
_PRODUCTS = ("MatMul", "Gemm")


def in_run(name: str, run: int) -> str:
    """What a tensor of one of the runs is called."""
    return f"{name}@{run}"


def side_by_side(model: ModelProto, weights: Mapping[str, Sequence[int]], runs: int, least: int) -> ModelProto | None:
    """A model that does several runs of another.

    Args:
        model: stays as it is.
        weights: shapes of the inputs that are the same in all runs. All other inputs, and all outputs, come once for
            each run (``in_run``).
        runs: how many.
        least: elements of weights from which it pays to read them once.

    Returns:
        None where they are fewer, or where a name that is needed is there already.
    """
    graph = model.graph
    shapes = {t.name: t.dims for t in graph.initializer} | dict(weights)
    products = {node.output[0]: node for node in graph.node if _multiplies_rows(node, weights, shapes)}
    read = {node.input[1] for node in products.values()}
    able = opsets_of(model).get("", 0) >= _WITH_SIZES and not any(map(subgraphs, graph.node))
    if not able or sum(math.prod(weights[name]) for name in read) < least:
        return None
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.input[:], result.graph.output[:]
    for given, into in ((graph.input, result.graph.input), (graph.output, result.graph.output)):
        for value in given:
            for name in [value.name] if value.name in shapes else [in_run(value.name, run) for run in range(runs)]:
                into.add().CopyFrom(value)
                into[-1].name = name
    constants: dict[str, TensorProto] = {}
    for node in graph.node:
        copies = [_copy(node, shapes, run) for run in range(runs)]
        joined = node.output[0] in products
        result.graph.node.extend(_joined(node, copies, weights[node.input[1]], constants) if joined else copies)
    result.graph.initializer.extend(constants.values())
    names = [*(o for node in result.graph.node for o in node.output if o), *shapes, *constants]
    return result if len(set(names)) == len(names) else None


def _multiplies_rows(
    node: NodeProto, weights: Mapping[str, Sequence[int]], shapes: Mapping[str, Sequence[int]]
) -> bool:
    """Whether a node multiplies rows, each for itself, by a weight."""
    if op_of(node) not in _PRODUCTS:
        return False
    rows, weight, *added = node.input
    plain = all(not name or len(shapes.get(name, (0, 0))) < 2 for name in added)
    return rows not in shapes and len(weights.get(weight, ())) == 2 and plain and not attributes_of(node).get("transA")


def _copy(node: NodeProto, shared: Collection[str], run: int) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    copy.input[:] = [name if not name or name in shared else in_run(name, run) for name in node.input]
    copy.output[:] = [name and in_run(name, run) for name in node.output]
    return copy


def _joined(
    node: NodeProto, copies: Sequence[NodeProto], shape: Sequence[int], constants: dict[str, TensorProto]
) -> list[NodeProto]:
    """One product instead of copies of it: all rows one below another, and what comes out parted again."""
    inner, outer = reversed(shape) if attributes_of(node).get("transB") else shape
    made: list[NodeProto] = []

    def constant(*values: int) -> str:
        name = f"side_by_side{list(values)}"
        constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def add(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        made.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    rows, counts, shapes = [], [], []
    for copy in copies:
        x, y = copy.input[0], copy.output[0]
        rows.append(add("Reshape", [x, constant(-1, inner)], f"{y}.rows"))
        size, dims = add("Shape", [rows[-1]], f"{y}.size"), add("Shape", [x], f"{y}.dims")
        counts.append(add("Slice", [size, constant(0), constant(1)], f"{y}.count"))
        front = add("Slice", [dims, constant(0), constant(-1)], f"{y}.front")
        shapes.append(add("Concat", [front, constant(outer)], f"{y}.shape", axis=0))
    product = NodeProto()
    product.CopyFrom(node)
    product.input[0] = add("Concat", rows, f"{node.output[0]}.rows", axis=0)
    made.append(product)
    sizes = add("Concat", counts, f"{node.output[0]}.sizes", axis=0)
    parts = [f"{copy.output[0]}.part" for copy in copies]
    made.append(helper.make_node("Split", [product.output[0], sizes], parts, axis=0))
    for part, shape_, copy in zip(parts, shapes, copies, strict=True):
        add("Reshape", [part, shape_], copy.output[0])
    return made
