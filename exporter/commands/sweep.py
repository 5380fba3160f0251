"""``secateur sweep``: models by budgets by methods by devices, each job done once, and what is on the Pareto front."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.console import write_json, write_to
from exporter.commands.options import add_json, command
from exporter.commands.reporting import add_report, check_report, write_report

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from exporter.sweeps.driver import Progress, Workers
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
    from exporter.errors import UsageError
    from exporter.sweeps.driver import carry_out
    from exporter.sweeps.results import notes_on, rows_json, rows_of, table_text
    from exporter.sweeps.sheet import read_sweep
    from exporter.sweeps.store import opened

    _check(options)
    file = options.sweep.absolute()
    if not file.is_file():
        raise UsageError(
            f"{options.sweep} is a folder; name a YAML file." if file.is_dir() else f"{options.sweep}: no such file."
        )
    with contextlib.chdir(file.parent):
        sweep = read_sweep(options.sweep, options.parsers)
        if options.explain:
            _explain(sweep, options)
            return 0
        try:
            with (
                opened(Path(sweep.folder)) as store,
                _workers(options) as workers,
            ):
                sweep = _possible(sweep, workers, options)
                found = carry_out(sweep, options.parsers, store, workers, options.fresh, lambda p: _say(options, p))
        except KeyboardInterrupt:
            print(
                f"secateur: interrupted; what was done is kept in {sweep.folder}; the same command goes on from there",
                file=sys.stderr,
            )
            return _INTERRUPTED
        rows = rows_of(sweep, found)
    _write(options, rows_json(rows), notes_on(found, sweep))
    if options.json != "-":
        for number, (device, own) in enumerate(rows.items()):
            print("\n" * (number > 0) + (f"{device}:\n" if device else "") + table_text(own))
        for note in notes_on(found, sweep):
            print(f"\n{note}")
        if any(row.front for own in rows.values() for row in own):
            print("\n* on the Pareto front: no model of the same task is as good and cheaper, or as cheap and better")
    return _FAILED if any(outcome.code for outcome in found.values()) else 0


def _write(options: argparse.Namespace, rows: list[dict[str, Any]], notes: list[str]) -> None:
    """Write the files that were asked for."""
    from exporter.sweeps.results import JSON_VERSION

    if options.json:
        write_json(options.json, {"version": JSON_VERSION, "sweep": str(options.sweep), "rows": rows, "notes": notes})
    if options.plot:
        from exporter.page.sweep import sweep_drawing

        drawing = sweep_drawing(options.sweep.name, rows)
        if drawing:
            write_to(str(options.plot), drawing, "the plot")
        else:
            print("note: nothing was judged, so there is nothing to plot", file=sys.stderr)
    if options.report:
        from exporter.page.sweep import sweep_page

        write_report(options, sweep_page(options.sweep.name, rows, notes))


def _check(options: argparse.Namespace) -> None:
    """Refuse files that could not be written, before the work.

    Raises:
        UsageError: one cannot.
    """
    from exporter.atomic import obstacle
    from exporter.errors import UsageError

    check_report(options)
    for name, path in (("--plot", options.plot), ("--json", options.json)):
        why = obstacle(Path(path)) if path is not None and path != "-" else ""
        if why:
            raise UsageError(f"{name} {path} cannot be written: {why}.")


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


def _possible(sweep: Sweep, workers: Workers, options: argparse.Namespace) -> Sweep:
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
    if lacking and not options.quiet:
        out = [d.name for d in sweep.devices if d not in left.devices]
        out += sorted({v.method for v in sweep.variants if v not in left.variants})
        names = ", ".join(f"'{tag}'" for tag in lacking)
        print(
            f"note: no machine has the tag {names}, so {', '.join(out)} is left out; {workers.tagging}", file=sys.stderr
        )
    return left


def _explain(sweep: Sweep, options: argparse.Namespace) -> None:
    """Show every command, and which jobs were done before."""
    from exporter.recipes.running import command_line
    from exporter.sweeps.driver import jobs_of
    from exporter.sweeps.store import opened

    print(f"in {Path.cwd()}:")
    with opened(Path(sweep.folder), reading=True) as store:
        for job, done in jobs_of(sweep, options.parsers, store):
            state = "   # done before" if done and not options.fresh else ""
            tag = f" (needs '{job.tag}')" if job.tag else ""
            print(f"  {job.kind} {job.name}{tag}{state}")
            for step in job.steps:
                print(f"    {command_line(step)}")


def _say(options: argparse.Namespace, done: Progress) -> None:
    """A line for each job."""
    from exporter.sweeps.results import outcome_text

    if not options.quiet:
        before = ", done before" if done.known else f", {done.outcome.seconds:.1f} s"
        words = {"make": "made", "eval": "judged", "time": "timed"}[done.job.kind]
        if done.outcome.code:
            words = f"not {words}"
        text = outcome_text(done.job.kind, done.outcome)
        print(f"[{done.number}/{done.count}] {done.job.name}: {words}{text}{before}", file=sys.stderr, flush=True)
