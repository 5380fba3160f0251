"""Arrays that may be more than the memory holds: beyond a limit they lie in temporary files."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import numpy as np

from exporter.atomic import scratch
from exporter.errors import ModelError
from exporter.tensors import Array

MEMORY = 5 << 27
"""Bytes that a store holds in memory; beyond, they go to temporary files."""

_PLAIN = "fiub"
"""Kinds of arrays that files hold."""


class Store:
    """Arrays by tensor name and batch: in memory up to a limit, in files beyond, which go when the store goes.

    Attributes:
        arrays: by name, for each batch the array or where it is.
    """

    def __init__(self, limit: int) -> None:
        """``limit``: bytes to hold in memory."""
        self.arrays: dict[str, list[Array | Path]] = {}
        self._limit, self._held, self._count = limit, 0, 0
        self._bytes: dict[str, int] = {}
        self._files: dict[str, list[Path]] = {}
        self._folder: Path | None = None

    def array(self, name: str, batch: int) -> Array:
        """The array of a batch."""
        values = self.arrays[name][batch]
        return np.load(values, allow_pickle=False) if isinstance(values, Path) else values

    def add(self, name: str, values: Array) -> None:
        """Add the array of the next batch.

        Raises:
            ModelError: there is no room for it on the disk.
        """
        size = getattr(values, "nbytes", 0)  # a sequence of tensors has no size, and stays in memory
        here = self.arrays.setdefault(name, [])
        if size and self._held + size > self._limit and values.dtype.kind in _PLAIN:
            here.append(self._spill(name, values))
            return
        self._held += size
        self._bytes[name] = self._bytes.get(name, 0) + size
        here.append(values)

    def keep(self, names: set[str]) -> None:
        """Forget all others."""
        for name in [n for n in self.arrays if n not in names]:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Forget a tensor, if it is there."""
        self.arrays.pop(name, None)
        self._held -= self._bytes.pop(name, 0)
        for path in self._files.pop(name, ()):
            path.unlink()

    def _spill(self, name: str, values: Array) -> Path:
        if self._folder is None:
            stack = contextlib.ExitStack()
            self._folder = stack.enter_context(scratch())
            weakref.finalize(self, stack.close)
        path = self._folder / f"{self._count}.npy"
        self._count += 1
        try:
            np.save(path, values)
        except OSError as error:
            raise ModelError(
                f"activations of the model do not fit into {self._folder}: {error}.\nUse fewer samples, or set TMPDIR "
                "to a folder with more room."
            ) from error
        self._files.setdefault(name, []).append(path)
        return path


class Shelf(MutableMapping[str, Array]):
    """Arrays by name, as a ``Store`` holds them: read anew each time where they lie in files."""

    def __init__(self, limit: int = MEMORY) -> None:
        """``limit``: bytes to hold in memory."""
        self._store = Store(limit)

    def __getitem__(self, name: str) -> Array:
        return self._store.array(name, 0)

    def __setitem__(self, name: str, values: Array) -> None:
        self._store.drop(name)
        self._store.add(name, values)

    def __delitem__(self, name: str) -> None:
        if name not in self._store.arrays:
            raise KeyError(name)
        self._store.drop(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.arrays)

    def __len__(self) -> int:
        return len(self._store.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._store.arrays

    def __ior__(self, others: Mapping[str, Array]) -> Shelf:
        self.update(others)
        return self

    def part(self, mark: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """Take arrays under names that begin with a mark; returns them under their own."""
        self.update({mark + name: values for name, values in arrays.items()})
        return self.under(mark)

    def under(self, mark: str) -> Mapping[str, Array]:
        """All arrays that are here under names that begin with a mark, under their own."""
        return _Part(self, mark, tuple(name.removeprefix(mark) for name in self if name.startswith(mark)))

    def file(self, name: str) -> Path | None:
        """The ``.npy`` an array lies in; None for one in memory."""
        where = self._store.arrays[name][0]
        return where if isinstance(where, Path) else None


class _Part(Mapping[str, Array]):
    def __init__(self, shelf: Shelf, mark: str, names: tuple[str, ...]) -> None:
        self._shelf, self._mark, self._names = shelf, mark, names

    def __getitem__(self, name: str) -> Array:
        return self._shelf[self._mark + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
