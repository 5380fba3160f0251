"""What onnx's inference says of one node: asked once for all nodes that are alike."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.shape_inference
from onnx import NodeProto, TypeProto

from exporter.contrib_shapes import SHAPED_LIKE, contrib_types
from exporter.inferred import Inferred
from exporter.protos import attributes_of
from exporter.symbols import Dim
from exporter.values import LIMIT

Result = tuple[int, tuple[Dim | None, ...]] | TypeProto
"""Element type and shape of an output, None for an axis of which nothing is known; or the type of what has no shape."""


def record(name: str, result: Result, found: Inferred) -> None:
    """Record what is known of an output; an axis of which nothing is known gets a symbol of its own."""
    if isinstance(result, TypeProto):
        found.set_type(name, result)
    else:
        dtype, dims = result
        found.set_tensor(name, dtype, [f"{name}:{axis}" if d is None else d for axis, d in enumerate(dims)])


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

    def results(self, node: NodeProto, found: Inferred) -> dict[int, Result]:
        """Types by number of the output; those of which nothing is known are left out."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in self.opsets:
            return {}
        schema = self._schema(SHAPED_LIKE.get(node.op_type, node.op_type), domain)
        if schema is None:
            return _numbered(node, contrib_types(node, found))
        question = (
            node.op_type,
            domain,
            tuple([a.SerializeToString(deterministic=True) for a in node.attribute]) if node.attribute else (),
            tuple([_described(n, found) for n in node.input]),
            tuple([bool(n) for n in node.output]),
        )
        answer = self._answers.get(question)
        if answer is None:
            answer = self._answers[question] = _numbered(node, self._ask(schema, node, found))
        return answer

    def _schema(self, op: str, domain: str) -> onnx.defs.OpSchema | None:
        if (op, domain) not in self._known:
            try:
                self._known[op, domain] = onnx.defs.get_schema(op, self.opsets[domain], domain)
            except onnx.defs.SchemaError:
                self._known[op, domain] = None
        return self._known[op, domain]

    def _ask(self, schema: onnx.defs.OpSchema, node: NodeProto, found: Inferred) -> Mapping[str, TypeProto]:
        types = {n: kind for n in node.input for kind in [found.type_of(n)] if kind is not None}
        small = {n for n in types if n in found.known and found.known[n].size <= LIMIT}
        data = {n: onnx.numpy_helper.from_array(found.known[n], n) for n in small}
        try:
            outputs = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self._imports)
        except Exception:  # onnx raises several kinds here; an uninferred node is recorded, and frozen later
            return {}
        if node.op_type == "SplitToSequence" and not attributes_of(node).get("keepdims", 1):
            # onnx keeps the split axis where sizes are given, as it is specified; ONNX Runtime drops it if they are one
            for described in outputs.values():
                described.sequence_type.elem_type.tensor_type.ClearField("shape")
        return dict(outputs)


def _numbered(node: NodeProto, types: Mapping[str, TypeProto]) -> dict[int, Result]:
    return {o: _plain(types[name]) for o, name in enumerate(node.output) if name in types}


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
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.tensor_type.shape.dim]
    return kind.tensor_type.elem_type, tuple(dims)
