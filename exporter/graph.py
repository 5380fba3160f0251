"""A loaded model as the analysis sees it: nodes, constants, and what is known of every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from exporter import tensors
from exporter.errors import UsageError
from exporter.functions import Calls
from exporter.inferred import Inferred, are_numbers
from exporter.node_shapes import Schemas
from exporter.plan import Drop
from exporter.protos import domain_of, reads
from exporter.tensors import Array
from runtime.backends import TensorSpec
from runtime.batches import samples_in, stepped
from runtime.feeds import Binding

_CACHED_BYTES = 1 << 16
_LONGEST_CHAIN = 8
_LARGEST_MASK = 1 << 26
_HIDES = -1000.0
_WEIGHTED = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "RMSNormalization",
    }
)
"""Operators whose inputs but the first are weights."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
RETURNED = -1
"""Stands for an input index where a node hands on what its subgraph returns."""


@dataclass(frozen=True, eq=False, slots=True)
class Body:
    """A subgraph that a node runs: a branch of an If, the body of a Loop or Scan.

    Attributes:
        name: the attribute that holds it; with ``[]`` for one of several.
        inputs: names the node gives values to.
        outputs: names of what it returns.
        nodes: its own nodes, in topological order; those of subgraphs inside are in their ``bodies``.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    def everything(self) -> Iterator[Node]:
        """All nodes, those of subgraphs inside included."""
        for node in self.nodes:
            for body in node.bodies:
                yield from body.everything()
            yield node


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
        index: position in the graph's list of nodes.
        depth: number of subgraphs it lies in; 0 in the main graph.
        bodies: the subgraphs it runs.
    """

    proto: NodeProto
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    index: int
    depth: int = 0
    bodies: tuple[Body, ...] = ()

    @property
    def key(self) -> str:
        """Name of the first output: unique in a graph, unlike the node's own name."""
        for name in self.outputs:
            if name:
                return name
        return ""

    @property
    def label(self) -> str:
        """How messages call the node."""
        return f"{self.op} '{self.proto.name or self.key}'"


IR_WITH_FREE_INITIALIZERS = 4
"""The first IR version in which constants need not be declared as inputs."""


@dataclass(frozen=True)
class Source:
    """Where a graph came from.

    Attributes:
        path: the file; None for a model made in memory or rewritten.
        size: bytes of the file, external data included; 0 for a rewritten graph.
        sha256: of the file.
        origin: the file it was read or cut from.
        external: whether that file kept weights outside.
        holds: whatever keeps the temporary files that weights lie in.
    """

    path: Path | None
    size: int
    sha256: str
    origin: Path | None = None
    external: bool = False
    holds: tuple[object, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Before:
    """What a graph was before residual branches were taken out of it.

    Attributes:
        graph: the whole graph.
        drops: the branches, in the order of the graph.
    """

    graph: Graph
    drops: tuple[Drop, ...]


@dataclass(eq=False)
class Graph:
    """A normalised model. Treat it as read-only: every operation on it returns something new.

    Attributes:
        model: the normalised model; weights included, external data still outside.
        folder: where external data lies.
        source: the file it came from.
        nodes: those of subgraphs included, in topological order: what a subgraph holds comes before the node that runs
            it. Names are unique in the whole model.
        constants: initializers and outputs of Constant nodes.
        inferred: shapes, types and values with every dynamic axis bound.
        static: the same with dynamic axes as symbols: what holds for every input size.
        binding: concrete input shapes, and the size taken for each dynamic axis.
        calls: local function calls that were inlined.
        before: the whole graph, where residual branches were taken out of it; plans are made for that one.
        unmeasured: why no run told the shapes that inference does not know; empty where nothing kept it from running.
        shared: constants that nodes read which were left out.
        given: names of the inputs of subgraphs.
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
    before: Before | None = None
    unmeasured: str = ""
    shared: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.opsets = opsets_of(self.model)
        self.inputs = [v.name for v in self.model.graph.input if v.name not in self.constants]
        self.outputs = [v.name for v in self.model.graph.output]
        self.users: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for i, name in enumerate(node.inputs):
                if name:
                    self.users.setdefault(name, []).append((node, i))
            for body in node.bodies:
                for name in body.outputs:
                    self.users.setdefault(name, []).append((node, RETURNED))
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.given = {name for node in self.nodes for body in node.bodies for name in body.inputs}
        self._cache: dict[str, Array] = {}
        self._files: dict[str, tensors.Found] = {}
        self._trains: dict[str, bool] = {}
        self._from_constants: dict[str, bool] = {}
        self._shapes: dict[str, tuple[int, ...] | None] = {}

    def fixed_length(self, name: str) -> int | None:
        """Length of a list that has the same for all inputs (of sizes, mostly), else None.

        ONNX Runtime takes a list that is fed for an empty one where a Resize or a Reshape is made of it, unless told.
        """
        match self.static.dims.get(name):
            case (int(length),):
                return length
        return None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape under the binding, or None where it is not known."""
        try:
            return self._shapes[name]
        except KeyError:
            dims = self.inferred.dims.get(name)
            self._shapes[name] = cast(tuple[int, ...], dims) if dims is not None and are_numbers(dims) else None
        return self._shapes[name]

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

    def from_constants(self, name: str) -> bool:
        """Say whether a tensor is computed from constants alone (a weight behind a Transpose or a Cast)."""
        known = self._from_constants.get(name)
        if known is None:
            known = self._from_constants[name] = self._ends_in_constants(name)
        return known

    def _ends_in_constants(self, name: str) -> bool:
        for _ in range(_LONGEST_CHAIN):
            if name in self.constants:
                return True
            producer = self.producer.get(name)
            if producer is None or not producer.inputs or producer.bodies:
                return False
            if any(n and n not in self.constants for n in producer.inputs[1:]):
                return False
            name = producer.inputs[0]
        return False

    @cached_property
    def batch(self) -> int:
        """Samples in a run at the sizes of the binding."""
        inputs = [TensorSpec(n, None, self.static.dims[n]) for n in self.binding.shapes if n in self.static.dims]
        outputs = [self.static.dims.get(name, ()) for name in self.outputs]
        return samples_in(inputs, self.binding.shapes, outputs, stepped(self.model.graph, inputs))

    @property
    def parameters(self) -> int:
        """Number of elements in all constants that count as parameters, each counted once."""
        return sum(math.prod(self.constants[name].dims) for name in self.trained)

    @cached_property
    def trained(self) -> frozenset[str]:
        """Constants that count as parameters: used, floating point or quantized codes; no indices, no masks."""
        return frozenset(filter(self.trains, self.constants))

    def trains(self, name: str) -> bool:
        """Say whether a tensor is one of ``trained``; what there is to read is read when it is asked for."""
        if name not in self._trains:
            tensor = self.constants.get(name)
            able = tensor is not None and name in self.users and _trains(tensor)
            self._trains[name] = able and not self._masks(name)
        return self._trains[name]

    def _masks(self, name: str) -> bool:
        """Say whether a constant hides positions, of a causal attention say: it holds minus infinity, or nothing but
        zero and one very negative number. No training ends there."""
        tensor = self.constants[name]
        if tensor.data_type not in _FLOATS:
            return False
        if any(node.op in _WEIGHTED and i > 0 for node, i in self.users[name]):
            return False  # a weight; reading all of them would take as long as reading the file
        if not 2 <= math.prod(tensor.dims) <= _LARGEST_MASK:
            return False
        values = tensors.read(tensor, self.folder, self._files)
        lowest = values.min()
        if lowest > _HIDES:
            return False
        return bool(lowest <= np.finfo(values.dtype.name).min or ((values == 0) | (values == lowest)).all())


def _trains(tensor: TensorProto) -> bool:
    return tensor.data_type not in (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING) and not (
        tensor.data_type == TensorProto.INT32 and len(tensor.dims) == 0
    )


def bare_model(graph: Graph, nodes: Sequence[NodeProto], outputs: Sequence[str]) -> tuple[ModelProto, list[str]]:
    """Some nodes as a model without inputs and constants, and the names of what must become one of these, sorted.

    Args:
        graph: the graph.
        nodes: of it, in order.
        outputs: tensors to return; those that the nodes do not make belong to what is missing.
    """
    model = ModelProto(ir_version=max(graph.model.ir_version, IR_WITH_FREE_INITIALIZERS))
    model.opset_import.extend(graph.model.opset_import)
    model.functions.extend(graph.model.functions)
    model.graph.name = "piece"
    model.graph.node.extend(nodes)
    model.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    made = {output for node in nodes for output in node.output}
    return model, sorted({name for node in nodes for name in reads(node)}.union(outputs) - made)


def check_graph(value: object) -> None:
    """Refuse with a UsageError what is no graph: a file or a model that was not loaded."""
    if not isinstance(value, Graph):
        raise UsageError(f"a graph is needed, not {type(value).__name__}: exporter.load(FILE or ModelProto) gives one.")


def opsets_of(model: ModelProto) -> dict[str, int]:
    """Operator-set version by domain; the standard domain is ""."""
    return {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}


def op_of(proto: NodeProto) -> str:
    """Operator of a node, with its domain unless standard (``Conv``, ``com.microsoft::FusedConv``)."""
    return f"{proto.domain}::{proto.op_type}" if domain_of(proto) else proto.op_type


def make_nodes(graph: GraphProto, opsets: dict[str, int], schemas: Schemas | None = None) -> list[Node]:
    """Wrap the nodes of a graph and of its subgraphs, as ``schemas`` knows them if they are given."""
    nodes: list[Node] = []
    _wrap(graph, schemas if schemas is not None else Schemas(opsets), 0, nodes)
    return nodes


def _wrap(graph: GraphProto, schemas: Schemas, depth: int, nodes: list[Node]) -> tuple[Node, ...]:
    """Append the nodes of a graph, each after those of its subgraphs; returns the graph's own."""
    own = []
    for view in schemas.views(graph):
        node = Node(
            proto=view.proto,
            op=view.name,
            inputs=view.inputs,
            outputs=view.outputs,
            attributes=view.attributes,
            opset=schemas.opsets.get(view.domain, 1),
            bodies=_bodies(view.proto, schemas, depth + 1, nodes) if view.graphs else (),  # they come before it
            index=len(nodes),
            depth=depth,
        )
        nodes.append(node)
        own.append(node)
    return tuple(own)


def _bodies(proto: NodeProto, schemas: Schemas, depth: int, nodes: list[Node]) -> tuple[Body, ...]:
    return tuple(
        Body(
            attribute.name if attribute.HasField("g") else f"{attribute.name}[]",
            tuple(v.name for v in inner.input),
            tuple(v.name for v in inner.output),
            _wrap(inner, schemas, depth, nodes),
        )
        for attribute in proto.attribute
        for inner in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    )
