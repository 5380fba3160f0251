"""Import what the user names: a Python file, or a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def import_place(place: str, prefix: str) -> Any:
    """Import a file, or a package from the current folder or where packages are installed.

    Args:
        place: ``file.py`` or ``package.module``.
        prefix: of the name that a file's module gets.

    Raises:
        Exception: whatever the code raises when it is imported.
    """
    file = Path(place).resolve()
    folder = str(file.parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:  # for what a file imports itself, as if it were run as a script
        sys.path.insert(0, folder)
    name = f"{prefix}_{file.stem}" if place.endswith(".py") else place
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]
    except Exception:
        sys.modules.pop(name, None)
        raise
