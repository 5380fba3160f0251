"""Steps of a long calculation, kept as they are done: a process that was killed leaves them to the one after it.

A journal is a folder in the cache, named after all that decides the calculation, with a file for each step. Steps that
are in it are not computed again; a damaged file counts as none. The journals of a run go when its result is written,
those of runs that nobody took up again after a week, or where others need the room.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from exporter.calibration.cache import FAULTS, Cache, read_entry, write_entry

Values = Mapping[str, NDArray[Any]]

SHARE = 0.01
"""What keeping a step may take at most, of the time that computing it took: else it is computed again."""

LARGEST = 16 << 30
"""Bytes that all journals may take together."""

_KEPT_SECONDS = 7 * 24 * 3600.0
_FILE_SECONDS, _BYTES_PER_SECOND = 2e-3, 4e8
"""What writing takes."""

_FOLDER = "journals"
_LEFT_FREE = 1 << 30
"""Bytes of the disk that no journal takes: the result has to be written there."""


@dataclass
class Journal:
    """The steps of one calculation.

    Attributes:
        cache: whose folder it is in, and which is told what the reader should know; None keeps nothing.
        key: all that decides the calculation; "" where nothing is kept.
        reused: number of steps that an earlier run had done.
    """

    cache: Cache | None = None
    key: str = ""
    reused: int = 0

    def known(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of a step that was done before; None where it has to be done."""
        folder = self._folder()
        path = folder / _file(name) if folder is not None else None
        if self.cache is None or path is None or not path.exists():
            return None
        try:
            found = read_entry(path, f"{self.key} {name}")
        except FAULTS:
            return None
        if path.name not in self.cache.journals.get(path.parent, ()):
            self.reused += 1
            self.cache.resumed += 1
        return found

    def keep(self, name: str, arrays: Values, seconds: float) -> None:
        """Keep a step, if that takes little of the time it took.

        Args:
            name: of the step.
            arrays: its result.
            seconds: what it took.
        """
        folder = self._folder()
        size = sum(values.nbytes for values in arrays.values())
        if folder is None or self.cache is None or _FILE_SECONDS + size / _BYTES_PER_SECOND > SHARE * seconds:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own = self.cache.journals.setdefault(folder, set())
            if _room(folder.parent, size, self.cache.journals):
                write_entry(folder / _file(name), f"{self.key} {name}", arrays, flushed=False)
                own.add(_file(name))
                return
            why = "there is no room for it"
        except OSError as error:
            why = error.strerror or str(error)
        note = f"a run that is killed will not go on from where it was; {folder.parent}: {why}"
        if note not in self.cache.notes:
            self.cache.notes.append(note)

    def remember(self, name: str, make: Callable[[], Values]) -> Values:
        """The arrays of a step, computed where they are not known."""
        found = self.known(name)
        if found is not None:
            return found
        started = time.perf_counter()
        made = make()
        self.keep(name, made, time.perf_counter() - started)
        return made

    def _folder(self) -> Path | None:
        if self.cache is None or self.cache.folder is None or not self.key:
            return None
        return self.cache.folder / _FOLDER / self.key


def open_journal(cache: Cache | None, key: Callable[[], str]) -> Journal:
    """The journal of a calculation; one that keeps nothing where there is no folder for it.

    Args:
        cache: where it is.
        key: makes its key, as ``cache.key_of`` does; asked for only where there is a folder.
    """
    if cache is None or cache.folder is None:
        return Journal()
    journal = Journal(cache, key())
    folder = journal._folder()
    if folder is not None and folder.is_dir():
        cache.journals.setdefault(folder, set())
        with suppress(OSError):
            folder.touch()  # it is in use
    return journal


def remove(cache: Cache, *journals: Journal) -> None:
    """Remove journals whose results are kept elsewhere by now; by default all that this run has opened."""
    for folder in [j._folder() for j in journals] if journals else list(cache.journals):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            cache.journals.pop(folder, None)


def _file(name: str) -> str:
    return f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"


def _room(folder: Path, size: int, own: Container[Path]) -> bool:
    """Make room for so many bytes beside the journals there are; False where there is none.

    Args:
        folder: where the journals are.
        size: how many.
        own: journals in use.
    """
    found = []
    for journal in folder.iterdir():
        with suppress(OSError):
            taken = sum(entry.stat().st_size for entry in journal.iterdir())
            found.append((journal.stat().st_mtime, taken, journal))
    total = size + sum(taken for _, taken, _ in found)
    for last, taken, journal in sorted(found):
        old = time.time() - last > _KEPT_SECONDS
        if journal not in own and (old or total > LARGEST):
            shutil.rmtree(journal, ignore_errors=True)
            total -= taken
    return total <= LARGEST and shutil.disk_usage(folder).free > size + _LEFT_FREE
