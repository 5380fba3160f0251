"""Weights in files beside the model: which there are, and how they are written."""

from __future__ import annotations

import contextlib
import glob
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from exporter import external_parts, tensors
from exporter.ahead import made_ahead
from exporter.atomic import beside, put_in_place
from exporter.errors import ModelError
from exporter.protos import constant_tensors
from exporter.streams import HashedStream
from exporter.tensors import Array
from runtime.model_files import tensors_of
from runtime.steps import Count

_SMALLEST_OUTSIDE = 1024
_ALIGNMENT = 64
_TAKEN_AT_ONCE = 1 << 20
"""Elements of a weight that is cut: such memory is used again, larger pieces are new each time."""
Named = tuple[str, TensorProto]
"""A tensor and the name it has as a constant of the main graph; "" where it is none."""
_NAME = re.compile(r"-[0-9a-f]{12}\.data")


def files(model: ModelProto, folder: Path) -> set[Path]:
    """Data files a model reads.

    Raises:
        ModelError: one of them is missing, too short, or outside the folder.
    """
    return _files(tensors_of(model), folder)


def files_read(model: ModelProto, folder: Path) -> set[Path]:
    """Data files a model reads that comes from a file: like ``files``, but entries that only this program makes, and
    only in memory, are refused.

    Raises:
        ModelError: a tensor has one, or ``files`` raises it.
    """
    kept = [t for t in tensors_of(model) if t.external_data or tensors.is_external(t)]
    for tensor in kept:
        for entry in tensor.external_data:
            if not (isinstance(entry.key, str) and isinstance(entry.value, str)):  # protobuf hands out bytes then
                raise ModelError(
                    f"initializer '{tensor.name}' has an entry in its external data that is not UTF-8 text: "
                    f"{entry.key!r}: {entry.value!r}. Export the model again."
                )
            if entry.key.startswith(external_parts.PREFIX):
                raise ModelError(
                    f"initializer '{tensor.name}' has an entry '{entry.key}' in its external data, which no file has "
                    "and no other program knows. Export the model again."
                )
    return _files(kept, folder)


def _files(given: Iterable[TensorProto], folder: Path) -> set[Path]:
    seen: dict[str, tensors.Found] = {}
    outside = (t for t in given if tensors.is_external(t) and external_parts.file_of(t) is None)
    found = {tensors.external_file(t, folder, seen)[0] for t in outside}
    return {path.resolve() for path in found}


def write(
    model: ModelProto,
    folder: Path,
    target: Path,
    values: Mapping[str, Array] | None = None,
    step: Callable[[str], None] = lambda _: None,
    announce: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Move the large initializers of a model, and what else lies outside of it, into one data file beside ``target``;
    the model is changed in place.

    The file is named after its content, so that a new model never meets old data. A few tensors are in memory at a
    time: the next ones are made while one is written.

    Args:
        model: points at the file afterwards.
        folder: where its present external data lies.
        target: the model file to be written.
        values: new values of constants, of the old shape and type; each is asked for once: those that stay in the
            model at the beginning, others in another thread, before their turn comes.
        step: called with a line now and then.
        announce: called with the data file before it is put in place.

    Returns:
        The data file.
    """
    given: Mapping[str, Array] = {} if values is None else values

    def payloads_of(named: Named) -> Iterable[NDArray[np.uint8]]:
        name, tensor = named
        if name in given or not external_parts.part_of(tensor) or tensors.dtype_bits(tensor.data_type) < 8:
            array = given[name] if name in given else tensors.read(tensor, folder)
            return [_payload(array, tensor.data_type)]
        rows, ranges = tensors.rows_of(tensor, folder), tensors.row_ranges(tensor.dims, _TAKEN_AT_ONCE)
        return (payload for _, payload in made_ahead(ranges, lambda r: _payload(rows(*r), tensor.data_type)))

    moved, stays = _apart(model)
    for name, tensor in stays:
        if name in given:
            tensors.assign(tensor, given[name])
    total = sum(tensors.nbytes(t) for _, t in moved)
    with beside(target) as temporary:
        with temporary.open("wb", buffering=0) as file, HashedStream(file) as stream:
            for (_, tensor), payloads in made_ahead(moved, payloads_of):
                stream.pad(-stream.written % _ALIGNMENT)
                start = stream.written
                for payload in payloads:
                    stream.write(payload)
                del payload, payloads
                _point_at(tensor, start, stream.written - start)
                step(Count("writing the weights", stream.written, total, "B"))
        name = f"{target.stem}-{stream.hexdigest()[:12]}.data"
        for _, tensor in moved:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        final = target.parent / name
        announce(final)
        put_in_place(temporary, final)
    return final.resolve()  # like those that are compared with it


def _apart(model: ModelProto) -> tuple[list[Named], list[Named]]:
    """Tensors that go into the data file, and constants that stay in the model."""
    constants = constant_tensors(model)
    names = {id(tensor): name for name, tensor in constants.items()}
    moved = {id(t): t for t in model.graph.initializer if _goes_outside(t)}
    moved |= {id(t): t for t in tensors_of(model) if tensors.is_external(t)}
    stays = [(name, tensor) for name, tensor in constants.items() if id(tensor) not in moved]
    return [(names.get(key, ""), tensor) for key, tensor in moved.items()], stays


def _goes_outside(tensor: TensorProto) -> bool:
    small = tensors.nbytes(tensor) < _SMALLEST_OUTSIDE and not tensors.is_external(tensor)
    return not small and tensor.data_type != TensorProto.STRING


def _payload(array: Array, data_type: int) -> NDArray[np.uint8]:
    """The bytes of a tensor as they lie in a file, in one row."""
    if tensors.dtype_bits(data_type) < 8 or sys.byteorder != "little":  # several in a byte
        return np.frombuffer(onnx.numpy_helper.from_array(array).raw_data, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _point_at(tensor: TensorProto, offset: int, length: int) -> None:
    for name in external_parts.PAYLOADS:
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", ""), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


@contextlib.contextmanager
def journal(target: Path, going: Iterable[Path]) -> Iterator[Callable[[Path], None]]:
    """Keep a list of the data files beside ``target`` that are not its model's yet, or soon not any more.

    A process that is killed leaves the list behind, and the next one that writes ``target`` removes what is on it and
    not the model's then.

    Args:
        target: the model file to be written.
        going: data files that are removed once it is.

    Yields:
        A function to call with a data file before it is put in place.
    """

    def forget(left: Path) -> None:
        listed = set(left.read_text(encoding="utf-8").splitlines())
        named = {path.name for path in written_for(target)}
        for file in target.parent.glob(f"{glob.escape(target.stem)}-*.data"):
            if file.name in listed - named and _NAME.fullmatch(file.name[len(target.stem) :]):
                file.unlink(missing_ok=True)

    with beside(target, ".journal", forget) as note:
        names = sorted(path.name for path in going)
        note.write_text("\n".join(names), encoding="utf-8")

        def announce(file: Path) -> None:
            if not file.exists():  # it may be another model's
                note.write_text("\n".join([*names, file.name]), encoding="utf-8")

        yield announce


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
    named = {e.value for t in tensors_of(model) for e in t.external_data if e.key == "location"}
    return {candidates[name].resolve() for name in named & candidates.keys()}
