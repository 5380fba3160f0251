"""A graph with other values of some constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from exporter import external_parts, tensors
from exporter.calibration.store import Shelf
from exporter.graph import Graph
from exporter.protos import constant_of, key_of
from exporter.tensors import Array


def with_values(graph: Graph, values: Mapping[str, Array]) -> Graph:
    """The graph with other values of some constants.

    Args:
        graph: the graph; it stays as it is.
        values: by name, of the present shapes and types. What a shelf has in files stays there, if the graph keeps its
            weights outside the model too.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        held = constant_of(node)
        if held is not None:
            constants[key_of(node)] = held
    shelf = values if isinstance(values, Shelf) and graph.source.external else None
    files = {name: file for name in shelf or () if shelf is not None and (file := shelf.file(name)) is not None}
    for name in values:
        if name in files:
            external_parts.put_in(constants[name], files[name])
        else:
            tensors.assign(constants[name], values[name])
    source = replace(graph.source, holds=(*graph.source.holds, shelf)) if files else graph.source
    return replace(graph, model=model, constants=constants, source=source)
