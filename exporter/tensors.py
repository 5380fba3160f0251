"""Constant tensors of a model file: read them from the file or from external data, write them back."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from exporter.errors import ModelError
from exporter.external_parts import file_of, part_of

Array = NDArray[np.generic]

_PACKED = frozenset(
    getattr(TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(TensorProto, name)
)

_PARTS = ("/", "\\", ":")
"""What a location with folders in it has, on one system or another."""
_ADVISED_BYTES = 1 << 21
"""Linux reads no more than some megabytes ahead for one call."""
_READ_BYTES = 1 << 16
"""Weights up to this size are read, larger ones mapped: a mapping costs more, and a process may have 65,530 of them."""


def is_external(tensor: TensorProto) -> bool:
    """Say whether the tensor's bytes lie in a file beside the model."""
    return tensor.HasField("data_location") and tensor.data_location == TensorProto.EXTERNAL


Found = tuple[Path | None, os.stat_result | None]


def external_file(
    tensor: TensorProto, folder: Path, seen: dict[str, Found] | None = None
) -> tuple[Path, int, int | None]:
    """Return (path, offset, length) of an external tensor, or refuse it.

    A model is untrusted input, so the location must be a relative path to a regular file that lies
    inside the model's folder after every link is followed. Who asks for many tensors at once gives ``seen``, in which
    what stands at each location is noted.

    Raises:
        ModelError: the location is missing, leaves the folder, or the file is absent or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    found = seen.get(location) if seen is not None else None
    if found is None:
        found = _inside(location, folder)
        if seen is not None:
            seen[location] = found
    path, status = found
    if path is None:
        raise ModelError(
            f"{_outside(tensor, location)}, which is outside the model's folder {folder.resolve()}.\n"
            "Such a path could read any file of this machine, so it is refused. Put the data file itself beside the "
            "model (where it is a link into a download cache, copy both with cp -L)."
        )
    if status is None or not stat.S_ISREG(status.st_mode):
        raise ModelError(
            f"{_outside(tensor, location)}, but there is no such file in {folder.resolve()}.\n"
            "Copy the data file beside the model."
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries["length"]) if "length" in entries else None
    except ValueError:
        raise ModelError(f"{_outside(tensor, location)} with an offset or length that is not a number.") from None
    size = status.st_size
    if offset < 0 or offset + max(length or 0, 0) > size or (length is not None and length < 0):
        raise ModelError(
            f"{_outside(tensor, location)} at bytes {offset}..{offset + (length or 0)}, but the file has {size} "
            "bytes.\nThe data file is truncated or belongs to another model; copy it again."
        )
    return path, offset, length


def _outside(tensor: TensorProto, location: str) -> str:
    return f"initializer '{tensor.name}' keeps its data in '{location}'"


def _inside(location: str, folder: Path) -> Found:
    """Path of a location, None where that leaves the folder, and what stands there, None for nothing."""
    if not location or "\0" in location:
        return None, None
    path = folder / location
    if not any(part in location for part in _PARTS) and location not in (".", ".."):
        status = _status(path)
        if status is not None and stat.S_ISREG(status.st_mode):
            return path, status  # no link on the way, so nothing leads outside
    path, root = path.resolve(), folder.resolve()
    return (path, _status(path)) if path.is_relative_to(root) else (None, None)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def read(tensor: TensorProto, folder: Path, seen: dict[str, Found] | None = None) -> Array:
    """Return the tensor's values, shape ``tensor.dims``; external data is mapped, not read. ``seen`` as for
    ``external_file``.

    Raises:
        ModelError: the bytes are missing, or their number does not fit the declared shape.
    """
    with _damage_told(tensor):
        if not is_external(tensor):
            return numpy_helper.to_array(tensor)
        part = part_of(tensor)
        whole = _mapped(tensor, folder, part.dims if part is not None else tuple(tensor.dims), seen)
        return part.of(whole) if part is not None else whole


def rows_of(tensor: TensorProto, folder: Path) -> Callable[[int, int], Array]:
    """What reads the rows from one to before another of a tensor, and no others; it may be called in threads.

    Raises:
        ModelError: as for ``read``.
    """
    with _damage_told(tensor):
        part = part_of(tensor) if is_external(tensor) else None
        if part is not None:
            return part.rows(_mapped(tensor, folder, part.dims, None))
    whole = read(tensor, folder)
    return lambda start, stop: whole[start:stop]


def expect(tensor: TensorProto, folder: Path) -> None:
    """Let the system read a tensor's data from the disk, if it can be told so: whoever needs them next waits less."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None or not is_external(tensor) or file_of(tensor) is not None:
        return
    path, offset, length = external_file(tensor, folder)
    file = os.open(path, os.O_RDONLY)
    try:
        for start in range(offset, offset + (length or 0), _ADVISED_BYTES):
            advise(file, start, min(_ADVISED_BYTES, offset + (length or 0) - start), os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)


def row_ranges(dims: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Rows of a tensor, in order, at most so many elements at a time, but one row at least."""
    rows = max(limit // max(math.prod(dims[1:]), 1), 1)
    return [(start, min(start + rows, dims[0])) for start in range(0, dims[0], rows)]


@contextlib.contextmanager
def _damage_told(tensor: TensorProto) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"initializer '{tensor.name}' {list(tensor.dims)} cannot be read: {error}.\n"
            "The file is damaged; export or copy it again."
        ) from error


def _mapped(tensor: TensorProto, folder: Path, dims: tuple[int, ...], seen: dict[str, Found] | None) -> Array:
    """What lies in the data file, in that shape."""
    temporary = file_of(tensor)
    if temporary is not None:
        held: Array = np.load(temporary, mmap_mode="r", allow_pickle=False)
        return held.reshape(dims)
    path, offset, length = external_file(tensor, folder, seen)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    count = math.prod(dims)
    if tensor.data_type in _PACKED:
        length = length if length is not None else (count * dtype_bits(tensor.data_type) + 7) // 8
        inline = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=dims)
        inline.raw_data = np.memmap(path, np.uint8, "r", offset, (length,)).tobytes()
        return numpy_helper.to_array(inline)
    if length is not None and length != count * dtype.itemsize:
        raise ValueError(f"{length} bytes for {count} elements of {dtype}")
    if count == 0:
        return np.zeros(dims, dtype)
    size = count * dtype.itemsize
    if size <= _READ_BYTES:
        values = np.frombuffer(_bytes_at(path, offset, size), np.uint8)
    else:
        values = np.memmap(path, np.uint8, "r", offset, (size,))
    return values.view(dtype).reshape(dims)


def _bytes_at(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file, by the calls of the system alone: a model has tens of thousands of small weights."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)
    finally:
        os.close(file)


def dtype_bits(data_type: int) -> int:
    """Bits one element takes in a file."""
    if data_type in _PACKED:
        return 2 if str(TensorProto.DataType.Name(data_type)).endswith("2") else 4
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize) * 8


def nbytes(tensor: TensorProto) -> int:
    """Bytes the tensor's values take in a file, from its type and shape alone."""
    if tensor.data_type == TensorProto.STRING:
        return int(sum(len(item) for item in tensor.string_data))
    count: int = math.prod(tensor.dims)
    return (count * dtype_bits(tensor.data_type) + 7) // 8


def assign(tensor: TensorProto, values: Array) -> None:
    """Replace the tensor's values in place; its name, documentation and metadata stay."""
    fresh = numpy_helper.from_array(np.asarray(values, order="C"))
    fresh.data_type = tensor.data_type
    fresh.name = tensor.name
    if tensor.doc_string:  # a field that is set, though empty, is written
        fresh.doc_string = tensor.doc_string
    fresh.metadata_props.extend(tensor.metadata_props)
    tensor.CopyFrom(fresh)


def take_in(tensor: TensorProto, folder: Path) -> None:
    """Put a tensor's external data, if it has some, inside it, in place; for the errors see ``read``."""
    if is_external(tensor):
        values = read(tensor, folder)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        assign(tensor, values)
