"""A Python process that has imported what it needs, and does what it is told in forks of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start_forking(program: str, folder: Path, **places: Path) -> subprocess.Popen[str]:
    """Start a program that prints ``ready``, and then answers lines with lines.

    Args:
        program: its source.
        folder: where it works.
        places: of the environment.
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        env={
            **os.environ, **{name: str(place) for name, place in places.items()},
            "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process
