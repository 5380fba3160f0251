"""``secateur run``: the steps of a recipe, checked first, cached by content, with one table at the end."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from exporter.commands.console import Progress, deliver, say
from exporter.commands.options import add_json, command
from exporter.commands.reporting import add_report, write_report
from exporter.recipes.processes import run_command as _command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "run", run, "Run the steps of a recipe: any commands, from a YAML file, each only where it is needed."
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", type=Path, help="the steps; paths count from its folder")
    parser.add_argument("--explain", action="store_true", help="check, and show what would run; run nothing")
    parser.add_argument("--fresh", action="store_true", help="run every step, also those that were done before")
    add_json(parser)
    add_report(parser)
    parser.set_defaults(parsers=commands.choices)


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from exporter.recipes.reading import folder_of
    from exporter.recipes.running import command_line, is_done, run_step
    from exporter.recipes.steps import read_recipe
    from exporter.recipes.table import measurements, rows_of, table_json, table_text
    from runtime.steps import Count

    folder = folder_of(options.recipe, "a recipe")
    with contextlib.chdir(folder):
        recipe = read_recipe(options.recipe, options.parsers)
        if options.explain:
            say(f"in {folder}:")
            for step in recipe.steps:
                state = "" if options.fresh or not is_done(step, recipe) else "   # done before"
                say(f"  {command_line(step)}{state}")
            return 0
        Path(recipe.folder, ".steps").mkdir(parents=True, exist_ok=True)
        steps = []
        for step in recipe.steps:
            makes = f" -> {step.output}" if step.output else ""
            _say(options, f"[{step.number}/{len(recipe.steps)}] {step.name}{makes}")
            done = run_step(step, recipe, _command, options.fresh, options.quiet or options.json == "-")
            _say(options, f"    {'done before, in' if done.cached else 'took'} {done.seconds:.1f} s\n")
            steps.append({
                "number": step.number, "name": step.name, "command": command_line(step), "seconds": done.seconds,
                "cached": done.cached,
            })  # fmt: skip
        progress, judged = Progress(options), measurements(recipe, options.parsers)
        for number, step in enumerate(judged):
            progress(Count("judging and timing the models", number, len(judged)))
            run_step(step, recipe, _command, options.fresh, True)
        rows = rows_of(recipe)
    if options.report:
        from exporter.page.recipe import recipe_page

        write_report(options, recipe_page(options.recipe.name, table_json(rows), steps))
    document = {"version": 1, "recipe": str(options.recipe), "rows": table_json(rows)}
    return deliver(options, lambda: document, lambda: table_text(rows))


def _say(options: argparse.Namespace, line: str) -> None:
    if options.json != "-" and not options.quiet:
        say(line)
