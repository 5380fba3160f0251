"""Model files: read an ONNX file into a graph, write a graph so that a reader never sees half of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import google.protobuf.message
import onnx
from onnx import ModelProto

from exporter import external_data, freed_memory, functions, tensors
from exporter.atomic import replacing
from exporter.errors import ModelError, UsageError
from exporter.graph import IR_WITH_FREE_INITIALIZERS, Graph, Source, opsets_of
from exporter.normalise import normalise
from exporter.ordering import sort_nodes
from exporter.pauses import no_collection
from exporter.tensors import Array
from runtime.model_files import in_folder, near, tensors_of

OLDEST_OPSET = 7
OLDEST_IR = 3
EXTERNAL_BYTES = 1_500_000_000
"""A model whose weights exceed this is written with external data: protobuf stops at 2 GB."""


def load(
    path: str | os.PathLike[str] | ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None, *, profile: int = 0
) -> Graph:
    """Read an ONNX file.

    Args:
        path: the ``.onnx`` file; external data is mapped from its folder. Or a model in memory, which stays as it is.
        shapes: concrete input shapes by name, for inputs with dynamic axes. The analysis, the cost model and the proof
            use them; the written file stays dynamic. Default: batch 2, images 224 x 224, sequences of 16.
        profile: first of ``runtime.feeds.PROFILES`` to try for dynamic axes without a shape.

    Returns:
        The normalised graph.

    Raises:
        ModelError: not an ONNX file, truncated, too old, invalid, or its external data is missing or out of bounds.
        UsageError: no such file, or it cannot be read.
    """
    with no_collection():
        return (
            from_model(path, shapes, profile=profile)
            if isinstance(path, ModelProto)
            else _load(Path(path), shapes, profile)
        )


def _load(file: Path, shapes: Mapping[str, tuple[int, ...]] | None, profile: int) -> Graph:
    model, source = read_model(file)
    return normalise(model, file.parent, source, shapes, profile)


def read_model(file: Path) -> tuple[ModelProto, Source]:
    """A file as it stands, its external data still outside, and what is known of it.

    Raises:
        ModelError, UsageError: as for ``load``.
    """
    data = _read_bytes(file)
    model = _parse(data, file)
    digest = hashlib.sha256(data)
    size = len(data)
    del data
    outside = external_data.files_read(model, file.parent)
    if outside:
        freed_memory.keep()  # such models are worked on in blocks
    size += sum(f.stat().st_size for f in outside)
    return model, Source(file, size, digest.hexdigest(), file, external=bool(outside))


def from_model(
    model: ModelProto,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    profile: int = 0,
    origin: Path | None = None,
) -> Graph:
    """Describe a model that is already in memory; its own copy is taken, and external data is not supported.

    Args:
        model: the model.
        shapes, profile: as for ``load``.
        origin: the file it was made of.

    Raises:
        ModelError: as for ``load``.
    """
    data = model.SerializeToString(deterministic=True)
    copy = _parse(data, None)
    source = Source(None, len(data), hashlib.sha256(data).hexdigest(), origin)
    return normalise(copy, Path(), source, shapes, profile)


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file.{near(file)}") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder; {in_folder(file)}") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error


_TORCH = "A network from torch becomes a model with: secateur convert SOURCE -o MODEL.onnx"
_PAGE = "It is a web page: the download gave a page instead of the file."
_STARTS = (
    (b"PK\x03\x04", f"It is a zip archive, as torch and numpy write them. {_TORCH}"),
    (b"\x80", f"It is a pickle, as older versions of torch write them. {_TORCH}"),
    (b"version https://git-lfs", "It is a pointer of Git LFS; fetch the file itself with: git lfs pull"),
    (b"<!DOCTYPE", _PAGE),
    (b"<html", _PAGE),
)
"""First bytes of what is often taken for a model, and what to do about it."""


def _instead(data: bytes, file: Path | None) -> str:
    """What a file is that is not a model, or how to find out."""
    found = next((told for start, told in _STARTS if data.startswith(start)), "")
    return found or f"Check it with: python -m onnx.checker {file or 'FILE'}, or export it again."


def _parse(data: bytes, file: Path | None) -> ModelProto:
    name = file if file is not None else "the model"
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (google.protobuf.message.DecodeError, UnicodeDecodeError):  # protobuf in Python: a name is no text
        raise ModelError(
            f"{name} is not an ONNX file, or it is truncated ({len(data):,} bytes read).\n{_instead(data, file)}"
        ) from None
    if model.graph.node and not model.opset_import:
        raise ModelError(
            f"{name} does not say which operator set its nodes are of (opset_import); the graph is not valid ONNX. "
            "Export it again."
        )
    if not model.graph.node:
        raise ModelError(
            f"{name} holds no ONNX graph ({len(data):,} bytes read).\n"
            "It may be another kind of file, an ONNX Runtime .ort file, or truncated. Export the model to ONNX again."
        )
    opset = opsets_of(model).get("", None)
    if opset is not None and opset < OLDEST_OPSET:
        raise ModelError(
            f"{name} uses operator set {opset}; {OLDEST_OPSET} is the oldest supported.\n"
            "Bring it up to date with onnx.version_converter.convert_version(model, 13)."
        )
    if model.ir_version < OLDEST_IR:
        raise ModelError(f"{name} has IR version {model.ir_version}; {OLDEST_IR} is the oldest supported.")
    return model


def save(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    values: Mapping[str, Array] | None = None,
    progress: Callable[[str], None] | None = None,
    judge: Callable[[Path], None] = lambda _: None,
) -> int:
    """Write a graph atomically: under a temporary name beside ``path``, checked, flushed, then renamed.

    Metadata, documentation strings, operator-set domains, function definitions and names are kept. External data is
    used when the source had it or the weights exceed 1.5 GB; its file is named after its content, so that a reader
    never sees a new model with old data. The same graph always gives the same bytes.

    Args:
        graph: as ``rewrite`` or ``load`` returned it.
        path: the file to write or replace.
        values: new values of constants of a model with external data, of the old shape and type. Each is asked for
            once, so they may be made when they are.
        progress: called with a line now and then.
        judge: called with the complete file, which has another name yet; nothing is kept if it raises.

    Returns:
        Bytes written, external data included.

    Raises:
        UsageError: the folder does not exist or cannot be written.
        ModelError: the model does not pass ``onnx.checker``; nothing is written.
    """
    target = Path(path)
    model = finished(graph)
    weights = sum(tensors.nbytes(t) for t in tensors_of(model))
    external = weights > EXTERNAL_BYTES or graph.source.external or values is not None
    try:
        before = external_data.written_for(target)
        data_file: Path | None = None
        with external_data.journal(target, before - _read_by(graph)) as announce:
            try:
                with replacing(target) as temporary:
                    if external:
                        model, step = _copy(model), progress or (lambda _: None)
                        data_file = external_data.write(model, graph.folder, target, values, step, announce)
                    written = temporary.write_bytes(model.SerializeToString(deterministic=True))
                    _check(temporary, target, graph.source)
                    judge(temporary)
            except BaseException:
                if data_file is not None and data_file not in before | _read_by(graph):
                    data_file.unlink(missing_ok=True)
                raise
            _forget(before - {data_file}, graph, target)
        return written + (data_file.stat().st_size if data_file else 0)
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror or error}.\nChoose another path with -o, or make room there."
        ) from error


def _forget(before: set[Path], graph: Graph, target: Path) -> None:
    """Remove the data files of the model that was replaced, unless the graph's own file still reads them."""
    in_place = target.exists() and graph.source.origin is not None and target.samefile(graph.source.origin)
    for old in before - (set() if in_place else _read_by(graph)):
        old.unlink(missing_ok=True)


def finished(graph: Graph) -> ModelProto:
    """The model as it goes into a file: function calls put back, inputs declared; the graph's own where nothing
    changes.

    Args:
        graph: any graph; it stays as it is.
    """
    old = graph.model.ir_version < IR_WITH_FREE_INITIALIZERS
    if not graph.calls.nodes and not graph.calls.inside and not old:
        return graph.model
    model = _copy(graph.model)
    functions.restore(model, graph.calls)
    sort_nodes(model)
    if old:
        _declare_as_inputs(model)
    return model


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _read_by(graph: Graph) -> set[Path]:
    """Data files the graph still reads its weights from."""
    return external_data.files(graph.model, graph.folder)


def _declare_as_inputs(model: ModelProto) -> None:
    """Before IR version 4 every initializer is also declared as an input, those made here included."""
    declared = {v.name for v in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in declared:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(value)


def _check(file: Path, target: Path, source: Source) -> None:
    """Check by onnx, read from the file so that no second copy of the weights is made here.

    Some files that run well fail the full check from the start (a wrong declared shape, an operator onnx does not
    know); a check that the original does not pass is not asked of the result.
    """
    for full in (False, True):
        fault = _fault(file, full)
        original = source.path or source.origin
        if fault is None or (original is not None and original.is_file() and _fault(original, full) is not None):
            continue
        raise ModelError(
            f"the model to be written to {target} does not pass the ONNX checker: {fault}\nNothing was written."
        )


def _fault(file: Path, full: bool) -> str | None:
    """First line of what onnx's check finds wrong, or None."""
    try:
        onnx.checker.check_model(str(file), full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0]
    return None
