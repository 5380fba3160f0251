"""What onnx's inference says of one node: asked once for all nodes that are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.shape_inference
from onnx import GraphProto, NodeProto, TypeProto

from exporter.contrib_shapes import SHAPED_LIKE, contrib_types
from exporter.inferred import Dims, Inferred
from exporter.protos import attributes_of, constant_of, domain_of, subgraphs
from exporter.values import LIMIT

Result = tuple[int, Dims] | TypeProto
"""Element type and shape of an output, "" for an axis of which nothing is known; or the type of what has no shape."""

_UNDEFINED = -1


@dataclass(eq=False, slots=True)
class View:
    """One node as inference reads it: taken out of the protobuf message once, for all passes.

    Attributes:
        proto: the node.
        op: its operator, without the domain.
        domain: its domain; "" for the standard one.
        inputs: names of tensors, "" for an omitted one.
        outputs: names of tensors, "" for an omitted one.
        attributes: by name, as Python values.
        graphs: the subgraphs it runs.
        kind: number of what onnx is asked, but for the inputs; None before it was asked.
    """

    proto: NodeProto
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    graphs: Sequence[GraphProto]
    kind: int | None = None

    @property
    def name(self) -> str:
        """The operator, with its domain unless standard, as ``op_of`` gives it."""
        return f"{self.domain}::{self.op}" if self.domain else self.op


def record(name: str, result: Result, found: Inferred) -> None:
    """Record what is known of an output; an axis of which nothing is known gets a symbol of its own."""
    if isinstance(result, TypeProto):
        found.set_type(name, result)
        return
    dtype, dims = result
    if "" in dims:
        dims = tuple([f"{name}:{axis}" if d == "" else d for axis, d in enumerate(dims)])
    found.set_tensor(name, dtype, dims)


class Schemas:
    """What onnx's own inference says of one node.

    It depends on the operator, the attributes, and the types and small values of the inputs alone. The layers of a
    network are alike, so it is asked once for all nodes that are: a question costs as much as all else a node needs.
    """

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opsets = opsets
        self._imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        self._known: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
        self._answers: dict[tuple[object, ...], dict[int, Result]] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._views: dict[int, tuple[GraphProto, list[View]]] = {}

    def views(self, graph: GraphProto) -> list[View]:
        """The nodes of a graph as they were when they were first looked at, those of its subgraphs in their ``graphs``.

        ``forget`` follows every change of nodes in place.
        """
        known = self._views.get(id(graph))
        if known is None:  # the entry holds the graph, so the number stays its own
            known = self._views[id(graph)] = graph, [_view(node) for node in graph.node]
        return known[1]

    def forget(self) -> None:
        """Look at all nodes anew: some were changed."""
        self._views.clear()

    def results(self, view: View, found: Inferred) -> dict[int, Result]:
        """Types by number of the output; those of which nothing is known are left out."""
        if view.domain not in self.opsets:
            return {}
        if view.kind is None:
            view.kind = self._kind(view)
        if view.kind == _UNDEFINED:
            return _numbered(view, contrib_types(view.proto, found))
        dims, dtype, known = found.dims, found.dtype, found.known
        question = (
            view.kind,
            *[(dtype[n], dims[n]) if n in dims and n not in known else _described(n, found) for n in view.inputs],
        )
        answer = self._answers.get(question)
        if answer is None:
            answer = self._answers[question] = _numbered(view, self._ask(view, found))
        return answer

    def _kind(self, view: View) -> int:
        """Number of an operator with its attributes and the outputs asked for."""
        if self._schema_of(view) is None:
            return _UNDEFINED
        attributes = tuple([a.SerializeToString(deterministic=True) for a in view.proto.attribute])
        kind = (view.op, view.domain, attributes, tuple(map(bool, view.outputs)), len(view.inputs))
        return self._kinds.setdefault(kind, len(self._kinds))

    def _schema_of(self, view: View) -> onnx.defs.OpSchema | None:
        op, domain = SHAPED_LIKE.get(view.op, view.op), view.domain
        if (op, domain) not in self._known:
            try:
                self._known[op, domain] = onnx.defs.get_schema(op, self.opsets[domain], domain)
            except onnx.defs.SchemaError:
                self._known[op, domain] = None
        return self._known[op, domain]

    def _ask(self, view: View, found: Inferred) -> Mapping[str, TypeProto]:
        node, schema = view.proto, self._schema_of(view)
        assert schema is not None
        if any(isinstance(d, int) and d < 0 for n in view.inputs for d in found.dims.get(n, ())):
            return {}  # onnx ends the process: a clamp between bounds the wrong way round
        types = {n: kind for n in view.inputs for kind in [found.type_of(n)] if kind is not None}
        small = {n for n in types if n in found.known and found.known[n].size <= LIMIT}
        data = {n: onnx.numpy_helper.from_array(found.known[n], n) for n in small}
        try:
            outputs = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self._imports)
        except Exception:  # onnx raises several kinds here; an uninferred node is recorded, and frozen later
            return {}
        if view.op == "SplitToSequence" and not view.attributes.get("keepdims", 1):
            # onnx keeps the split axis where sizes are given, as it is specified; ONNX Runtime drops it if they are one
            for described in outputs.values():
                described.sequence_type.elem_type.tensor_type.ClearField("shape")
        return dict(outputs)


def _view(node: NodeProto) -> View:
    op = node.op_type
    if op == "Constant":
        constant_of(node)  # puts its value into the one form that is read later
    attributes = attributes_of(node)
    graphs = subgraphs(node) if attributes else ()
    return View(node, op, domain_of(node), tuple(node.input), tuple(node.output), attributes, graphs)


def _numbered(view: View, types: Mapping[str, TypeProto]) -> dict[int, Result]:
    return {o: _plain(types[name]) for o, name in enumerate(view.outputs) if name in types}


def _described(name: str, found: Inferred) -> object:
    """What inference can see of an input."""
    dims = found.dims.get(name)
    if dims is None:
        kind = found.opaque.get(name)
        return kind if kind is None else kind.SerializeToString(deterministic=True)
    value = found.known.get(name)
    if value is None or value.size > LIMIT:
        return found.dtype[name], dims
    return found.dtype[name], dims, value.dtype.str, value.shape, value.tobytes()


def _plain(kind: TypeProto) -> Result:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return kind
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.tensor_type.shape.dim]
    return kind.tensor_type.elem_type, tuple(dims)
