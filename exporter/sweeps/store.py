"""The results of sweeps in one SQLite file: what came out of each job, by the content of all that decided it.

A transaction is on the disk before it counts, so the process may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import UsageError

NAME = "results.sqlite"

_APPLICATION = 0x53454341  # "SECA"
_VERSION = 1
_PATIENCE = 60.0
"""Seconds to wait for somebody who reads the file."""

_TABLE = """\
CREATE TABLE jobs (
    key TEXT NOT NULL, machine TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, code INTEGER NOT NULL,
    error TEXT NOT NULL, result TEXT NOT NULL, seconds REAL NOT NULL, at TEXT NOT NULL, PRIMARY KEY (key, machine)
)
"""


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        result: what it found; empty where it failed.
        seconds: it took.
        machine: fingerprint of where it ran, for what depends on that; "" for what does not.
        code: exit code; 0 where it succeeded.
        error: what was wrong, else "".
    """

    result: dict[str, Any]
    seconds: float
    machine: str = ""
    code: int = 0
    error: str = ""


class Store:
    """Outcomes by key.

    Attributes:
        file: the SQLite file.
    """

    def __init__(self, file: Path, base: sqlite3.Connection) -> None:
        self.file = file
        self._base = base

    def find(self, key: str, machines: Collection[str] | None = None) -> Outcome | None:
        """The newest outcome of a job; None where there is none.

        Args:
            key: of the job.
            machines: fingerprints of those it may have run on; None for any.
        """
        rows = self._base.execute(
            "SELECT result, seconds, machine, code, error FROM jobs WHERE key = ? ORDER BY at DESC", (key,)
        )
        row = next((r for r in rows if machines is None or r[2] in machines), None)
        if row is None:
            return None
        try:
            result = json.loads(row[0])
        except ValueError:
            return None
        return Outcome(result, *row[1:]) if isinstance(result, dict) else None

    def keep(self, key: str, kind: str, name: str, outcome: Outcome) -> None:
        """Keep an outcome, instead of an earlier one of the same job on the same machine."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._base.execute(
            "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key, outcome.machine, kind, name, outcome.code, outcome.error, json.dumps(outcome.result),
                outcome.seconds, at,
            ),
        )  # fmt: skip


@contextlib.contextmanager
def opened(folder: Path, reading: bool = False) -> Iterator[Store]:
    """The store of a folder; it is made where there is none.

    Args:
        folder: it is there.
        reading: whether nothing is to be written; else one process at a time has it.

    Raises:
        UsageError: another sweep uses the folder, or what is there cannot be used.
    """
    file = folder / NAME
    with contextlib.nullcontext() if reading else _held(folder):
        try:
            base = sqlite3.connect(file, timeout=_PATIENCE, isolation_level=None)
        except sqlite3.Error as error:
            raise UsageError(f"the store {file} cannot be opened: {error}.") from error
        try:
            with contextlib.closing(base):
                _prepare(file, base)
                yield Store(file, base)
        except sqlite3.Error as error:
            raise UsageError(
                f"{file} cannot be used as a store of results: {error}. Move it away; models that were made are kept."
            ) from error


def _prepare(file: Path, base: sqlite3.Connection) -> None:
    """Make the table of a new file.

    Raises:
        UsageError: it is something else.
    """
    base.execute("BEGIN IMMEDIATE")
    application, version = (base.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if not application and not base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        base.execute(_TABLE)
        base.execute(f"PRAGMA application_id = {_APPLICATION}")
        base.execute(f"PRAGMA user_version = {_VERSION}")
    elif (application, version) != (_APPLICATION, _VERSION):
        raise UsageError(f"{file} is no store of results of this version. Move it away, or name another 'folder'.")
    base.execute("COMMIT")


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder: jobs of two sweeps would write the same files.

    Raises:
        UsageError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another sweep is working in {folder}. Wait for it, or give this one another 'folder'."
            ) from None
        yield
    finally:
        os.close(handle)
