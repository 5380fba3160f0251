"""Shapes of what ONNX Runtime's operators (``com.microsoft``) return: onnx ships no definitions of them.

Most compute the shape of a standard operator, their *twin* (FusedConv that of Conv), and onnx infers that one; the
others are written out. Also ``SimplifiedLayerNormalization``, which ONNX Runtime puts into the standard domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.shape_inference
from onnx import NodeProto, TensorProto, TypeProto

from exporter.inferred import Dims, Inferred
from exporter.protos import domain_of
from exporter.symbols import Dim

Result = tuple[int, Dims] | None
"""Element type and shape of an output; None where nothing is known."""

SHAPED_LIKE = {"GreaterOrEqual": "Greater", "LessOrEqual": "Less"}
"""Standard operators whose older versions lack inference of their own, and one that has it."""
_TWIN_OPSET = 18


@dataclass(frozen=True)
class Twin:
    """A standard operator with the same output shape.

    Attributes:
        op: the operator.
        inputs: which inputs it takes, in its order.
        kind: index of the input whose element type the output has.
        without: attributes it does not know.
    """

    op: str
    inputs: tuple[int, ...] = (0, 1)
    kind: int = 0
    without: tuple[str, ...] = ()


_ACTIVATION = ("activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma")

_TWINS: dict[str, Twin] = {
    "FusedConv": Twin("Conv", without=_ACTIVATION),
    "QLinearConv": Twin("Conv", (0, 3)),
    "FusedGemm": Twin("Gemm", without=_ACTIVATION),
    "MatMulIntegerToFloat": Twin("MatMul", kind=2),
    "DynamicQuantizeMatMul": Twin("MatMul"),
    "BiasGelu": Twin("Add"),
    "QLinearAdd": Twin("Add", (0, 3)),
    "QLinearMul": Twin("Add", (0, 3)),
    "QLinearWhere": Twin("Where", (0, 1, 4), kind=1),
    "QLinearAveragePool": Twin("AveragePool", (0,), without=("channels_last",)),
    "QLinearGlobalAveragePool": Twin("GlobalAveragePool", (0,)),
    "NhwcMaxPool": Twin("MaxPool", (0,)),
    "GatherND": Twin("GatherND"),
    "GridSample": Twin("GridSample"),
    "ExpandDims": Twin("Unsqueeze"),
    "Pad": Twin("Pad", (0, 1)),
}

_SAME = (
    "SimplifiedLayerNormalization",
    "FastGelu",
    "Gelu",
    "QuickGelu",
    "ScaledSiLU",
    "GatedAdd",
    "RotaryEmbedding",
    "Trilu",
    "QLinearLeakyRelu",
    "QLinearSigmoid",
    "QLinearSoftmax",
    "Inverse",
    "MoE",
    "QMoE",
)


@dataclass(frozen=True)
class Call:
    """What is known of one node.

    Attributes:
        node: the node.
        attributes: attribute values by name, strings as bytes.
        found: what is known of its inputs.
    """

    node: NodeProto
    attributes: Mapping[str, Any]
    found: Inferred

    def has(self, i: int) -> bool:
        """Say whether the shape of input ``i`` is known."""
        return i < len(self.node.input) and self.node.input[i] in self.found.dims

    def dims(self, i: int) -> Dims:
        """Shape of input ``i``; raises LookupError where it is not known."""
        return self.found.dims[self.node.input[i]]

    def dtype(self, i: int) -> int:
        """Element type of input ``i``; raises LookupError where it is not known."""
        return self.found.dtype[self.node.input[i]]

    def number(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))


def contrib_types(node: NodeProto, found: Inferred) -> dict[str, TypeProto]:
    """Types of a node's outputs by name, for operators onnx has no definition of.

    Args:
        node: the node.
        found: what is known of its inputs.

    Returns:
        Element type and shape of each output that is known; the others are left out.
    """
    call = Call(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}, found)
    twin = _TWINS.get(node.op_type)
    try:
        if domain_of(node) not in ("", "com.microsoft"):
            return {}
        if node.op_type in _OWN:
            results = _OWN[node.op_type](call)
        elif node.op_type in _SAME:
            results = [(call.dtype(0), call.dims(0))]
        elif twin is not None:
            results = [_of_twin(call, twin)]
        else:
            return {}
    except (LookupError, TypeError, ValueError, ArithmeticError):  # not used as its definition says
        return {}
    return {
        name: onnx.helper.make_tensor_type_proto(result[0], list(result[1]))
        for name, result in zip(node.output, results, strict=False)
        if name and result is not None
    }


def _of_twin(call: Call, twin: Twin) -> Result:
    """Shape as onnx infers it for the twin; channels-last operators are turned around it."""
    node = onnx.helper.make_node(twin.op, [call.node.input[i] for i in twin.inputs], ["y"])
    last = call.number("channels_last") or call.node.op_type.startswith("Nhwc")
    without = (*twin.without, "channels_last")
    node.attribute.extend(a for a in call.node.attribute if a.name not in without)
    types, data = {}, {}
    for place, i in enumerate(twin.inputs):
        name, dims = call.node.input[i], call.dims(i)
        if last and (place == 0):
            dims = (dims[0], dims[-1], *dims[1:-1])
        integer = call.dtype(i) in (TensorProto.INT64, TensorProto.BOOL)
        types[name] = onnx.helper.make_tensor_type_proto(call.dtype(i) if integer else TensorProto.FLOAT, list(dims))
        if name in call.found.known and integer:
            data[name] = onnx.numpy_helper.from_array(call.found.known[name], name)
    schema = onnx.defs.get_schema(twin.op, _TWIN_OPSET, "")
    imports = [onnx.helper.make_opsetid("", _TWIN_OPSET)]
    try:
        made = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
    except Exception:  # onnx raises several kinds here; an uninferred node is recorded, and frozen later
        return None
    tensor = made["y"].tensor_type
    if not tensor.HasField("shape"):
        return None
    shape: list[Dim] = [
        d.dim_value if d.HasField("dim_value") else d.dim_param or f"{call.node.output[0]}:{k}"
        for k, d in enumerate(tensor.shape.dim)
    ]
    if last:
        shape = [shape[0], *shape[2:], shape[1]]
    return call.dtype(twin.kind), tuple(shape)


def _concat(call: Call) -> Sequence[Result]:
    """QLinearConcat: scale and zero point of the result, then three inputs per operand."""
    operands = [call.dims(i) for i in range(2, len(call.node.input), 3)]
    at = call.number("axis", 1) % len(operands[0])
    total = sum(d for o in operands if isinstance(d := o[at], int))
    fixed = all(isinstance(o[at], int) for o in operands)
    size: Dim = total if fixed else f"{call.node.output[0]}:{at}"
    return [(call.dtype(1), (*operands[0][:at], size, *operands[0][at + 1 :]))]


def _matmul(call: Call) -> Sequence[Result]:
    """FusedMatMul: transA and transB swap the last two axes; transBatch moves the first behind the other batch axes."""
    operands = []
    for i, side in enumerate("AB"):
        dims = list(call.dims(i))
        if call.number(f"transBatch{side}"):
            dims = [*dims[1:-1], dims[0], dims[-1]]
        if call.number(f"trans{side}") and len(dims) > 1:
            dims[-2:] = dims[:-3:-1]
        operands.append(dims)
    a, b = operands
    rank = max(len(a), len(b)) - 2
    pairs = zip([1] * (rank - len(a) + 2) + a[:-2], [1] * (rank - len(b) + 2) + b[:-2], strict=True)
    return [(call.dtype(0), (*(y if x == 1 else x for x, y in pairs), a[-2], b[-1]))]


def _qgemm(call: Call) -> Sequence[Result]:
    """Codes where the scale of the result is given, numbers where it is not."""
    found = _of_twin(call, Twin("Gemm", (0, 3)))
    return [(call.dtype(0 if call.has(7) else 1), found[1]) if found is not None else None]


def _matmul_nbits(call: Call) -> Sequence[Result]:
    return [(call.dtype(0), (*call.dims(0)[:-1], call.number("N")))]


def _quantize(call: Call) -> Sequence[Result]:
    return [(call.dtype(2) if call.has(2) else TensorProto.UINT8, call.dims(0))]


def _dequantize(call: Call) -> Sequence[Result]:
    return [(call.dtype(1), call.dims(0))]


def _skip(call: Call) -> Sequence[Result]:
    """Normalised sum, its mean and deviation (training only), the sum."""
    whole = call.dtype(0), call.dims(0)
    return [whole, None, None, whole]


def _embeddings(call: Call) -> Sequence[Result]:
    """EmbedLayerNormalization and its quantized form: tables of width D, one row per token."""
    dims = (*call.dims(0), call.dims(2)[1])
    kind = call.dtype(5) if call.node.op_type.startswith("Embed") else call.dtype(8)
    return [(kind, dims), (TensorProto.INT32, dims[:1]), (kind, dims)]


def _attention(call: Call) -> Sequence[Result]:
    """Attention and QAttention: one matrix for queries, keys and values, the cache stacked to [2, B, N, T, H]."""
    batch, length, _ = call.dims(0)
    whole, heads = call.dims(1)[1], call.number("num_heads")
    sizes = call.attributes.get("qkv_hidden_sizes")
    if not isinstance(whole, int):
        raise ValueError("a weight of unknown size")
    width = int(sizes[2]) if sizes else whole // 3
    quantized = call.node.op_type == "QAttention"
    kind, past = call.dtype(3 if quantized else 0), 8 if quantized else 4
    results: list[Result] = [(kind, (batch, length, width))]
    total = length
    if call.has(past):
        total = _sum(call.dims(past)[3], length, f"{call.node.output[0]}.total")
        if call.number("past_present_share_buffer"):
            total = call.dims(past)[3]
    results.append((kind, (2, batch, heads, total, width // heads)))
    return results


def _sum(a: Dim, b: Dim, symbol: str) -> Dim:
    return a + b if isinstance(a, int) and isinstance(b, int) else symbol


def _multi_head(call: Call) -> Sequence[Result]:
    """Query [B, S, D] or packed [B, S, N, 3, H]; key and value [B, T, D], packed [B, T, N, 2, H] or [B, N, T, H]."""
    query, heads, kind = call.dims(0), call.number("num_heads"), call.dtype(0)
    if len(query) == 5:
        length, key, value = query[1], query[4], query[4]
    elif call.has(2):
        key, value = (_head_size(call.dims(i), heads) for i in (1, 2))
        length = call.dims(1)[1] if len(call.dims(1)) == 3 else call.dims(1)[2]
    else:
        length, key, value = call.dims(1)[1], call.dims(1)[4], call.dims(1)[4]
    if not isinstance(value, int):
        raise ValueError("a head of unknown size")
    if call.has(6):
        shared = call.has(8)
        length = call.dims(6)[2] if shared else _sum(call.dims(6)[2], length, f"{call.node.output[0]}.total")
    results: list[Result] = [(kind, (query[0], query[1], heads * value))]
    return [*results, (kind, (query[0], heads, length, key)), (kind, (query[0], heads, length, value))]


def _head_size(dims: Dims, heads: int) -> Dim:
    last = dims[-1]
    return last // heads if len(dims) == 3 and isinstance(last, int) else last


def _grouped_query(call: Call) -> Sequence[Result]:
    """Query [B, S, N H], or packed with keys and values [B, S, (N + 2 G) H]; cache [B, G, T, H]."""
    batch, length, width = call.dims(0)
    heads, groups = call.number("num_heads"), call.number("kv_num_heads")
    if not isinstance(width, int):
        raise ValueError("a query of unknown size")
    packed = not call.has(1)
    size = width // (heads + 2 * groups) if packed else width // heads
    total: Dim = length
    if call.has(3):
        known = call.found.known.get(call.node.input[6])
        past = call.dims(3)[2]
        longest = max(past, int(known.ravel()[0])) if known is not None and isinstance(past, int) else None
        total = longest if longest is not None else f"{call.node.output[0]}.total"
    cache = (call.dtype(3) if call.has(3) else call.dtype(0), (batch, groups, total, size))
    return [(call.dtype(0), (batch, length, heads * size)), cache, cache]


def _gather_blocks(call: Call) -> Sequence[Result]:
    """Rows of a table of blocks; 8-bit data hold 8 / bits numbers per byte along the last axis."""
    dims, at = list(call.dims(0)), call.number("gather_axis")
    at %= len(dims)
    packed = call.dtype(0) == TensorProto.UINT8
    last = dims[-1]
    if packed and isinstance(last, int):
        dims[-1] = last * (8 // call.number("bits", 4))
    return [(call.dtype(2), (*dims[:at], *call.dims(1), *dims[at + 1 :]))]


_OWN: dict[str, Callable[[Call], Sequence[Result]]] = {
    "Attention": _attention,
    "DequantizeLinear": _dequantize,
    "EmbedLayerNormalization": _embeddings,
    "FusedMatMul": _matmul,
    "GatherBlockQuantized": _gather_blocks,
    "GroupQueryAttention": _grouped_query,
    "MatMulNBits": _matmul_nbits,
    "MultiHeadAttention": _multi_head,
    "QAttention": _attention,
    "QEmbedLayerNormalization": _embeddings,
    "QGemm": _qgemm,
    "QLinearConcat": _concat,
    "QuantizeLinear": _quantize,
    "SkipLayerNormalization": _skip,
    "SkipSimplifiedLayerNormalization": _skip,
    "TransposeMatMul": _matmul,
}
