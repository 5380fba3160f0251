"""The files a model is made of: the ONNX file, and the files with weights it names; one digest of them all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from operator import eq
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from runtime.meant import closest

_BLOCK = 1 << 20


def graphs_in(attribute: AttributeProto) -> Iterator[GraphProto]:
    """The graphs an attribute holds."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def nodes_in(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and those of their subgraphs, which come after the node that holds them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in graphs_in(attribute):
                yield from nodes_in(graph.node)


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph: initializers and attributes, those of subgraphs included."""
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, those of its functions included."""
    yield from all_tensors(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g") or attribute.graphs:
                for inner in graphs_in(attribute):
                    yield from all_tensors(inner)


def without_data(model: Path | bytes) -> ModelProto | None:
    """A model without the data that lie outside of it; None for what is no ONNX model, which others say more of."""
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        return onnx.load(model, load_external_data=False)
    except Exception:  # the format of ONNX Runtime's own, an engine, no such file
        return None


def weight_files(path: Path) -> list[Path]:
    """``weights_beside`` a model file; a file that is no ONNX model names none."""
    try:
        model: ModelProto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError):
        return []
    return sorted({file for file in weights_beside(model, path.absolute().parent).values() if file is not None})


def weights_beside(model: ModelProto, folder: Path) -> dict[str, Path | None]:
    """Files with external data that a model names, those of its functions included, by the names it has for them.

    None stands for what is not there or lies outside the model's folder: whoever loads the model refuses it, and a
    digest must not read it.
    """
    names = {
        entry.value
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {name: _beside(name, folder.resolve()) for name in names}


def _beside(name: object, folder: Path) -> Path | None:
    """The file of that name in a folder, links followed, if it is one and in it."""
    if not isinstance(name, str):  # bytes: it is not UTF-8
        return None
    try:
        file = (folder / name).resolve()
        return file if file.is_file() and file.is_relative_to(folder) else None
    except (OSError, ValueError):  # too long, or no name of a file
        return None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content; that of an ONNX model counts the files of its weights.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    for file in [path, *(weight_files(path) if path.suffix == ".onnx" else ())]:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Names of files, with as many of the folders they lie in as tell them from the others."""
    parts = [path.absolute().parts for path in paths]

    def named(own: tuple[str, ...]) -> str:
        others = [other for other in parts if other != own]
        shared = max((sum(1 for _ in takewhile(bool, map(eq, own[::-1], other[::-1]))) for other in others), default=0)
        return "/".join(own[-shared - 1 :])

    return [named(own) for own in parts]


def near(path: Path) -> str:
    """What may be meant by a file that is not there, to be put behind what says so; empty where nothing is like it."""
    try:
        names = [f.name for f in path.absolute().parent.iterdir() if f.is_file()]
    except OSError:
        return f" There is no folder {path.parent} either."
    found = closest(path.name, names)
    return f" Did you mean {path.parent / found}?" if found else ""


def in_folder(folder: Path) -> str:
    """What to name instead of a folder."""
    models = sorted(f for f in folder.iterdir() if f.suffix == ".onnx")
    if models:
        return f"name the model file in it, such as {models[0]}."
    if (folder / "config.json").is_file():
        return f"make a model of it with: secateur convert {folder} -o MODEL.onnx"
    return "name the model file in it."
