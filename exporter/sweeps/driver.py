"""Carry out a sweep: every job once, in the order in which they depend on each other, whoever does them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.errors import GoalError, ModelError
from exporter.recipes.running import content, key_of
from exporter.recipes.steps import Parsers
from exporter.recipes.table import size_and_macs
from exporter.sweeps.jobs import CRASHED, Job, judging, making, timing
from exporter.sweeps.sheet import Sweep
from exporter.sweeps.store import Outcome, Store

FINAL = (0, GoalError.exit_code, ModelError.exit_code)
"""Exit codes after which a job is not done again: it succeeded, or cannot. What else goes wrong may not next time."""


@dataclass(frozen=True)
class Workers:
    """Who does the jobs.

    Attributes:
        start: begins one; it is known to be able to run somewhere.
        machines: fingerprints of the machines that have a tag.
        tagging: how a machine is given a tag.
        apart: whether jobs that want a machine alone wait until all others are done, because there is only one.
    """

    start: Callable[[Job], Future[Outcome]]
    machines: Callable[[str], Collection[str]]
    tagging: str
    apart: bool


@dataclass(frozen=True)
class Progress:
    """What a listener hears.

    Attributes:
        job: that is done.
        outcome: what came of it.
        known: whether it had been done before.
        number, count: how many are done, of how many.
    """

    job: Job
    outcome: Outcome
    known: bool
    number: int
    count: int


Outcomes = Mapping[tuple[str, str], Outcome]
"""By kind and name of a job."""


def carry_out(
    sweep: Sweep, parsers: Parsers, store: Store, workers: Workers, fresh: bool, say: Callable[[Progress], None]
) -> Outcomes:
    """Do what is not done yet.

    Args:
        sweep: it; what no machine can do is left out of it.
        parsers: of the commands, by name.
        store: where outcomes are kept.
        workers: who does the jobs.
        fresh: do everything again.
        say: told of every job that is done.
    """
    found: dict[tuple[str, str], Outcome] = {}
    made = {v.name: v for v in sweep.variants}
    ready = deque(judging(s.name, s.recipe, s.recipe.model, parsers) for s in sweep.subjects)
    ready += (making(v) for v in sweep.variants)
    later: deque[Job] = deque()
    running: dict[Future[Outcome], tuple[Job, str]] = {}
    count = len(ready) + len(sweep.variants) * (1 + len(sweep.devices))

    def finish(job: Job, outcome: Outcome, known: bool) -> None:
        nonlocal count
        found[job.kind, job.name] = outcome
        if job.kind == "make":
            variant = made[job.name]
            if outcome.code:
                count -= 1 + len(sweep.devices)
            else:
                ready.append(judging(variant.name, variant.recipe, variant.model, parsers))
                ready.extend(timing(variant.subject, variant, device, parsers) for device in sweep.devices)
        say(Progress(job, outcome, known, len(found), count))

    while ready or later or running:
        while ready:
            job = ready.popleft()
            key = key_of(*job.steps)
            known = None if fresh else _known(job, key, store, workers.machines(job.tag))
            if known is not None:
                finish(job, known, True)
            elif workers.apart and job.alone:
                later.append(job)
            else:
                running[workers.start(job)] = (job, key)
        if not running and later:
            job = later.popleft()
            running[workers.start(job)] = (job, key_of(*job.steps))
        if running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, key = running.pop(future)
                outcome = _outcome(job, future)
                store.keep(key, job.kind, job.name, outcome)
                finish(job, outcome, False)
    return found


def jobs_of(sweep: Sweep, parsers: Parsers, store: Store) -> list[tuple[Job, bool]]:
    """All jobs, and whether each was done before, on any machine, as far as files that are there now tell."""
    jobs = [judging(s.name, s.recipe, s.recipe.model, parsers) for s in sweep.subjects]
    for variant in sweep.variants:
        jobs += [making(variant), judging(variant.name, variant.recipe, variant.model, parsers)]
        jobs += [timing(variant.subject, variant, device, parsers) for device in sweep.devices]
    return [(job, _known(job, key_of(*job.steps), store, None) is not None) for job in jobs]


def _known(job: Job, key: str, store: Store, machines: Collection[str] | None) -> Outcome | None:
    """What came of a job that need not be done again; None where it has to be done."""
    outcome = store.find(key, machines if job.kind == "time" else None)
    if outcome is None or outcome.code not in FINAL:
        return None
    there = job.kind != "make" or outcome.code or content(job.made) == outcome.result.get("digest")
    return outcome if there else None


def _outcome(job: Job, future: Future[Outcome]) -> Outcome:
    """What came of a job, with what the table says of the model it made."""
    try:
        outcome = future.result()
        if job.kind != "make" or outcome.code:
            return outcome
        size, macs = size_and_macs(Path(job.made))
        return replace(outcome, result={"model": job.made, "digest": content(job.made), "bytes": size, "macs": macs})
    except Exception as error:  # of one job: the others go on
        return Outcome({}, 0.0, "", CRASHED, f"{type(error).__name__}: {error}")
