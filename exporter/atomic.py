"""Write a file so that a reader never sees half of it: beside the target, flushed, then renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_MOMENT = 5.0
"""Seconds."""


@contextlib.contextmanager
def beside(target: Path, suffix: str = ".tmp", last: Callable[[Path], None] = lambda _: None) -> Iterator[Path]:
    """Yield a temporary file in the folder of ``target``; it is removed at the end unless it was renamed.

    It is locked meanwhile, which tells it from those that a killed process left behind; these are removed.

    Args:
        target: the file to be written in the end.
        suffix: tells kinds of temporary files apart.
        last: called with each that was left behind, before it goes.
    """
    sweep(target.parent, f".{glob.escape(target.name)}.*{suffix}", last)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=suffix, dir=target.parent)
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


def sweep(folder: Path, pattern: str, last: Callable[[Path], None] = lambda _: None) -> None:
    """Remove temporary files and folders that nobody holds and that are older than a moment.

    Args:
        folder: where they are.
        pattern: of their names.
        last: called with each before it goes.
    """
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):
            about = left.lstat()
            if time.time() - about.st_mtime < _MOMENT or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
                continue  # it may have been made just now, and not be locked yet; or it is another user's
            handle = _open(left)
            try:
                if _lock(handle):
                    last(left)
                    shutil.rmtree(left) if stat.S_ISDIR(about.st_mode) else left.unlink()
            finally:
                os.close(handle)


def _open(path: Path) -> int:
    return os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | getattr(os, "O_NOFOLLOW", 0))


@contextlib.contextmanager
def scratch(target: Path | None = None) -> Iterator[Path]:
    """Yield a private folder that is removed at the end.

    Like a temporary file it is locked meanwhile, and what killed processes left behind is removed first.

    Args:
        target: a file that is to come from there, which needs a folder on the same disk; None for the system's
            temporary folder (TMPDIR).
    """
    place = Path(tempfile.gettempdir()) if target is None else target.parent
    prefix = "secateur-" if target is None else f".{target.name}."
    sweep(place, f"{glob.escape(prefix)}*.tmp")
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=place))
    handle = None if os.name == "nt" else _open(folder)  # Windows cannot open folders
    try:
        if handle is not None:
            _lock(handle)
        yield folder
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


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
