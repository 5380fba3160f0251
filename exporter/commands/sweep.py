"""``secateur sweep``: models by budgets by methods by devices, each job done once, and what is on the Pareto front."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import Progress, complain, deliver, say, write_to
from exporter.commands.options import add_json, command
from exporter.commands.reporting import add_report, write_report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from exporter.sweeps.driver import Progress as Done
    from exporter.sweeps.driver import Workers
    from exporter.sweeps.results import Row
    from exporter.sweeps.sheet import Sweep

_FAILED, _INTERRUPTED = 1, 130


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "sweep",
        run,
        "Make models with several methods and budgets, judge and time them, and show which nothing beats.",
    )
    parser.add_argument("sweep", metavar="SWEEP.yaml", type=Path, help="what to try; paths count from its folder")
    parser.add_argument("--explain", action="store_true", help="check, and show the commands; run nothing")
    parser.add_argument("--fresh", action="store_true", help="do everything again, also what was done before")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes at a time (a quarter of the processors); measurements run alone",
    )
    parser.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="NAME",
        help="this machine has what 'tag: NAME' asks for; repeatable",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster (HOST:PORT, auto; tags are its machines' resources), or one started here (local)",
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", type=Path, help="draw accuracy against latency, with the Pareto front"
    )
    add_json(parser)
    add_report(parser)
    parser.set_defaults(parsers=commands.choices)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.recipes.reading import folder_of
    from exporter.sweeps.driver import carry_out
    from exporter.sweeps.results import JSON_VERSION, notes_on, rows_json, rows_of
    from exporter.sweeps.sheet import read_sweep
    from exporter.sweeps.store import opened

    progress = Progress(options)
    with contextlib.chdir(folder_of(options.sweep, "a YAML file")):
        sweep = read_sweep(options.sweep, options.parsers)
        if options.explain:
            _explain(sweep, options)
            return 0
        try:
            with (
                opened(Path(sweep.folder)) as store,
                _workers(options) as workers,
            ):
                sweep = _possible(sweep, workers, progress.silent)
                found = carry_out(sweep, options.parsers, store, workers, options.fresh, lambda p: progress(_line(p)))
        except KeyboardInterrupt:
            complain(f"interrupted; what was done is kept in {sweep.folder}; the same command goes on from there")
            return _INTERRUPTED
        rows = rows_of(sweep, found)
    notes = notes_on(found, sweep)
    listed = rows_json(rows)
    _write(options, listed, notes, progress.silent)
    document = {"version": JSON_VERSION, "sweep": str(options.sweep), "rows": listed, "notes": notes}
    code = _FAILED if any(outcome.code for outcome in found.values()) else 0
    return deliver(options, lambda: document, lambda: _text(rows, notes), code)


def _text(rows: Mapping[str, Sequence[Row]], notes: Sequence[str]) -> str:
    """A table for each device, and what the reader should know."""
    from exporter.sweeps.results import table_text

    parts = [(f"{device}:\n" if device else "") + table_text(own) for device, own in rows.items()]
    parts += notes
    if any(row.front for own in rows.values() for row in own):
        parts.append("* on the Pareto front: no model of the same task is as good and cheaper, or as cheap and better")
    return "\n\n".join(parts)


def _write(options: argparse.Namespace, rows: list[dict[str, Any]], notes: list[str], silent: bool) -> None:
    """Write the plot and the report that were asked for."""
    if options.plot:
        from exporter.page.sweep import sweep_drawing

        drawing = sweep_drawing(options.sweep.name, rows)
        if drawing:
            write_to(str(options.plot), drawing, "the plot")
        elif not silent:
            complain("note: nothing was judged, so there is nothing to plot")
    if options.report:
        from exporter.page.sweep import sweep_page

        write_report(options, sweep_page(options.sweep.name, rows, notes))


def _workers(options: argparse.Namespace) -> AbstractContextManager[Workers]:
    """Who does the jobs.

    Raises:
        UsageError: options do not go together.
    """
    from exporter.errors import UsageError
    from exporter.sweeps.cluster import LOCAL, ray_workers
    from exporter.sweeps.local import local_workers, usual_jobs

    jobs = usual_jobs() if options.jobs is None else options.jobs
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: at least 1.")
    if options.ray is None:
        return local_workers(jobs, options.tag, options.fresh)
    if options.ray != LOCAL and (options.jobs is not None or options.tag):
        raise UsageError(
            "--jobs and --tag are of this machine; those of a cluster have what 'ray start --num-cpus N --resources "
            "'{\"NAME\": 1}'' gave them."
        )
    return ray_workers(options.ray, jobs, options.tag)


def _possible(sweep: Sweep, workers: Workers, silent: bool) -> Sweep:
    """The sweep without what no machine here can do, which is said.

    Raises:
        UsageError: nothing is left.
    """
    from exporter.errors import UsageError

    there = {
        tag: bool(workers.machines(tag)) for tag in {d.tag for d in sweep.devices} | {v.tag for v in sweep.variants}
    }
    lacking = sorted(tag for tag, found in there.items() if not found)
    left = replace(
        sweep,
        devices=tuple(d for d in sweep.devices if there[d.tag]),
        variants=tuple(v for v in sweep.variants if there[v.tag]),
    )
    for device in left.devices:
        kinds = len(workers.machines(device.tag))
        if kinds > 1:
            which = f"with the tag '{device.tag}'" if device.tag else "of the cluster (it has no tag)"
            raise UsageError(
                f"the device '{device.name}' may be any of the machines {which}, and these are of {kinds} kinds, whose "
                f"latencies cannot be compared. Give it a tag that only like ones have; {workers.tagging}."
            )
    if lacking and not left.variants:
        raise UsageError(f"every method asks for a tag ({', '.join(lacking)}) that no machine has; {workers.tagging}.")
    if lacking and not silent:
        out = [d.name for d in sweep.devices if d not in left.devices]
        out += sorted({v.method for v in sweep.variants if v not in left.variants})
        names = ", ".join(f"'{tag}'" for tag in lacking)
        complain(f"note: no machine has the tag {names}, so {', '.join(out)} is left out; {workers.tagging}")
    return left


def _explain(sweep: Sweep, options: argparse.Namespace) -> None:
    """Show every command, and which jobs were done before."""
    from exporter.recipes.running import command_line
    from exporter.sweeps.driver import jobs_of
    from exporter.sweeps.store import opened

    say(f"in {Path.cwd()}:")
    with opened(Path(sweep.folder), reading=True) as store:
        for job, done in jobs_of(sweep, options.parsers, store):
            state = "   # done before" if done and not options.fresh else ""
            tag = f" (needs '{job.tag}')" if job.tag else ""
            say(f"  {job.kind} {job.name}{tag}{state}")
            for step in job.steps:
                say(f"    {command_line(step)}")


def _line(done: Done) -> str:
    """What to say of a job."""
    from exporter.sweeps.results import outcome_text

    before = ", done before" if done.known else f", {done.outcome.seconds:.1f} s"
    words = {"make": "made", "eval": "judged", "time": "timed"}[done.job.kind]
    if done.outcome.code:
        words = f"not {words}"
    text = outcome_text(done.job.kind, done.outcome)
    return f"[{done.number}/{done.count}] {done.job.name}: {words}{text}{before}"
