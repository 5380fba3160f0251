"""The files a job needs, and those it makes, between machines that share no disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.atomic import replacing
from exporter.errors import UsageError
from exporter.recipes.steps import file_of
from exporter.sweeps.jobs import Job
from runtime.model_files import weight_files

Contents = NDArray[np.uint8]


def needed(job: Job) -> tuple[list[str], list[str]]:
    """Files that have to be there before a job begins.

    Returns:
        Those beneath the working directory, which travel, and those named by an absolute path, which do not.

    Raises:
        UsageError: one is named by a path that leads out of the working directory.
    """
    made: set[str] = set()
    found: dict[str, None] = {}
    for step in job.steps:
        for text in step.reads:
            path = None if text in made else file_of(text)
            if path is not None:
                found |= dict.fromkeys(map(str, _parts(path)))
        made |= set(step.writes)
    for name in (*found, job.recipe.folder):
        if not Path(name).is_absolute() and ".." in Path(name).parts:
            raise UsageError(
                f"{name} leads out of {Path.cwd()}; on a cluster, what a sweep reads and writes lies beneath its "
                "folder, or has an absolute path and is there on every machine."
            )
    return [p for p in found if not Path(p).is_absolute()], [p for p in found if Path(p).is_absolute()]


def _parts(path: Path) -> list[Path]:
    """The files of a folder, and those of a model's weights."""
    if path.is_dir():
        return [each for each in sorted(path.rglob("*")) if each.is_file()]
    weights = [path.parent / file.name for file in weight_files(path)] if path.suffix == ".onnx" else []
    return [path, *weights]


def read(path: str) -> Contents:
    """A file's bytes."""
    return np.fromfile(path, np.uint8)


def lay_out(path: str, contents: Contents) -> None:
    """Write a file, at once or not at all, with the folders it lies in."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        contents.tofile(temporary)


def made(folder: str, before: Collection[str]) -> dict[str, Contents]:
    """The files of a folder, except those that were there before."""
    files = (str(path) for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {path: read(path) for path in files if path not in before}
