"""Weights in files beside the model: which there are, and how they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from exporter import tensors
from exporter.atomic import beside, put_in_place

_SMALLEST_OUTSIDE = 1024
_ALIGNMENT = 64
_PAYLOADS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data")


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph: initializers and attributes, those of subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from all_tensors(inner)


def files(model: ModelProto, folder: Path) -> set[Path]:
    """Data files a model reads.

    Raises:
        ModelError: one of them is missing, too short, or outside the folder.
    """
    return {tensors.external_file(t, folder)[0] for t in all_tensors(model.graph) if tensors.is_external(t)}


def write(model: ModelProto, folder: Path, target: Path) -> Path:
    """Move the large initializers of a model into one data file beside ``target``; the model is changed in place.

    The file is named after its content, so that a new model never meets old data.

    Args:
        model: points at the file afterwards.
        folder: where its present external data lies.
        target: the model file to be written.

    Returns:
        The data file.
    """
    digest = hashlib.sha256()
    with beside(target) as temporary:
        offset = 0
        with temporary.open("wb") as stream:
            for tensor in model.graph.initializer:
                small = tensors.nbytes(tensor) < _SMALLEST_OUTSIDE and not tensors.is_external(tensor)
                if small or tensor.data_type == TensorProto.STRING:
                    continue
                data = onnx.numpy_helper.from_array(tensors.read(tensor, folder)).raw_data
                padding = -offset % _ALIGNMENT
                stream.write(bytes(padding))
                stream.write(data)
                digest.update(data)
                _point_at(tensor, offset + padding, len(data))
                offset += padding + len(data)
        name = f"{target.stem}-{digest.hexdigest()[:12]}.data"
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        final = target.parent / name
        put_in_place(temporary, final)
    return final


def _point_at(tensor: TensorProto, offset: int, length: int) -> None:
    for name in _PAYLOADS:
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", ""), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def written_for(target: Path) -> set[Path]:
    """Data files that this program wrote beside the model now at ``target``, to be removed once it is replaced."""
    if not target.is_file():
        return set()
    candidates = {f.name: f for f in target.parent.glob(f"{target.stem}-*.data")}
    if not candidates:
        return set()
    try:
        model = onnx.load_model(target, load_external_data=False)
    except Exception:  # whatever lies there is about to be replaced
        return set()
    named = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return {candidates[name].resolve() for name in named & candidates.keys()}
