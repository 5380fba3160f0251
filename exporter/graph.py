"""A loaded model as the analysis sees it: nodes, constants, and what is known of every tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto

from exporter import tensors
from exporter.functions import Calls
from exporter.protos import reads
from exporter.shapes import Inferred, attributes_of
from exporter.tensors import Array
from runtime.feeds import Binding

_CACHED_BYTES = 1 << 16


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operator of the graph.

    Attributes:
        proto: the node in the model.
        op: operator, with its domain unless standard (``Conv``, ``com.microsoft::FusedConv``).
        inputs: tensor names, "" for an omitted one.
        outputs: tensor names, "" for an omitted one.
        attributes: attribute values by name.
        opset: version of the operator's domain.
        index: position in the graph.
        captured: names read by the node's subgraphs from outside.
    """

    proto: NodeProto
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    index: int
    captured: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the first output: unique in a graph, unlike the node's own name."""
        return next((o for o in self.outputs if o), "")

    @property
    def label(self) -> str:
        """How messages call the node."""
        return f"{self.op} '{self.proto.name or self.key}'"


@dataclass(frozen=True)
class Source:
    """Where a graph came from.

    Attributes:
        path: the file; None for a model made in memory or rewritten.
        size: bytes of the file, external data included; 0 for a rewritten graph.
        sha256: of the file.
        origin: the file it was read or cut from.
        external: whether that file kept weights outside.
    """

    path: Path | None
    size: int
    sha256: str
    origin: Path | None = None
    external: bool = False


@dataclass(eq=False)
class Graph:
    """A normalised model. Treat it as read-only: every operation on it returns something new.

    Attributes:
        model: the normalised model; weights included, external data still outside.
        folder: where external data lies.
        source: the file it came from.
        nodes: in topological order.
        constants: initializers and outputs of Constant nodes.
        inferred: shapes, types and values with every dynamic axis bound.
        static: the same with dynamic axes as symbols: what holds for every input size.
        binding: concrete input shapes, and the size taken for each dynamic axis.
        calls: local function calls that were inlined.
    """

    model: ModelProto
    folder: Path
    source: Source
    nodes: list[Node]
    constants: dict[str, TensorProto]
    inferred: Inferred
    static: Inferred
    binding: Binding
    calls: Calls = field(default_factory=Calls)

    def __post_init__(self) -> None:
        self.opsets = opsets_of(self.model)
        self.inputs = [v.name for v in self.model.graph.input if v.name not in self.constants]
        self.outputs = [v.name for v in self.model.graph.output]
        self.users: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for i, name in enumerate(node.inputs):
                if name:
                    self.users.setdefault(name, []).append((node, i))
            for name in node.captured:
                self.users.setdefault(name, []).append((node, -1))
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self._cache: dict[str, Array] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape under the binding, or None where it is not known."""
        dims = self.inferred.dims.get(name)
        if dims is None:
            return None
        numbers = tuple(d for d in dims if isinstance(d, int))
        return numbers if len(numbers) == len(dims) else None

    def array(self, name: str) -> Array:
        """Values of a constant.

        Raises:
            ModelError: its data are missing or damaged.
        """
        if name in self._cache:
            return self._cache[name]
        values = tensors.read(self.constants[name], self.folder)
        if values.nbytes <= _CACHED_BYTES:
            self._cache[name] = values
        return values

    @property
    def parameters(self) -> int:
        """Number of elements in all constants that nodes use, counted once each; shape arithmetic excluded."""
        return sum(math.prod(t.dims) for name, t in self.constants.items() if name in self.users and is_parameter(t))


def is_parameter(tensor: TensorProto) -> bool:
    """Say whether a constant counts as trained parameters: floating point, or quantized codes; not indices."""
    return tensor.data_type not in (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING) and not (
        tensor.data_type == TensorProto.INT32 and len(tensor.dims) == 0
    )


def opsets_of(model: ModelProto) -> dict[str, int]:
    """Operator-set version by domain; the standard domain is ""."""
    return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}


def op_of(proto: NodeProto) -> str:
    """Operator of a node, with its domain unless standard (``Conv``, ``com.microsoft::FusedConv``)."""
    return proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}::{proto.op_type}"


def make_nodes(protos: Sequence[NodeProto], opsets: dict[str, int]) -> list[Node]:
    """Wrap the nodes of a graph."""
    nodes = []
    for index, proto in enumerate(protos):
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        nodes.append(
            Node(
                proto=proto,
                op=op_of(proto),
                inputs=tuple(proto.input),
                outputs=tuple(proto.output),
                attributes=attributes_of(proto),
                opset=opsets.get(domain, 1),
                index=index,
                captured=tuple(sorted(reads(proto) - set(proto.input))),
            )
        )
    return nodes
