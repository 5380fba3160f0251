"""Write out attributes whose default depends on a size, so that a cut does not change what they mean.

The scale of an attention node defaults to one over the root of the head size: with fewer dimensions left it would be
another number. So do the sizes of queries, keys and values in one matrix, which need not stay equal. A size that
depends on the inputs is not written out: what follows it cannot be cut anyway, and the rule of the operator must freeze
what the default still depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import GraphProto, NodeProto, helper

from exporter.inferred import Inferred
from exporter.node_shapes import Schemas
from runtime.registry import enter

Step = Callable[[NodeProto, Inferred], None]

STEPS: dict[str, Step] = {}


def explicit(*operators: str) -> Callable[[Step], Step]:
    """Register what writes out the attributes of operators (``Attention``, ``com.microsoft::Attention``)."""
    return enter(STEPS, "steps", *operators)


def write_out(graph: GraphProto, schemas: Schemas, inferred: Inferred) -> bool:
    """Write out, in place, the attributes that depend on sizes, where those hold for every input (``inferred``).

    Returns:
        Whether there was a node that may have some, in the graph or its subgraphs; ``schemas`` know it as it was.
    """
    found = False
    for view in schemas.views(graph):
        step = STEPS.get(view.name)
        if step is not None:
            step(view.proto, inferred)
            found = True
        for inner in view.graphs:
            found |= write_out(inner, schemas, inferred)
    return found


def write_scale(node: NodeProto, size: object) -> None:
    """Write out a ``scale`` of one over the root of a head size, where there is none and the size is a number."""
    if isinstance(size, int) and size > 0 and all(a.name != "scale" for a in node.attribute):
        node.attribute.append(helper.make_attribute("scale", 1 / math.sqrt(size)))


@explicit("Attention")
def _attention(node: NodeProto, inferred: Inferred) -> None:
    dims = inferred.dims.get(node.input[0]) if node.input else None
    heads = next((a.i for a in node.attribute if a.name == "q_num_heads"), 0)
    if dims is None or len(dims) not in (3, 4):
        return
    size = dims[-1]
    if len(dims) == 3:
        size = size // heads if isinstance(size, int) and heads > 0 else ""
    write_scale(node, size)


@explicit("LinearAttention")
def _linear_attention(node: NodeProto, inferred: Inferred) -> None:
    dims = inferred.dims.get(node.input[0]) if node.input else None
    values = {a.name: a for a in node.attribute}
    heads = values["q_num_heads"].i if "q_num_heads" in values else 0
    if dims is None or len(dims) != 3 or not isinstance(dims[2], int) or heads < 1:
        return
    if "scale" in values and values["scale"].f == 0.0:  # its way to ask for the default
        node.attribute.remove(values["scale"])
    write_scale(node, dims[2] // heads)


@explicit(
    "com.microsoft::Attention",
    "com.microsoft::GroupQueryAttention",
    "com.microsoft::MultiHeadAttention",
    "com.microsoft::QAttention",
)
def _contrib_attention(node: NodeProto, inferred: Inferred) -> None:
    """Queries are the first run of a matrix's columns, a tensor of their own, or packed with keys and values."""
    values = {a.name: a for a in node.attribute}
    heads = values["num_heads"].i if "num_heads" in values else 0
    made_inside = node.op_type in ("Attention", "QAttention")
    at = 1 if made_inside else 0
    dims = inferred.dims.get(node.input[at]) if len(node.input) > at else None
    if not dims or not isinstance(dims[-1], int) or heads < 1:
        return
    if "scale" in values and values["scale"].f == 0.0:  # its way to ask for the default
        node.attribute.remove(values["scale"])
    size = dims[-1] // heads
    if made_inside:
        if node.op_type == "Attention" and "qkv_hidden_sizes" not in values:
            node.attribute.append(helper.make_attribute("qkv_hidden_sizes", [dims[-1] // 3] * 3))
        sizes = values["qkv_hidden_sizes"].ints if "qkv_hidden_sizes" in values else ()
        size = (sizes[0] if sizes else dims[-1] // 3) // heads
    elif node.op_type == "GroupQueryAttention" and not (len(node.input) > 1 and node.input[1]):
        groups = values["kv_num_heads"].i if "kv_num_heads" in values else 0
        size = dims[-1] // (heads + 2 * groups)
    write_scale(node, size)
