"""Results that took long to compute, kept in files and found again by what they were computed from.

A key is the SHA-256 of all that decides a result: the model with its external data, the samples, the options that
matter, and Secateur's version and source. So nothing needs to be declared out of date.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter import tensors
from exporter.atomic import beside, put_in_place
from exporter.graph import Graph
from runtime.archives import read_npz
from runtime.backends.custom_ops import custom_ops
from runtime.errors import BadRequest

Arrays = dict[str, NDArray[np.float64]]

LARGEST = 256 << 20
"""Bytes that all entries may take together; beyond, those go that were used least recently."""

FAULTS = (BadRequest, OSError, ValueError, KeyError, TypeError)
"""What reading an entry raises that was damaged, or is none."""

_FORMAT = "secateur-cache 1"
_HEADER = "header"


@dataclass
class Cache:
    """Arrays by key: in memory for as long as this lives, and in files where there is a folder.

    Attributes:
        folder: where the files are; None for none.
        largest: bytes that they may take together.
        notes: what the reader should know: entries that were damaged, a folder that cannot be written.
        hits: number of results that did not have to be computed.
        journals: folders of what was kept of calculations that are under way, and the files there that are this run's;
            see ``journal``.
        resumed: number of steps of them that an earlier run had done.
    """

    folder: Path | None = None
    largest: int = LARGEST
    notes: list[str] = field(default_factory=list)
    hits: int = 0
    journals: dict[Path, set[str]] = field(default_factory=dict)
    resumed: int = 0
    _memory: dict[str, Arrays] = field(default_factory=dict)

    def remember(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a key, computed where they are not known.

        Args:
            key: as ``key_of`` made it.
            make: computes the arrays, by name.
        """
        known = self._memory.get(key)
        if known is None and self.folder is not None:
            known = self._read(self.folder / f"{key}.npz", key)
        if known is None:
            known = {name: np.asarray(values, np.float64) for name, values in make().items()}
            if self.folder is not None:
                self._write(self.folder, key, known)
        else:
            self.hits += 1
        self._memory[key] = known
        return known

    def _read(self, path: Path, key: str) -> Arrays | None:
        if not path.exists():
            return None
        try:
            found = read_entry(path, key)
            os.utime(path)
            return {name: values.astype(np.float64) for name, values in found.items()}
        except FAULTS as error:
            self.notes.append(f"the cached result {path} cannot be used, and was computed anew: {error}")
            return None

    def _write(self, folder: Path, key: str, arrays: Arrays) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_entry(folder / f"{key}.npz", key, arrays)
            self._evict(folder, key)
        except OSError as error:
            self.notes.append(f"nothing could be kept in the cache {folder}: {error.strerror or error}")

    def _evict(self, folder: Path, newest: str) -> None:
        """Remove the entries used least recently until the rest fits; the newest stays."""
        entries = [(p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.npz")]
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.largest:
                break
            if path.stem != newest:
                path.unlink(missing_ok=True)
                total -= size


def read_entry(path: Path, key: str) -> dict[str, NDArray[Any]]:
    """The arrays of an entry, by name.

    Raises:
        FAULTS: it is damaged, or another key's.
    """
    header = json.loads(bytes(read_npz(path, [_HEADER])[_HEADER].astype(np.uint8)))
    if header["format"] != _FORMAT or header["key"] != key:
        raise ValueError("it is not what its name says")
    names = [str(name) for name in header["names"]]
    found = read_npz(path, [str(i) for i in range(len(names))])
    return {name: found[str(i)] for i, name in enumerate(names)}


def write_entry(path: Path, key: str, arrays: Mapping[str, NDArray[Any]], *, flushed: bool = True) -> None:
    """Write an entry so that a reader never sees half of it.

    Args:
        path: of the entry.
        key: which a reader must know.
        arrays: of numbers, by name.
        flushed: whether it has to outlast a failure of the system, not only of the process.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    header = json.dumps({"format": _FORMAT, "key": key, "names": list(arrays)}).encode()
    stored: dict[str, Any] = {str(i): values for i, values in enumerate(arrays.values())}
    stored[_HEADER] = np.frombuffer(header, np.uint8)
    with beside(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, **stored)
        if flushed:
            put_in_place(temporary, path)
        else:
            temporary.replace(path)


def key_of(graph: Graph, **details: object) -> str:
    """The key of a result.

    Args:
        graph: what it was computed from.
        details: everything else that decides it, as JSON knows it.
    """
    operators = [hashlib.sha256(library.read_bytes()).hexdigest() for library in custom_ops()]
    text = json.dumps(
        {"program": program(), "model": content(graph), "operators": operators, **details}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


_CONTENTS: weakref.WeakKeyDictionary[Graph, str] = weakref.WeakKeyDictionary()


def content(graph: Graph) -> str:
    """SHA-256 of a graph: nodes, weights (external data included), interface, and the sizes taken for dynamic axes."""
    known = _CONTENTS.get(graph)
    if known is None:
        known = _CONTENTS[graph] = _content(graph)
    return known


def _content(graph: Graph) -> str:
    digest = hashlib.sha256(repr(sorted(graph.opsets.items())).encode())
    digest.update(repr(sorted(graph.binding.shapes.items())).encode())
    model = graph.model
    for part in (model.graph.input, model.graph.output, model.graph.node, model.graph.initializer, model.functions):
        for message in part:
            digest.update(message.SerializeToString(deterministic=True))
    for tensor in graph.constants.values():
        if tensors.is_external(tensor):
            digest.update(np.ascontiguousarray(tensors.read(tensor, graph.folder)).view(np.uint8).data)
    return digest.hexdigest()


@lru_cache
def program() -> str:
    """Secateur's version, and SHA-256 of the source that computes: work on it must not find old results."""
    from exporter import __version__

    digest = hashlib.sha256(__version__.encode())
    package = Path(__file__).parents[1]
    for file in sorted([*package.rglob("*.py"), *(package.parent / "runtime").rglob("*.py")]):
        if "commands" not in file.parts:
            digest.update(file.read_bytes())
    return f"{__version__}:{digest.hexdigest()}"
