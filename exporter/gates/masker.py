"""Put gates into a graph, with onnx-graphsurgeon: what the table of operators asks for, node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.logger import G_LOGGER

from exporter.errors import ModelError
from exporter.graph import Graph
from exporter.normalise import serialize_with_data
from exporter.plan import AxisTake, Plan
from exporter.protos import graphs_of
from runtime.registry import enter

Mask = NDArray[np.bool_]
Cut = Mapping[int, AxisTake]

_WHERE_OPSET = 9
_AXES_INPUT_OPSET = 18


def surgeon_of(graph: Graph) -> gs.Graph:
    """A copy of a graph, with its weights inside, as onnx-graphsurgeon holds it.

    Raises:
        ModelError: an attribute holds bytes, which onnx-graphsurgeon takes for text.
    """
    model = onnx.load_model_from_string(serialize_with_data(graph.model, graph.folder))
    for value in (v for g in graphs_of(model.graph) for v in (*g.input, *g.output, *g.value_info)):
        if value.type.WhichOneof("value") is None:  # it tells no type at all from one that says nothing
            value.ClearField("type")
    if all(imported.domain for imported in model.opset_import):  # it knows the standard domain by its short name alone
        for imported in model.opset_import:
            imported.domain = imported.domain if imported.domain != "ai.onnx" else ""
    try:
        return gs.import_onnx(model)
    except UnicodeDecodeError as error:
        raise ModelError(
            f"an attribute of a node holds bytes that are no text, so no gate can be set: {error}."
        ) from error


class Masker:
    """The dense graph while gates are put in: one pass over its nodes in order."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.source = graph
        self.opset = graph.opsets.get("", 1)
        self.cut: dict[str, Cut] = dict(plan.hide)
        self.cut |= {name: take.axes for name, take in plan.take.items() if take.axes and take.clone_of is None}
        self.by_use: dict[tuple[str, int], Cut] = {use: t.axes for t in plan.take.values() for use in t.uses}
        self.dropped = {drop.node: drop.input for drop in plan.drop}
        self.behind: dict[str, gs.Tensor] = {}  # the tensor behind a gate
        self.nodes: list[gs.Node] = []
        self.after: list[gs.Node] = []
        self.count = 0

    def build(self) -> onnx.ModelProto:
        """The graph with all its gates."""
        with G_LOGGER.suppress():  # it warns of types it does not know, which are restored
            surgeon = surgeon_of(self.source)
            self.gate_graph(surgeon)
            masked: onnx.ModelProto = gs.export_onnx(surgeon, do_type_check=False)
        _restore_types(masked.graph, self.source.model.graph)
        # onnx-graphsurgeon 0.5 writes the newest, which ONNX Runtime may not know
        masked.ir_version = self.source.model.ir_version
        _share_constants(masked.graph)
        return masked

    def gate_graph(self, graph: gs.Graph) -> None:
        """Put gates into a graph and its subgraphs; an outer tensor is gated anew where a subgraph reads it."""
        outside, self.nodes = self.nodes, []
        for node in graph.nodes:
            for value in node.attrs.values():
                if isinstance(value, gs.Graph):
                    self.gate_graph(value)
            self.visit(node)
        graph.nodes, self.nodes = self.nodes, outside

    # -- one node -----------------------------------------------------------------------------------------------

    def visit(self, node: gs.Node) -> None:
        """Take over one node, with what its table entry puts around it; a branch that goes adds nothing."""
        branch = self.dropped.get(next((o.name for o in node.outputs if o.name), ""))
        if branch is not None:
            node.inputs[branch] = self.gated(node.inputs[branch], node.inputs[branch], np.zeros((), bool))
        gate = GATES.get(node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}::{node.op}")
        if gate is None or not self.reads_cut(node) or gate(self, node):
            self.nodes.append(node)
        self.nodes.extend(self.after)
        self.after.clear()

    def reads_cut(self, node: gs.Node) -> bool:
        """Say whether anything a node reads has hidden slots."""
        return any(self.cut_of(node, i) for i in range(len(node.inputs)))

    def cut_of(self, node: gs.Node, i: int) -> Cut:
        """Cut axes of an input."""
        if i >= len(node.inputs) or not node.inputs[i].name:
            return {}
        key = next((o.name for o in node.outputs if o.name), "")
        tensor = self.behind.get(node.inputs[i].name, node.inputs[i])
        return self.by_use.get((key, i), self.cut.get(tensor.name, {}))

    def rank(self, tensor: gs.Tensor) -> int:
        """Number of axes of a tensor of the dense graph, or of one that stands for it."""
        return len(self.source.inferred.dims[self.behind.get(tensor.name, tensor).name])

    def dtype(self, tensor: gs.Tensor) -> np.dtype[Any]:
        """Element type of a tensor of the dense graph, or of one that stands for it."""
        name = self.behind.get(tensor.name, tensor).name
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.source.inferred.dtype[name]))

    def hide(self, node: gs.Node, i: int, axes: Sequence[int], neutral: float | gs.Tensor = 0.0) -> float:
        """Put a gate on the cut ones of some axes of an input; returns the share of slots that stay."""
        cut = self.cut_of(node, i)
        if not cut:
            return 1.0
        tensor = self.behind.get(node.inputs[i].name, node.inputs[i])
        rank = self.rank(tensor)
        share = 1.0
        for axis in {a % rank for a in axes}:
            if axis in cut:
                node.inputs[i] = self.gated(node.inputs[i], tensor, mask_of(cut[axis], axis, rank), neutral)
                self.behind[node.inputs[i].name] = tensor
                share *= len(cut[axis].keep) / cut[axis].size
        return share

    def gated(
        self, value: gs.Tensor, like: gs.Tensor | np.dtype[Any], mask: Mask, neutral: float | gs.Tensor = 0.0
    ) -> gs.Tensor:
        """``value``, of the type of ``like``, where the mask is true, the neutral element elsewhere."""
        dtype = like if isinstance(like, np.dtype) else self.dtype(like)
        if dtype.kind == "b":  # ONNX Runtime has no Where for truth values
            hidden_is = bool(neutral)
            return self.op("Or" if hidden_is else "And", [value, self.constant(~mask if hidden_is else mask)])
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

    def cast(self, value: gs.Tensor, dtype: np.dtype[Any], wanted: np.dtype[Any]) -> gs.Tensor:
        """A tensor of one type in another."""
        if dtype == wanted:
            return value
        return self.op("Cast", [value], to=onnx.helper.np_dtype_to_tensor_dtype(wanted))

    def constant(self, values: Any) -> gs.Constant:
        """A new constant."""
        return gs.Constant(self.fresh(), np.asarray(values))

    def fresh(self) -> str:
        """A name nobody has."""
        self.count += 1
        return f"secateur.gate.{self.count}"

    def mean(self, value: gs.Tensor, axes: Sequence[int]) -> gs.Tensor:
        """Mean over some axes, which stay with size one."""
        if self.opset >= _AXES_INPUT_OPSET:
            return self.op("ReduceMean", [value, self.constant(np.array(axes, np.int64))], keepdims=1)
        return self.op("ReduceMean", [value], axes=list(axes), keepdims=1)

    def then(self, node: gs.Node, o: int, op: str, other: gs.Tensor) -> None:
        """Apply an operator to an output of a node, under the output's name."""
        inner = gs.Variable(self.fresh())
        output = node.outputs[o]
        node.outputs[o] = inner
        self.after.append(gs.Node(op, self.fresh(), {}, [inner, other], [output]))


def _restore_types(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Give what is no tensor its type back: onnx-graphsurgeon knows no dictionaries, and takes them for tensors."""
    for mine, theirs in zip(graphs_of(graph), graphs_of(source), strict=True):
        values = (*theirs.input, *theirs.output, *theirs.value_info)
        types = {v.name: v.type for v in values if v.type.WhichOneof("value") not in (None, "tensor_type")}
        for value in (*mine.input, *mine.output, *mine.value_info):
            if value.name in types:
                value.type.CopyFrom(types[value.name])


def _share_constants(graph: onnx.GraphProto) -> None:
    """Put the constants of all subgraphs into the main graph, once: graphsurgeon repeats them in each."""
    present = {t.name for t in graph.initializer}
    _, *inside = graphs_of(graph)
    for inner in inside:
        for tensor in inner.initializer:
            if tensor.name not in present:
                present.add(tensor.name)
                graph.initializer.append(tensor)
        del inner.initializer[:]


def mask_of(take: AxisTake, axis: int, rank: int) -> Mask:
    """Gate of an axis, true for the slots that stay, in a shape that broadcasts to a tensor of that rank."""
    mask = np.zeros(take.size, bool)
    mask[list(take.keep)] = True
    return mask.reshape([take.size if k == axis else 1 for k in range(axis, rank)])


Gate = Callable[[Masker, gs.Node], bool]
"""Puts gates on the inputs of a node, or what replaces it into the graph; returns whether the node itself stays."""

GATES: dict[str, Gate] = {}


def gate(*operators: str) -> Callable[[Gate], Gate]:
    """Register what one or more operators (``Conv``, ``com.microsoft::FusedConv``) must not see."""
    return enter(GATES, "gates", *operators)
