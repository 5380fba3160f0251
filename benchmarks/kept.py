"""Results that an interrupted run goes on from: what a call returned, kept under a key of all that it depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def once(folder: Path, name: str, key: str, work: Callable[[], Row]) -> Row:
    """What ``work`` returned in an earlier run with the same key, or returns now.

    A row with ``retry`` set is not kept: what ran out of time, or lacked something, may succeed another day.

    Args:
        folder: where results are kept; made if missing.
        name: of the file there, without its suffix.
        key: a hash of everything the result depends on.
        work: makes it.
    """
    file = folder / f"{name}.json"
    if file.is_file():
        known: Row = json.loads(file.read_text(encoding="utf-8"))
        if known.get("key") == key:
            return dict(known["row"])
    row = work()
    if not row.pop("retry", False):
        folder.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(".part")
        half.write_text(json.dumps({"key": key, "row": row}), encoding="utf-8")
        os.replace(half, file)  # noqa: PTH105  (Path.replace says the same)
    return row


def digest(*parts: Path | str) -> str:
    """Hash of files, of every ``.py`` file below folders, and of texts."""
    found = sha256()
    for part in parts:
        files = [part] if isinstance(part, Path) and part.is_file() else []
        if isinstance(part, Path) and part.is_dir():
            files = sorted(part.rglob("*.py"))
        for data in (f.read_bytes() for f in files) if isinstance(part, Path) else [part.encode()]:
            found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:24]


def source(*below: str) -> str:
    """Hash of Secateur's source, or of the packages and files of it that are named, relative to its root."""
    import exporter

    root = Path(exporter.__file__).parent.parent
    return digest(*(root / part for part in below or ("exporter", "runtime")))
