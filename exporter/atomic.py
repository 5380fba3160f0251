"""Write a file so that a reader never sees half of it: beside the target, flushed, then renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_MOMENT = 5.0
"""Seconds."""


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of ``target``; it is removed at the end unless it was renamed.

    It is locked meanwhile, which tells it from those that a killed process left behind; these are removed.
    """
    _sweep(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        _lock(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def _sweep(target: Path) -> None:
    """Remove temporary files for ``target`` that nobody holds and that are older than a moment."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < _MOMENT:
                continue  # it may have been made just now, and not be locked yet
            handle = os.open(left, os.O_RDWR)
            try:
                if _lock(handle):
                    left.unlink()
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed, or the process ends; False where another has it, or nobody can."""
    try:
        import fcntl
    except ImportError:
        return False  # Windows: nothing is swept there
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; it replaces ``target`` if the block succeeds, and goes if it fails.

    Raises:
        OSError: the folder cannot be written, or the disk is full. ``target`` is as it was.
    """
    with beside(target) as temporary:
        yield temporary
        put_in_place(temporary, target)


def put_in_place(temporary: Path, target: Path) -> None:
    """Flush a file to the disk and give it its final name."""
    flush(temporary)
    temporary.replace(target)
    flush(target.parent)


def obstacle(target: Path) -> str:
    """Why no file can be written there, as far as can be told beforehand; empty where one can."""
    folder = target.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if target.is_dir():
        return "it is a folder; name a file"
    if special(target):
        return "it is a pipe or a device"
    return "" if os.access(folder, os.W_OK) else f"no permission to write in {folder}"


def special(target: Path) -> bool:
    """Whether something is there that must not be replaced by a file: a pipe or a device, such as /dev/null."""
    return target.exists() and not target.is_file() and not target.is_dir()


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Ask the system to put a file, or a folder's entries, on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
