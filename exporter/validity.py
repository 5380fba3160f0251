"""Refuse a model that would make every later step guess: it is not valid ONNX, whatever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import cast

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from exporter import tensors
from exporter.errors import ModelError
from runtime.model_files import all_tensors, graphs_in, tensors_of
from runtime.nouns import counted

_PACKING = 8
_SLACK = 64
_STANDARD = ("", "ai.onnx")
_TYPES = frozenset(TensorProto.DataType.values())
Rules = tuple[int, dict[str, int]]
"""Of an operator: how many inputs it has at least, and the type of each attribute."""

_DAMAGED = "the graph is not valid ONNX. Export it again."


def check_model(model: ModelProto) -> None:
    """Check names, definitions and declared sizes, those of subgraphs included.

    Raises:
        ModelError: with the first fault found.
    """
    own = {(f.domain, f.name) for f in model.functions}
    version = next((o.version for o in model.opset_import if o.domain in _STANDARD), None)
    for imported in model.opset_import:
        if not 0 <= imported.version < 1 << 31:
            raise ModelError(f"there is no version {imported.version} of operators; {_DAMAGED}")

    @lru_cache
    def rules(domain: str, operator: str) -> Rules | None:
        if domain not in _STANDARD or version is None or (domain, operator) in own:
            return None
        try:
            schema = onnx.defs.get_schema(operator, version, "")
        except onnx.defs.SchemaError:
            return None
        return schema.min_input, {a.name: int(cast(int, a.type)) for a in schema.attributes.values()}

    try:
        _check_graph(model.graph, set(), "", rules)
    except UnicodeDecodeError as error:
        raise ModelError(f"a name in the model is not UTF-8 text ({error}); {_DAMAGED}") from error
    for tensor in all_tensors(model.graph):
        _check_tensor(tensor)


def check_weights(model: ModelProto, folder: Path) -> None:
    """Check that the bytes of every tensor are there, for whoever hands a file on to other programs.

    Args:
        model: without its external data.
        folder: where these lie.

    Raises:
        ModelError: they are missing, of another number than declared, or outside the folder.
    """
    seen: dict[str, tensors.Found] = {}
    for tensor in tensors_of(model):
        _check_tensor(tensor)
        if tensors.is_external(tensor):
            tensors.external_file(tensor, folder, seen)


def _check_graph(graph: GraphProto, outer: set[str], where: str, rules: Callable[[str, str], Rules | None]) -> None:
    known, reads = _definitions(graph, where)
    known |= outer
    for node, names in zip(graph.node, reads, strict=True):
        attributes = _check_node(node, len(names), where, rules(node.domain, node.op_type))
        unknown = "" if known.issuperset(names) else next((n for n in names if n and n not in known), "")
        if unknown:
            raise ModelError(
                f"node {node.op_type} '{node.name}'{where} reads '{unknown}', which nothing defines; {_DAMAGED}"
            )
        for attribute in attributes:
            for inner in graphs_in(attribute):
                if inner.node or inner.output:
                    _check_graph(inner, known, f" inside {node.op_type} '{node.name}'", rules)
    for value in (*graph.input, *graph.output):
        if value.name not in known:
            raise ModelError(f"graph output '{value.name}'{where} is defined by no node; {_DAMAGED}")
        _check_declared(value)


def _check_node(node: NodeProto, inputs: int, where: str, rules: Rules | None) -> list[AttributeProto]:
    """What every later step takes for granted: inputs that must be there are, and attributes have their type.

    Returns the attributes.
    """
    attributes = list(node.attribute)
    if rules is None:
        return attributes
    least, kinds = rules
    if inputs < least or not len(node.output):
        raise ModelError(
            f"node {node.op_type} '{node.name}'{where} has {counted(inputs, 'input')} and "
            f"{counted(len(node.output), 'output')}; {_DAMAGED}"
        )
    for attribute in attributes:
        if attribute.type not in (0, kinds.get(attribute.name, attribute.type)) and not attribute.ref_attr_name:
            raise ModelError(
                f"attribute {attribute.name} of node {node.op_type} '{node.name}'{where} is not of the type that onnx "
                f"gives it; {_DAMAGED}"
            )
    return attributes


def _definitions(graph: GraphProto, where: str) -> tuple[set[str], list[list[str]]]:
    """Names a graph defines, each of them once, and what each of its nodes reads."""
    inputs, constants = [v.name for v in graph.input], [t.name for t in graph.initializer]
    constants += [t.values.name for t in graph.sparse_initializer]
    _check_unique(inputs, f"graph input{where}")
    _check_unique(constants, f"initializer{where}")
    defined, reads = {*inputs, *constants}, []
    for node in graph.node:
        outputs, names = list(node.output), list(node.input)
        texts = (node.name, node.op_type, node.domain, *names, *outputs)
        try:
            "".join(texts)
        except TypeError:  # protobuf hands out bytes where the text is not UTF-8
            wrong = next(text for text in texts if not isinstance(text, str))
            raise ModelError(f"a name in the model is not UTF-8 text: {wrong!r}; {_DAMAGED}") from None
        for name in outputs:
            if name and name in defined:
                raise ModelError(f"tensor '{name}' is defined twice{where}; {_DAMAGED}")
            defined.add(name)
        reads.append(names)
    defined.discard("")
    return defined, reads


def _check_unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelError(f"{what} '{name}' is defined twice; {_DAMAGED}")
        seen.add(name)


def _check_declared(value: onnx.ValueInfoProto) -> None:
    kind = value.type.tensor_type
    if value.type.HasField("tensor_type") and kind.elem_type not in _TYPES:
        raise ModelError(f"'{value.name}' has element type {kind.elem_type}, which onnx does not know; {_DAMAGED}")
    for dim in kind.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value < -1:  # some exporters write -1 for a dynamic axis
            raise ModelError(f"'{value.name}' has an axis of size {dim.dim_value}; {_DAMAGED}")


def _check_tensor(tensor: TensorProto) -> None:
    """A declared shape must fit the bytes that are there: nothing is allocated on the word of a file."""
    if min(tensor.dims, default=0) < 0:
        raise ModelError(f"tensor '{tensor.name}' has shape {list(tensor.dims)}; {_DAMAGED}")
    if tensor.data_type not in _TYPES or tensor.data_type == TensorProto.UNDEFINED:
        raise ModelError(f"tensor '{tensor.name}' has element type {tensor.data_type}, unknown to onnx; {_DAMAGED}")
    if tensors.is_external(tensor) or tensor.data_type == TensorProto.STRING:
        return
    declared = tensors.nbytes(tensor)
    if tensor.HasField("raw_data"):  # protobuf copies what it is asked for: large weights once is enough
        present = len(tensor.raw_data)
        fits = declared == present
    else:
        present = tensor.ByteSize()
        fits = declared <= _PACKING * present + _SLACK
    if not fits:
        raise ModelError(
            f"tensor '{tensor.name}' declares {list(tensor.dims)}, {declared:,} bytes, but holds "
            f"{present:,}; {_DAMAGED}"
        )
