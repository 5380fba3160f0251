"""Write a file so that a reader never sees half of it: beside the target, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of ``target``; it is removed at the end unless it was renamed."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


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
        return "it is a folder"
    return "" if os.access(folder, os.W_OK) else f"no permission to write in {folder}"


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
