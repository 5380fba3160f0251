"""Write a model file that differs from another in the values of some constants alone, byte for byte.

Shapes and types stay, so the new values lie where the old ones did: nothing is serialized anew, whatever the file
holds is kept, and a file of any size is written piece by piece. (Fields and their numbers: ``onnx.proto``; how they
are laid out: protobuf's encoding.)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.atomic import replacing
from exporter.graph import Graph
from exporter.tensors import Array, is_external

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_OUTPUT, _OP_TYPE, _ATTRIBUTE = 2, 4, 5  # of NodeProto
_TENSOR = 5  # of AttributeProto
_NAME, _RAW_DATA = 8, 9  # of TensorProto

_COMPARED = 1 << 18
"""Bytes compared at a time."""


@dataclass(frozen=True)
class _Field:
    number: int
    start: int
    end: int


def places(data: mmap.mmap | bytes) -> dict[str, tuple[int, int]]:
    """Where the values of the constants of the main graph lie: first byte and the one after the last, by name.

    Constants whose values are not in one piece (typed fields, external data) are left out, and so are those of
    subgraphs and functions.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    found: dict[str, tuple[int, int]] = {}
    for graph in _fields(data, 0, len(data)):
        if graph.number != _GRAPH:
            continue
        for field in _fields(data, graph.start, graph.end):
            if field.number == _INITIALIZER:
                _add(found, data, field, None)
            elif field.number == _NODE:
                _constant(found, data, field)
    return found


def _constant(found: dict[str, tuple[int, int]], data: mmap.mmap | bytes, node: _Field) -> None:
    parts = list(_fields(data, node.start, node.end))
    if any(f.number == _OP_TYPE and data[f.start : f.end] == b"Constant" for f in parts):
        names = [data[f.start : f.end].decode() for f in parts if f.number == _OUTPUT]
        for attribute in (f for f in parts if f.number == _ATTRIBUTE):
            for tensor in _fields(data, attribute.start, attribute.end):
                if tensor.number == _TENSOR and len(names) == 1:
                    _add(found, data, tensor, names[0])


def _add(found: dict[str, tuple[int, int]], data: mmap.mmap | bytes, tensor: _Field, name: str | None) -> None:
    raw: tuple[int, int] | None = None
    for field in _fields(data, tensor.start, tensor.end):
        if field.number == _RAW_DATA:
            raw = (field.start, field.end)
        elif field.number == _NAME and name is None:
            name = data[field.start : field.end].decode()
    if name and raw is not None:
        found[name] = raw


def _fields(data: mmap.mmap | bytes, at: int, end: int) -> Iterator[_Field]:
    """The fields of a message: number, and where the payload of those with a length lies."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise ValueError("a field runs over the end of its message")
            yield _Field(number, at, at + length)
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of unknown kind {kind}")


def _varint(data: mmap.mmap | bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number runs over the end of its message")


def patch(graph: Graph, values: Mapping[str, Array], target: Path) -> int | None:
    """Write the file a graph was read from with other values of some constants, atomically.

    Args:
        graph: as ``load`` returned it; its model is not looked at.
        values: new values by name, of the shape and type of the old ones.
        target: the file to write or replace.

    Returns:
        Bytes written; None, with nothing written, where a value does not lie in the file in one piece.

    Raises:
        OSError: the file cannot be written.
    """
    source = graph.source.path
    if source is None or not source.is_file() or any(is_external(graph.constants[n]) for n in values):
        return None
    with source.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        where = places(data)
        edits = []
        for name, array in values.items():
            old = np.asarray(graph.array(name), order="C")
            place = where.get(name)
            if place is None or place[1] - place[0] != array.nbytes or old.dtype != array.dtype:
                return None
            if not _same(data, place[0], old):  # another constant of that name, or packed codes
                return None
            edits.append((*place, np.asarray(array, order="C")))
        edits.sort(key=lambda e: e[0])
        with replacing(target) as temporary, temporary.open("wb") as out:
            _write(out.fileno(), data, edits)
            return len(data)


def _same(data: mmap.mmap, start: int, values: Array) -> bool:
    """Say whether values lie in a file as they are, looking at both where they are."""
    here = np.frombuffer(data, np.uint8, values.nbytes, start)
    mine = values.reshape(-1).view(np.uint8)
    parts = (slice(k, k + _COMPARED) for k in range(0, mine.size, _COMPARED))
    return all(np.array_equal(here[part], mine[part]) for part in parts)


def _write(out: int, data: mmap.mmap, edits: list[tuple[int, int, Array]]) -> None:
    at = 0
    with memoryview(data) as view:
        for start, end, array in edits:
            _write_all(out, view[at:start])
            _write_all(out, array.reshape(-1).view(np.uint8).data)
            at = end
        _write_all(out, view[at:])


def _write_all(out: int, part: memoryview) -> None:
    with part:
        done = 0
        while done < len(part):
            with part[done:] as rest:
                done += os.write(out, rest)
