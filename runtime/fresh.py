"""Functions of this package called in a fresh Python process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def own_environment() -> dict[str, str]:
    """The environment in which a Python process finds these very packages, installed or not."""
    home = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH", "")) if p)}


def call_fresh(
    module: str, function: str, arguments: list[str], seconds: float, variables: Mapping[str, str] | None = None
) -> None:
    """Call ``module.function(*arguments)`` in a fresh process.

    Args:
        module: its name.
        function: its name; what it returns is lost.
        arguments: strings.
        seconds: time limit.
        variables: of the environment, beside those of this process.

    Raises:
        OSError: the process does not start.
        subprocess.CalledProcessError: it failed; ``stderr`` holds what it said.
        subprocess.TimeoutExpired: it took too long, and was ended.
    """
    program = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**own_environment(), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=True,
    )
