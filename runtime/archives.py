"""Arrays in .npz and .npy files, read without trust: no pickle, and no size is believed before it is checked."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from runtime.errors import BadRequest

Array = NDArray[np.generic]

LARGEST = 8 << 30
"""Most bytes read from one .npz; arrays in .npy files are memory-mapped and may be larger."""

_TAKEN = "fiubU"
"""Kinds of arrays that are read: numbers and text, which is no object in need of unpickling."""
_AS_NUMBERS = "save numbers, e.g. array.astype(np.float32)."
_OTHERS = {
    "O": (
        "Python objects",
        "save numbers as np.asarray(values, np.float32) or of another type, text as np.asarray(texts, dtype=str).",
    ),
    "c": ("complex numbers", "save real and imaginary parts as the model takes them, e.g. np.stack([a.real, a.imag])."),
    "S": ("bytes", "save text as array.astype(str)."),
}
FAULTS = (
    OSError,
    ValueError,  # UnicodeDecodeError too
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,  # encrypted; NotImplementedError for a compression zipfile does not know
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What numpy and zipfile raise on files that are not what they seem."""


@dataclass(frozen=True)
class Header:
    """What a file says of one array, checked against the number of bytes it has for it."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def headers(path: Path) -> dict[str, Header]:
    """Shapes and types of the arrays in an ``.npz``, by name, without reading their values.

    Arrays of other types than numbers and text are named as well: ``read_npz`` says what to do about them.

    Raises:
        BadRequest: not such a file.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as file:
                        header = _header(file)
                        size = info.file_size - file.tell()
                    if header.dtype.kind in _TAKEN:
                        _check_size(path, info.filename, header, size)
                    found[info.filename.removesuffix(".npy")] = header
    except FAULTS as error:
        raise BadRequest(f"{path} is not a readable .npz of arrays: {error}") from error
    return found


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read arrays of an ``.npz`` by name; others in it are left alone.

    Raises:
        BadRequest: not such a file, one is missing or of another type than numbers and text, or they hold more than
            ``LARGEST`` bytes.
    """
    known = headers(path)
    missing = [n for n in names if n not in known]
    if missing:
        raise BadRequest(f"{path} lacks {', '.join(missing)}; it holds {', '.join(known) or 'no arrays'}.")
    for name in names:
        refuse_type(name, known[name].dtype, str(path))
    if sum(known[n].nbytes for n in names) > LARGEST:
        raise BadRequest(
            f"{path} holds more than {LARGEST >> 30} GiB of inputs. Give a folder of NAME.npy files instead: they are "
            "read a batch at a time."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return {n: _values(archive, f"{n}.npy", known[n]) for n in names}
    except FAULTS as error:
        raise BadRequest(f"{path} is not a readable .npz of arrays: {error}") from error


def refuse_type(name: str, dtype: np.dtype[np.generic], where: str) -> None:
    """Refuse an array of another type than numbers and text with a BadRequest that says how to save it."""
    if dtype.kind in _TAKEN:
        return
    found, instead = _OTHERS.get(dtype.kind, (f"values of type {dtype}", _AS_NUMBERS))
    raise BadRequest(f"{where}: '{name}' holds {found}, which are not read: {instead}")


def map_npy(path: Path) -> Array:
    """Open an ``.npy`` as a read-only memory map.

    Raises:
        BadRequest: not such a file, or not an array of numbers or text.
    """
    try:
        values = npy.open_memmap(path, mode="r")  # refuses pickled objects, and shapes larger than the file
    except FAULTS as error:
        raise BadRequest(f"{path} is not a readable .npy array: {error}") from error
    if values.dtype.kind not in _TAKEN:
        raise BadRequest(f"{path} does not hold an array of numbers or text.")
    return values


def _header(file: IO[bytes]) -> Header:
    version = npy.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"version {version} of the format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return Header(tuple(int(size) for size in shape), dtype)


def _values(archive: zipfile.ZipFile, member: str, header: Header) -> Array:
    with archive.open(member) as file:
        values: Array = npy.read_array(file, allow_pickle=False)
    if values.shape != header.shape:
        raise ValueError(f"{member} changed while it was read")
    return values


def _check_size(path: Path, member: str, header: Header, size: int) -> None:
    if header.nbytes != size:
        raise BadRequest(
            f"{path}: {member} declares {header.dtype} {list(header.shape)}, which is {header.nbytes} bytes, but holds "
            f"{size}. The file is damaged; write it again."
        )
