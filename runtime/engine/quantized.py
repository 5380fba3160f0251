"""Which layers of a quantized model are computed in float after all, and why: TensorRT never says."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

_CONTRACTIONS = {"Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1)}
_PASSING = frozenset(
    {"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat"}
)
_PASSING |= {"Relu", "MaxPool", "Pad", "Cast", "DepthToSpace", "SpaceToDepth"}
"""What lies between a DequantizeLinear and its layer without keeping them from being computed together."""


@dataclass(frozen=True)
class Fallback:
    """A layer computed in float in a quantized model.

    Attributes:
        node, operator: of the file.
        reason: which of its operands is not quantized.
    """

    node: str
    operator: str
    reason: str


def quantized_types(model: onnx.ModelProto) -> frozenset[str]:
    """Types that activations or weights are quantized to, by onnx's names in lower case: int8, float8e4m3fn."""
    kinds = _kinds(model)
    found = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in kinds:
            found.add(kinds[node.input[0]])
        elif node.op_type == "QuantizeLinear":
            given = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
            zero = kinds.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            found.add(_name(given) if given else zero or "uint8")
    return frozenset(found)


def float_layers(model: onnx.ModelProto) -> list[Fallback]:
    """Convolutions and matrix products that an operand keeps in float; empty for a model that is not quantized.

    Args:
        model: the ONNX file, with QuantizeLinear and DequantizeLinear where numbers are quantized.
    """
    makers = {name: node for node in model.graph.node for name in node.output if name}
    if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return []
    constants = {t.name for t in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    found = []
    for node in model.graph.node:
        operands = _CONTRACTIONS.get(node.op_type, ())
        lacking = [node.input[k] for k in operands if not _is_quantized(node.input[k], makers)]
        if not lacking:
            continue
        what = " and ".join(f"{'weight' if name in constants else 'input'} '{name}'" for name in lacking)
        found.append(
            Fallback(
                node.name or node.output[0],
                node.op_type,
                f"its {what} {'are' if len(lacking) > 1 else 'is'} not quantized",
            )
        )
    return found


def _is_quantized(name: str, makers: dict[str, onnx.NodeProto]) -> bool:
    for _ in range(len(makers) + 1):
        maker = makers.get(name)
        if maker is None:
            return False
        if maker.op_type == "DequantizeLinear":
            return True
        if maker.op_type not in _PASSING:
            return False
        name = maker.input[0]
    return False


def _kinds(model: onnx.ModelProto) -> dict[str, str]:
    kinds = {t.name: _name(t.data_type) for t in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info):
        kinds[value.name] = _name(value.type.tensor_type.elem_type)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            kinds[node.output[0]] = _name(node.attribute[0].t.data_type)
    return kinds


def _name(number: int) -> str:
    return str(onnx.TensorProto.DataType.Name(number)).lower()
