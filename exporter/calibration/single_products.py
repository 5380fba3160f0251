"""Matrix products of 16 bits as ONNX Runtime computes them on a CPU: in 32, with weights that are converted before."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, NodeProto, TensorProto, helper

from exporter.graph import op_of
from exporter.protos import reads
from exporter.tensors import nbytes

_PRODUCTS = ("MatMul", "Gemm")


def products_in_single(model: ModelProto, least: int) -> dict[str, TensorProto]:
    """Let products whose weights have 16 bits read these in 32, as inputs of the model.

    The results are the same: ONNX Runtime computes such products in 32 bits and rounds what comes out. But it converts
    the weights into copies, twice over, whenever a session is opened.

    Args:
        model: changed in place.
        least: bytes of a weight from which it is fed.

    Returns:
        What it must be fed: the weights as they were, by name.
    """
    graph = model.graph
    times = Counter(name for node in graph.node for name in reads(node))
    times.update(output.name for output in graph.output)
    weighing = Counter(node.input[1] for node in graph.node if _is_product(node))
    taken = {
        t.name: t
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT16 and nbytes(t) >= least and 0 < weighing[t.name] == times[t.name]
    }
    nodes = [new for node in graph.node for new in (_single(node, taken) if _reads_one(node, taken) else [node])]
    left = [t for t in graph.initializer if t.name not in taken]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(left)
    graph.input.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, t.dims) for n, t in taken.items())
    return taken


def _is_product(node: NodeProto) -> bool:
    return op_of(node) in _PRODUCTS


def _reads_one(node: NodeProto, taken: dict[str, TensorProto]) -> bool:
    return _is_product(node) and node.input[1] in taken


def _single(node: NodeProto, fed: dict[str, TensorProto]) -> list[NodeProto]:
    """A product in 32 bits between casts."""
    product = NodeProto()
    product.CopyFrom(node)
    before, output = [], node.output[0]
    for k, name in enumerate(node.input):
        if name and name not in fed:
            product.input[k] = f"{output}.single{k}"
            before.append(helper.make_node("Cast", [name], [product.input[k]], to=TensorProto.FLOAT))
    product.output[0] = f"{output}.single"
    return [*before, product, helper.make_node("Cast", [product.output[0]], [output], to=TensorProto.FLOAT16)]
