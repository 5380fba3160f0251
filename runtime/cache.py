"""A folder of the user's for measurements that need not be made twice."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """``SECATEUR_CACHE``, or where this system keeps caches."""
    given = os.environ.get("SECATEUR_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "secateur"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "secateur"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def read_cached(name: str) -> dict[str, Any] | None:
    """A document kept earlier; None where there is none that can be read."""
    try:
        document = json.loads((cache_folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def keep(name: str, document: dict[str, Any]) -> bool:
    """Keep a document under a name; a reader never sees half of it. False where the folder cannot be written."""
    folder = cache_folder()
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file)
        Path(temporary).replace(folder / f"{name}.json")
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        return False
    return True
