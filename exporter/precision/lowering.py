"""Which operands of a node may be half precision: the operator's own schema says so, no list of operators is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from exporter.protos import attributes_of, domain_of, subgraphs

LOW: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TYPES: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}
_BY_NATURE = {
    "BitCast": "its result are the bits of what it reads",
    "MeanVarianceNormalization": "it is defined by a formula with fp32 constants",
}
_SCATTERING = frozenset({"ScatterND", "ScatterElements"})
_RESULT_TYPE_IN_ATTRIBUTE = frozenset({"Cast", "ConstantOfShape"})
"""Operators whose result has the type an attribute names, and for which that attribute is changed."""


@dataclass(frozen=True)
class Operands:
    """Operands that become half precision together.

    Attributes:
        inputs, outputs: their positions.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]


def lowered_operands(node: NodeProto, opsets: Mapping[str, int], kinds: Mapping[str, int], low: int) -> Operands | str:
    """The fp32 operands of a node that may be of another type.

    A type variable of the schema stands for the same type wherever it occurs; an operand of a fixed type keeps it.

    Args:
        node: the node.
        opsets: operator-set version by domain.
        kinds: ``TensorProto.DataType`` by tensor name.
        low: FLOAT16 or BFLOAT16.

    Returns:
        Their positions, or why the node has to stay in fp32. No positions: it has nothing to do with fp32.
    """
    if subgraphs(node):
        return "it runs a subgraph, which takes and gives fp32"
    why = _by_nature(node, low)
    if why:
        return why
    domain = domain_of(node)
    if domain:
        return f"what the domain {domain} allows is not known"
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get("", 1), "")
    except onnx.defs.SchemaError:
        return "onnx does not know this operator"
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    if any(kinds_of and all("seq(" in kind for kind in kinds_of) for kinds_of in allowed.values()):
        return "the tensors of a sequence stay in fp32"
    wanted: dict[str, tuple[set[int], set[int]]] = {}
    for names, formals, side in ((node.input, schema.inputs, 0), (node.output, schema.outputs, 1)):
        for k, name in enumerate(names):
            if not name or not formals or kinds.get(name) != TensorProto.FLOAT:
                continue
            variable = formals[min(k, len(formals) - 1)].type_str
            if variable not in allowed:
                if side:
                    return f"its result is always {variable}"
                continue
            wanted.setdefault(variable, (set(), set()))[side].add(k)
    inputs: set[int] = set()
    outputs: set[int] = set()
    read = {formals.type_str for formals in schema.inputs}
    for variable, (ins, outs) in wanted.items():
        if _TYPES[low] not in allowed[variable]:
            since = _since(node.op_type, variable, opsets.get("", 1), low)
            return f"{node.op_type} is not defined for {_TYPES[low][7:-1]}{since}"
        if outs and variable not in read and node.op_type not in _RESULT_TYPE_IN_ATTRIBUTE:
            return "an attribute names the type of its result"
        inputs |= ins
        outputs |= outs
    return Operands(frozenset(inputs), frozenset(outputs))


def _by_nature(node: NodeProto, low: int) -> str:
    """Why an operator stays in fp32 although its schema allows another type; empty where nothing speaks against it."""
    if node.op_type in _SCATTERING and attributes_of(node).get("reduction", "none") != "none":
        return "ONNX Runtime adds up what is scattered in fp32 only"
    if node.op_type == "LogSoftmax" and low == TensorProto.FLOAT16:
        return "TensorRT takes the logarithm of a rounded Softmax, which is 0 where a class is unlikely"
    return _BY_NATURE.get(node.op_type, "")


def _since(operator: str, variable: str, opset: int, low: int) -> str:
    """From which operator set on a type is allowed, in brackets; empty where none does."""
    for version in range(opset + 1, onnx.defs.onnx_opset_version() + 1):
        schema = onnx.defs.get_schema(operator, version, "")
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        if _TYPES[low] in allowed.get(variable, ()):
            return f" before operator set {version}"
    return ""
