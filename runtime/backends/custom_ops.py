"""Libraries of custom operators, which only whoever starts the program names: loading one runs its code.

Every session of ONNX Runtime knows their operators, in child processes too, so their names are in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import BadRequest

VARIABLE = "SECATEUR_CUSTOM_OPS"
"""Holds their paths, separated as in ``PATH``."""


def use_custom_ops(libraries: Sequence[str | os.PathLike[str]]) -> None:
    """Let sessions that are opened from now on know the operators of these shared libraries, and of no others.

    Raises:
        BadRequest: there is no such file.
    """
    paths = [Path(library).absolute() for library in libraries]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise BadRequest(f"--custom-ops {missing}: there is no such file.")
    os.environ[VARIABLE] = os.pathsep.join(map(str, paths))


def custom_ops() -> list[Path]:
    """The libraries that were named."""
    return [Path(library) for library in os.environ.get(VARIABLE, "").split(os.pathsep) if library]


def register_custom_ops(settings: Any) -> None:
    """Register them for a session.

    Args:
        settings: ``onnxruntime.SessionOptions``.

    Raises:
        BadRequest: ONNX Runtime cannot load one of them.
    """
    for library in custom_ops():
        try:
            settings.register_custom_ops_library(str(library))
        except Exception as error:  # the binding raises unrelated classes
            raise BadRequest(f"--custom-ops {library}: ONNX Runtime cannot load it: {error}") from error
