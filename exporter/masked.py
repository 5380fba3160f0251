"""The masked original: the dense graph with gates that hide the removed units from every node that would read them.

Built from the plan alone, with another library (onnx-graphsurgeon) than the rewrite, so that a mistake in one is not
repeated in the other. It knows nothing of the rules either: the table here says, for every operator that sums or
normalises over an axis, what a hidden slot must look like to it.

    sums (Conv, Gemm, MatMul, Einsum, ReduceSum, ...)   hidden slots read as zero, or the neutral element
    means                                               the same, and divided by the number of slots that stay
    LayerNormalization and the like                     statistics over the slots that stay

Nothing else changes: values in hidden slots are whatever they are, because nobody reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from exporter.graph import Graph
from exporter.normalise import serialize_with_data
from exporter.plan import AxisTake, Plan

Mask = NDArray[np.bool_]
Cut = Mapping[int, AxisTake]

_SUMMED: dict[str, float] = {
    "ReduceSum": 0.0,
    "ReduceMean": 0.0,
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceSumSquare": 0.0,
    "ReduceLogSum": 0.0,
    "ReduceLogSumExp": -math.inf,
    "ReduceMax": -math.inf,
    "ReduceMin": math.inf,
    "ReduceProd": 1.0,
}
_WHERE_OPSET = 9
_AXES_INPUT_OPSET = 18
_AFFINE_PER_CHANNEL_OPSET = 21


def masked_original(graph: Graph, plan: Plan) -> onnx.ModelProto:
    """Build the masked original.

    Args:
        graph: the dense graph.
        plan: which slots of which tensors are hidden.

    Returns:
        A model with the inputs and outputs of the dense one.
    """
    return _Masker(graph, plan).build()


class _Masker:
    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.source = graph
        self.opset = graph.opsets.get("", 1)
        self.cut: dict[str, Cut] = dict(plan.hide)
        self.cut |= {name: take.axes for name, take in plan.take.items() if take.axes and take.clone_of is None}
        self.by_use: dict[tuple[str, int], Cut] = {use: t.axes for t in plan.take.values() for use in t.uses}
        self.behind: dict[str, gs.Tensor] = {}  # the tensor behind a gate
        self.nodes: list[gs.Node] = []
        self.after: list[gs.Node] = []
        self.count = 0

    def build(self) -> onnx.ModelProto:
        model = onnx.load_model_from_string(serialize_with_data(self.source.model, self.source.folder))
        surgeon = gs.import_onnx(model)
        for node in surgeon.nodes:
            self.visit(node)
        surgeon.nodes = self.nodes
        masked: onnx.ModelProto = gs.export_onnx(surgeon, do_type_check=False)
        return masked

    # -- one node -----------------------------------------------------------------------------------------------

    def visit(self, node: gs.Node) -> None:
        gate = _GATES.get(node.op) if node.domain in (None, "", "ai.onnx") or node.op in _CONTRIB else None
        if gate is None or gate(self, node):
            self.nodes.append(node)
        self.nodes.extend(self.after)
        self.after.clear()

    def cut_of(self, node: gs.Node, i: int) -> Cut:
        """Cut axes of an input."""
        if i >= len(node.inputs) or not node.inputs[i].name:
            return {}
        key = next((o.name for o in node.outputs if o.name), "")
        tensor = self.behind.get(node.inputs[i].name, node.inputs[i])
        return self.by_use.get((key, i), self.cut.get(tensor.name, {}))

    def rank(self, tensor: gs.Tensor) -> int:
        return len(self.source.inferred.dims[tensor.name])

    def dtype(self, tensor: gs.Tensor) -> np.dtype[Any]:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.source.inferred.dtype[tensor.name]))

    def hide(self, node: gs.Node, i: int, axes: Sequence[int], neutral: float | gs.Tensor = 0.0) -> float:
        """Put a gate on the cut ones of some axes of an input; returns the share of slots that stay."""
        cut = self.cut_of(node, i)
        tensor = self.behind.get(node.inputs[i].name, node.inputs[i])
        if not cut:
            return 1.0
        rank = self.rank(tensor)
        share = 1.0
        for axis in {a % rank for a in axes}:
            if axis in cut:
                node.inputs[i] = self.gated(node.inputs[i], tensor, mask_of(cut[axis], axis, rank), neutral)
                self.behind[node.inputs[i].name] = tensor
                share *= len(cut[axis].keep) / cut[axis].size
        return share

    def gated(self, value: gs.Tensor, like: gs.Tensor, mask: Mask, neutral: float | gs.Tensor = 0.0) -> gs.Tensor:
        """``value`` where the mask is true, the neutral element elsewhere."""
        dtype = self.dtype(like)
        if self.opset < _WHERE_OPSET:
            kept = self.op("Mul", [value, self.constant(mask.astype(dtype))])
            if neutral == 0.0:
                return kept
            fill = np.where(mask, 0, np.clip(float(neutral), -3e38, 3e38)).astype(dtype)
            return self.op("Add", [kept, self.constant(fill)])
        other = neutral if isinstance(neutral, gs.Tensor) else self.constant(np.array(neutral, dtype))
        return self.op("Where", [self.constant(mask), value, other])

    def op(self, op: str, inputs: list[gs.Tensor], **attributes: Any) -> gs.Tensor:
        """Append a node and return its output."""
        output = gs.Variable(self.fresh())
        self.nodes.append(gs.Node(op, self.fresh(), attributes, inputs, [output]))
        return output

    def constant(self, values: Any) -> gs.Constant:
        return gs.Constant(self.fresh(), np.asarray(values))

    def fresh(self) -> str:
        self.count += 1
        return f"secateur.gate.{self.count}"

    def mean(self, value: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        if self.opset >= _AXES_INPUT_OPSET:
            return self.op("ReduceMean", [value, self.constant(np.array(axes, np.int64))], keepdims=1)
        return self.op("ReduceMean", [value], axes=list(axes), keepdims=1)

    def then(self, node: gs.Node, o: int, op: str, other: gs.Tensor) -> None:
        """Apply an operator to an output of a node, under the output's name."""
        inner = gs.Variable(self.fresh())
        output = node.outputs[o]
        node.outputs[o] = inner
        self.after.append(gs.Node(op, self.fresh(), {}, [inner, other], [output]))


def mask_of(take: AxisTake, axis: int, rank: int) -> Mask:
    """Gate of an axis, true for the slots that stay, in a shape that broadcasts to a tensor of that rank."""
    mask = np.zeros(take.size, bool)
    mask[list(take.keep)] = True
    return mask.reshape([take.size if k == axis else 1 for k in range(axis, rank)])


# -- the table: each returns whether the node itself stays ----------------------------------------------------------


def _channels(masker: _Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [1])
    return True


def _conv_integer(masker: _Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [1], node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else 0.0)
    return True


def _gemm(masker: _Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [0 if node.attrs.get("transA", 0) else 1])
    masker.hide(node, 1, [1 if node.attrs.get("transB", 0) else 0])
    return True


def _matmul(masker: _Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1])
    masker.hide(node, 1, [-2 if masker.rank(node.inputs[1]) > 1 else -1])
    return True


def _matmul_integer(masker: _Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [-1], node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else 0.0)
    return True


def _einsum(masker: _Masker, node: gs.Node) -> bool:
    left, _, right = node.attrs["equation"].replace(" ", "").partition("->")
    for i, term in enumerate(left.split(",")):
        before, dots, after = term.partition("...")
        for k, letter in enumerate(before):
            if letter not in right:
                masker.hide(node, i, [k])
        for k, letter in enumerate(after if dots else ""):
            if letter not in right:
                masker.hide(node, i, [k - len(after)])
    return True


def _axes(node: gs.Node, default: Sequence[int]) -> list[int]:
    if "axes" in node.attrs:
        return list(node.attrs["axes"])
    if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        return [int(a) for a in node.inputs[1].values]
    if len(node.inputs) > 1 and node.inputs[1].inputs and node.inputs[1].inputs[0].op == "Constant":
        return [int(a) for a in node.inputs[1].inputs[0].attrs["value"].values]
    return list(default)


def _reduce(masker: _Masker, node: gs.Node) -> bool:
    axes = _axes(node, range(masker.rank(node.inputs[0])))
    share = masker.hide(node, 0, axes, _SUMMED[node.op])
    if node.op == "ReduceMean" and share < 1:
        dtype = masker.dtype(node.outputs[0])
        masker.then(node, 0, "Mul", masker.constant(np.array(1 / share, dtype)))
    return True


def _cumsum(masker: _Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, range(masker.rank(node.inputs[0])))
    return True


def _lp_norm(masker: _Masker, node: gs.Node) -> bool:
    masker.hide(node, 0, [int(node.attrs.get("axis", -1))])
    return True


def _normalise(
    masker: _Masker, node: gs.Node, axes: Sequence[int], affine: Sequence[gs.Tensor], centred: bool = True
) -> bool:
    """Replace a normalisation over cut axes by one over the slots that stay."""
    x = node.inputs[0]
    rank = masker.rank(x)
    cut = {a: t for a, t in masker.cut_of(node, 0).items() if a in {k % rank for k in axes}}
    if not cut:
        return True
    share = math.prod(len(t.keep) / t.size for t in cut.values())
    dtype = masker.dtype(x)
    rescale = masker.constant(np.array(1 / share, dtype))

    def hidden(value: gs.Tensor) -> gs.Tensor:
        for axis, take in cut.items():
            value = masker.gated(value, x, mask_of(take, axis, rank))
        return value

    value = hidden(x)
    if centred:
        mean = masker.op("Mul", [masker.mean(value, axes), rescale])
        value = hidden(masker.op("Sub", [x, mean]))
    square = masker.op("Mul", [value, value])
    variance = masker.op("Mul", [masker.mean(square, axes), rescale])
    epsilon = masker.constant(np.array(node.attrs.get("epsilon", 1e-5), dtype))
    deviation = masker.op("Sqrt", [masker.op("Add", [variance, epsilon])])
    value = masker.op("Div", [value, deviation])
    for op, tensor in zip(("Mul", "Add"), affine, strict=False):
        value = masker.op(op, [value, tensor])
    results = [value]
    if centred:
        results += [mean, masker.op("Reciprocal", [deviation])]
    for result, output in zip(results, node.outputs, strict=False):
        if output.name:
            masker.nodes.append(gs.Node("Identity", masker.fresh(), {}, [result], [output]))
    return False


def _layer_norm(masker: _Masker, node: gs.Node) -> bool:
    rank = masker.rank(node.inputs[0])
    axes = list(range(int(node.attrs.get("axis", -1)) % rank, rank))
    affine = [t for t in node.inputs[1:3] if t.name]
    return _normalise(masker, node, axes, affine, node.op == "LayerNormalization")


def _instance_norm(masker: _Masker, node: gs.Node) -> bool:
    rank = masker.rank(node.inputs[0])
    if not any(a >= 2 for a in masker.cut_of(node, 0)):
        return True
    to = masker.constant(np.array([-1] + [1] * (rank - 2), np.int64))
    affine = [masker.op("Reshape", [t, to]) for t in node.inputs[1:3]]
    return _normalise(masker, node, list(range(2, rank)), affine)


def _mean_variance(masker: _Masker, node: gs.Node) -> bool:
    node.attrs["epsilon"] = 1e-9
    stays = _normalise(masker, node, list(node.attrs.get("axes", [0, 2, 3])), [])
    del node.attrs["epsilon"]
    return stays


def _group_norm(masker: _Masker, node: gs.Node) -> bool:
    """Statistics of each group over its slots that stay; a group that is hidden whole keeps its own."""
    cut = masker.cut_of(node, 0).get(1)
    if cut is None:
        return True
    x, scale, bias = node.inputs[:3]
    groups = int(node.attrs["num_groups"])
    inner = cut.size // groups
    mask = np.isin(np.arange(cut.size), cut.keep).reshape(groups, inner)
    mask[~mask.any(1)] = True
    dtype = masker.dtype(x)
    rescale = masker.constant((inner / mask.sum(1)).astype(dtype).reshape(1, groups, 1, 1))
    gate = mask.reshape(groups, inner, 1)
    apart = masker.op("Reshape", [x, masker.constant(np.array([0, groups, inner, -1], np.int64))])
    mean = masker.op("Mul", [masker.mean(masker.gated(apart, x, gate), [2, 3]), rescale])
    value = masker.gated(masker.op("Sub", [apart, mean]), x, gate)
    square = masker.op("Mul", [value, value])
    variance = masker.op("Mul", [masker.mean(square, [2, 3]), rescale])
    epsilon = masker.constant(np.array(node.attrs.get("epsilon", 1e-5), dtype))
    value = masker.op("Div", [value, masker.op("Sqrt", [masker.op("Add", [variance, epsilon])])])
    per_channel = masker.opset >= _AFFINE_PER_CHANNEL_OPSET
    to = masker.constant(np.array([groups, inner if per_channel else 1, 1], np.int64))
    value = masker.op("Mul", [value, masker.op("Reshape", [scale, to])])
    value = masker.op("Add", [value, masker.op("Reshape", [bias, to])])
    shape = masker.op("Shape", [x])
    masker.nodes.append(gs.Node("Reshape", masker.fresh(), {}, [value, shape], [node.outputs[0]]))
    return False


Gate = Callable[[_Masker, gs.Node], bool]

_CONTRIB = frozenset({"FusedConv", "SimplifiedLayerNormalization"})

_GATES: dict[str, Gate] = {
    "Conv": _channels,
    "FusedConv": _channels,
    "ConvTranspose": _channels,
    "ConvInteger": _conv_integer,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "Einsum": _einsum,
    **dict.fromkeys(_SUMMED, _reduce),
    "CumSum": _cumsum,
    "DynamicQuantizeLinear": _cumsum,
    "LpNormalization": _lp_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "MeanVarianceNormalization": _mean_variance,
    "GroupNormalization": _group_norm,
}
