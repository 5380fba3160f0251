"""Nodes that compute a matrix product on integers: what enters is rounded to uint8 by the range it has in each run.

ONNX Runtime computes them as one (DynamicQuantizeMatMul, or MatMulIntegerToFloat where several layers read the same).
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import NodeProto, TensorProto, helper

Rounded = dict[str, list[str]]
"""Integers, scale and zero point of tensors, by name."""


def on_integers(
    node: NodeProto, integers: str, scales: str, result: str, rounded: Rounded, unused: Callable[[str], str]
) -> list[NodeProto]:
    """What a product becomes.

    Args:
        node: reads the tensor at its first input.
        integers: name of the weight, int8 [inputs, outputs].
        scales: of its columns.
        result: name of the result.
        rounded: what layers before it in the same graph have had rounded; gets what this one reads.
        unused: makes names.
    """
    name, nodes = node.input[0], []
    if name not in rounded:
        rounded[name] = [unused(f"{name}_{part}") for part in ("quantized", "scale", "zero_point")]
        nodes.append(helper.make_node("DynamicQuantizeLinear", [name], rounded[name], rounded[name][0]))
    codes, scale, zero = rounded[name]
    sums, numbers, factors = (unused(f"{result}_{part}") for part in ("sums", "numbers", "scales"))
    return [
        *nodes,
        helper.make_node("MatMulInteger", [codes, integers, zero], [sums], node.name),
        helper.make_node("Cast", [sums], [numbers], numbers, to=TensorProto.FLOAT),
        helper.make_node("Mul", [scale, scales], [factors], factors),
        helper.make_node("Mul", [numbers, factors], [result], result),
    ]
