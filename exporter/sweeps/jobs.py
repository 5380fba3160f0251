"""The jobs of a sweep: make a model, judge it, time it against its original; each is steps of a recipe."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

from exporter.recipes.processes import run_command
from exporter.recipes.running import RECORDS, StepFailed, run_step
from exporter.recipes.steps import Parsers, Recipe, Step
from exporter.recipes.table import measurement
from exporter.sweeps.sheet import Device, Subject, Variant
from exporter.sweeps.store import Outcome
from exporter.sweeps.turns import turn
from runtime.environment import environment, fingerprint

_MEASURING = ("align", "bench", "compare", "profile", "advise")
"""Commands that time something."""
CRASHED = 70
"""Exit code of what ended without a word of its own about it: killed, out of memory, a mistake of ours."""

_PROMPT = "$ secateur "
_TOLD = 400
"""Letters of an error that are kept."""


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        kind: ``make``, ``eval`` or ``time``.
        name: what it is called.
        recipe: it is of.
        steps: in order.
        alone: whether nothing else may run on its machine meanwhile.
        tag: what its machine has to have; "" for any.
    """

    kind: str
    name: str
    recipe: Recipe
    steps: tuple[Step, ...]
    alone: bool
    tag: str

    @property
    def made(self) -> str:
        """The model that it makes; "" where it makes none."""
        return next((step.output for step in reversed(self.steps) if step.output), "")

    @property
    def log(self) -> Path:
        """What its commands say."""
        name = "make" if self.kind == "make" else self.steps[-1].name
        return Path(self.recipe.folder, f"{name}.log")


def making(variant: Variant) -> Job:
    """The job that makes a model."""
    steps = variant.recipe.steps
    return Job("make", variant.name, variant.recipe, steps, any(map(_measures, steps)), variant.tag)


def judging(name: str, recipe: Recipe, model: str, parsers: Parsers) -> Job:
    """The job that judges a model, by what its recipe says."""
    assert recipe.evaluate is not None
    target = Path(recipe.folder, RECORDS, "eval.json")
    step = replace(measurement("eval", recipe.evaluate, recipe.model, model, target, parsers), name="eval")
    return Job("eval", name, recipe, (step,), False, "")


def timing(subject: Subject, variant: Variant, device: Device, parsers: Parsers) -> Job:
    """The job that times a model against its original."""
    recipe, name = variant.recipe, f"time-{device.name}"
    target = Path(recipe.folder, RECORDS, f"{name}.json")
    given = subject.timings[device.name]
    step = replace(measurement("compare", given, recipe.model, variant.model, target, parsers), name=name)
    return Job("time", f"{variant.name} on {device.name}", recipe, (step,), True, device.tag)


def _measures(step: Step) -> bool:
    """Whether a step times something, and what it makes depends on that."""
    return step.command in _MEASURING or any(a.startswith("--latency=") for a in step.arguments)


def perform(job: Job, fresh: bool, stop: Callable[[], bool] = lambda: False, threads: int = 0) -> Outcome:
    """Do a job in the working directory, in its turn.

    Args:
        job: it.
        fresh: do it in any case; else steps that have been done and whose files are as they were are not repeated.
        stop: asked now and then whether to end early.
        threads: for linear algebra, where other jobs run beside it; 0 for as many as there are.

    Raises:
        Stopped: it was still waiting for its turn then.
    """
    Path(job.recipe.folder, RECORDS).mkdir(parents=True, exist_ok=True)
    where = here() if job.kind == "time" else ""
    with turn(job.alone, stop), job.log.open("wb") as log:
        started = time.perf_counter()
        run = partial(_logged, log=log, stop=stop, threads=0 if job.alone else threads)
        try:
            for step in job.steps:
                # a record does not say on which machine a time was taken; the store does
                run_step(step, job.recipe, run, fresh or job.kind == "time", quiet=True)
        except StepFailed as failed:
            return _failed(job, failed.exit_code, time.perf_counter() - started, where)
        seconds = time.perf_counter() - started
    return Outcome(_RESULTS[job.kind](job), seconds, where)


def _logged(line: Sequence[str], quiet: bool, log: IO[bytes], stop: Callable[[], bool], threads: int) -> int:
    log.write(f"{_PROMPT}{shlex.join(line)}\n".encode())
    log.flush()
    return run_command(line, quiet, log, stop, threads)


def _failed(job: Job, code: int, seconds: float, where: str) -> Outcome:
    """A failure with what the command said last; one that it did not explain itself is no final answer."""
    said = job.log.read_text(encoding="utf-8", errors="replace").split(_PROMPT)[-1].strip()
    _, explained, words = said.rpartition("secateur: ")
    words = words if explained else said.splitlines()[-1] if said else ""
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    step = "" if job.kind != "make" else f"; {job.log} has the rest"
    return Outcome({}, seconds, where, code if explained else CRASHED, f"{ended}: {words[:_TOLD]}{step}")


def _judged(job: Job) -> dict[str, Any]:
    found = _report(job)
    return {key: found[key] for key in ("metric", "value", "standard_error", "better", "samples")}


def _timed(job: Job) -> dict[str, Any]:
    found = _report(job)
    return {
        "ratio": found["ratio"],
        "verdict": found["verdict"],
        "first_s": statistics.median(found["first"]["samples_s"]),
        "other_s": statistics.median(found["other"]["samples_s"]),
        "cautions": found["flags"],
        "processor": environment()["processor"],
        "host": platform.node(),
    }


def _report(job: Job) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(Path(job.steps[-1].writes[0]).read_text(encoding="utf-8"))
    return found


_RESULTS: dict[str, Callable[[Job], dict[str, Any]]] = {"make": lambda _: {}, "eval": _judged, "time": _timed}


@lru_cache
def here() -> str:
    """The fingerprint of this machine: with another one times cannot be compared. Counts NVIDIA's GPUs (Linux)."""
    cards = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            cards += [line.split()[1:] for line in file.read_text().splitlines() if line.startswith("Model:")]
    return fingerprint(*cards)
