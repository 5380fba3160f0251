"""Run the steps of a recipe: each once, unless what it reads, its options or Secateur itself have changed.

The key of a step is the SHA-256 of all that. A record holds it from the start of a step, and what was made when it has
ended; so a run that was killed goes on with the step it was in, and within it where the key is the same.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from exporter.atomic import write_text
from exporter.calibration.cache import program
from exporter.errors import SecateurError
from exporter.recipes.steps import Recipe, Step, file_of
from runtime.model_files import digest_of

Run = Callable[[Sequence[str], bool], int]
"""Runs a command line, silently or not; the exit code."""

RECORDS = ".steps"


@dataclass(frozen=True)
class Done:
    """A step that has been done.

    Attributes:
        step: it.
        seconds: it took, when it ran.
        cached: whether it had been done before.
    """

    step: Step
    seconds: float
    cached: bool


class StepFailed(SecateurError):
    """A step ended with another exit code than 0."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def run_step(step: Step, recipe: Recipe, run: Run, fresh: bool = False, quiet: bool = False) -> Done:
    """Run a step, or find that it has been run.

    Args:
        step: one of the recipe's, or one of the measurements for its table.
        recipe: it.
        run: runs a command line.
        fresh: run it in any case.
        quiet: what the command prints is dropped.

    Raises:
        StepFailed: it ended with an error.
    """
    key = key_of(step)
    known = None if fresh else _record(step, recipe, key)
    if known is not None:
        return Done(step, known, True)
    record, asked = _path(step, recipe), _sum_of(_told([step]))
    if fresh or _read(record).get("asked", asked) != asked:
        _drop_scratch(step, recipe)  # of another start
    write_text(record, json.dumps({"version": 1, "key": key, "asked": asked}) + "\n")
    started = time.perf_counter()
    code = run([step.command, *step.arguments], quiet)
    seconds = time.perf_counter() - started
    if code:
        where = f":{step.line}: step {step.number} ({step.name})" if step.line else f": {step.command} for the table"
        raise StepFailed(
            f"{recipe.file}{where} ended with exit code {code}; steps before it are kept, and the same command goes on "
            f"from here. The step alone, in {Path.cwd()}:\n  {command_line(step)}",
            code,
        )
    made = {path: content(path) for path in step.writes if Path(path).exists() and not _scratch(path)}
    document = {"version": 1, "key": key, "asked": asked, "made": made, "seconds": seconds}
    write_text(record, json.dumps({**document, "command": command_line(step)}, indent=1) + "\n")
    _drop_scratch(step, recipe)
    return Done(step, seconds, False)


def is_done(step: Step, recipe: Recipe) -> bool:
    """Say whether a step need not be run again, as far as files that are there now tell."""
    return _record(step, recipe, key_of(step)) is not None


def command_line(step: Step) -> str:
    """A step as it is typed."""
    return shlex.join(["secateur", step.command, *step.arguments])


def _scratch(path: str) -> bool:
    return path.endswith(".checkpoint.pt")


def _drop_scratch(step: Step, recipe: Recipe) -> None:
    """Delete what serves to go on with a step after a kill, where the recipe gave it its name."""
    own = Path(recipe.folder, f"{step.number:02d}-{step.name}.checkpoint.pt")
    if any(Path(path) == own for path in step.writes):
        own.unlink(missing_ok=True)


def _path(step: Step, recipe: Recipe) -> Path:
    return Path(recipe.folder, RECORDS, f"{step.number:02d}-{step.name}.json")


def _record(step: Step, recipe: Recipe, key: str) -> float | None:
    """Seconds that a step took, where it has been done with this key and what it made is as it was; else None."""
    try:
        known = _read(_path(step, recipe))
        same = known["key"] == key and all(content(path) == digest for path, digest in known["made"].items())
        return float(known["seconds"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read(record: Path) -> dict[str, Any]:
    """What a record tells; nothing where there is none, or it is damaged."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def key_of(*steps: Step) -> str:
    """SHA-256 of what decides the result of steps in a row: commands, what they read, and Secateur's own source.

    What one of them makes for a later one follows from the rest.
    """
    return _sum_of([source_digest(), _told(steps)])


def _told(steps: Sequence[Step]) -> list[Any]:
    """What steps do with what: their commands, and the content of what they read and none before them makes."""
    made: set[str] = set()
    told: list[Any] = []
    for step in steps:
        read = {path: content(path) for path in step.reads if path not in made}
        told.append([step.command, list(step.arguments), read])
        made |= set(step.writes)
    return told


def _sum_of(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@lru_cache
def source_digest() -> str:
    """Secateur's version and source, the commands included: here their options count too."""
    digest = hashlib.sha256(program().encode())
    for file in sorted((Path(__file__).parents[1] / "commands").glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def content(text: str) -> str:
    """SHA-256 of the file or folder that a value names; "" where there is none.

    A model counts with the files of its weights; a folder by the names, sizes and times of what is in it.
    """
    path = file_of(text)
    if path is None:
        return ""
    if path.is_dir():
        digest = hashlib.sha256()
        for each in sorted(p for p in path.rglob("*") if p.is_file()):
            found = each.stat()
            digest.update(f"{each.relative_to(path)}:{found.st_size}:{found.st_mtime_ns};".encode())
        return digest.hexdigest()
    if path.suffix == ".onnx":
        return digest_of(path)  # with files beside it
    found = path.stat()
    return _digest(path.absolute(), found.st_size, found.st_mtime_ns)


@lru_cache(1024)
def _digest(path: Path, _size: int, _changed: int) -> str:
    """Data are read by many steps, and hashed once for as long as neither size nor time changes."""
    return digest_of(path)
