"""``FILE:PART``, as data files with several parts are named; nothing is opened, so that commands can ask at once."""

from __future__ import annotations

from pathlib import Path


def split_part(source: Path) -> tuple[Path, str]:
    """The file or folder of ``FILE:PART``, and the part; "" where none is named."""
    base, _, part = str(source).rpartition(":")
    return (Path(base), part) if base and not source.exists() and Path(base).exists() else (source, "")
