"""The table at the end of a recipe: size, work, latency and accuracy of each model, beside the one it began with."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.recipes.keys import arguments, keys_of
from exporter.recipes.running import RECORDS
from exporter.recipes.steps import Parsers, Recipe, Step
from exporter.tables import milliseconds, quantity, table


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: of the step that made it; "" for the model the recipe begins with.
        model: the file.
        size: bytes, external data included.
        macs: multiply-accumulates of one sample.
        accuracy: what ``eval --json`` says; None where it was not asked for.
        speed: what ``compare --json`` says, against the first model; None likewise, and for that one.
    """

    name: str
    model: str
    size: int
    macs: int
    accuracy: Mapping[str, Any] | None
    speed: Mapping[str, Any] | None


def models_of(recipe: Recipe) -> list[tuple[str, str]]:
    """Names and files of the table's rows: the first model, and what each step left under its name in the end."""
    last = {step.output: step for step in recipe.steps if step.output}
    rows = [(f"{step.number} {step.name}", step.output) for step in last.values() if step.output]
    begun = [] if any(model == recipe.model for _, model in rows) else [("", recipe.model)]
    return [*begun, *rows]


def measurements(recipe: Recipe, parsers: Parsers) -> list[Step]:
    """The commands that fill the table: ``eval`` and ``compare`` for each model."""
    steps = []
    for number, (_, model) in enumerate(models_of(recipe)):
        for name, given in (("eval", recipe.evaluate), ("compare", recipe.compare)):
            if given is None or (name == "compare" and model == recipe.model):
                continue
            step = measurement(name, given, recipe.model, model, report_file(recipe, number, name), parsers)
            steps.append(replace(step, number=number))
    return steps


def measurement(name: str, given: Mapping[str, Any], original: str, model: str, target: Path, parsers: Parsers) -> Step:
    """The step that judges or times a model.

    Args:
        name: ``eval`` or ``compare``.
        given: its options, checked.
        original: what it is compared with.
        model: the file.
        target: where its report goes.
        parsers: of the commands, by name.
    """
    places = {"model": model} if name == "eval" else {"first": original, "other": model}
    values = {**given, **places, "json": str(target)}
    read = [str(values[k]) for k in ("data", "inputs", "reference") if k in values]
    typed = tuple(arguments(keys_of(parsers[name]), values))
    return Step(0, f"table-{name}", name, 0, typed, (*places.values(), *read), (str(target),), None)


def report_file(recipe: Recipe, number: int, name: str) -> Path:
    """Where a measurement of a row is written."""
    return Path(recipe.folder, RECORDS, f"{number:02d}-{name}-report.json")


def rows_of(recipe: Recipe) -> list[Row]:
    """The rows, after everything has run."""
    rows = []
    for number, (name, model) in enumerate(models_of(recipe)):
        found = {
            kind: _read(report_file(recipe, number, kind)) if asked is not None else None
            for kind, asked in (("eval", recipe.evaluate), ("compare", recipe.compare))
        }
        size, macs = size_and_macs(Path(model))
        rows.append(Row(name, model, size, macs, found["eval"], found["compare"] if model != recipe.model else None))
    return rows


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def size_and_macs(path: Path) -> tuple[int, int]:
    """Bytes of a model, and multiply-accumulates of one sample at the sizes assumed for dynamic axes, as ``inspect``
    counts them."""
    from exporter.groups import find_groups
    from exporter.model_file import load
    from exporter.pruner import totals

    graph = load(path)
    return graph.source.size, totals(graph, find_groups(graph)).macs or 0


def table_text(rows: list[Row]) -> str:
    """The table."""
    first = rows[0]
    judged = next((r.accuracy["metric"] for r in rows if r.accuracy), None)
    timed = any(r.speed for r in rows)
    heading = ["step", "model", "size", "of first", "MACs", "of first"]
    heading += ["latency", "times as long (95 %)"] if timed else []
    heading += [str(judged)] if judged else []
    lines = [heading]
    for row in rows:
        line = [
            row.name or "-", Path(row.model).name, f"{quantity(row.size)}B", f"{row.size / max(first.size, 1):.3f}",
            quantity(row.macs), f"{row.macs / first.macs:.3f}" if first.macs else "",
        ]  # fmt: skip
        lines.append(line + (_speed(row, rows) if timed else []) + ([accuracy_text(row.accuracy)] if judged else []))
    return table(lines, right=range(2, len(heading)))


def _speed(row: Row, rows: list[Row]) -> list[str]:
    if row.speed is None:
        other = next(r.speed for r in rows if r.speed)
        return [milliseconds(_median(other["first"])), "1"]
    ratio = row.speed["ratio"]
    return [
        milliseconds(_median(row.speed["other"])),
        f"{ratio['value']:.3f} ({ratio['low']:.3f} .. {ratio['high']:.3f}) {row.speed['verdict']}",
    ]


def _median(side: Mapping[str, Any]) -> float:
    return float(statistics.median(side["samples_s"]))


def accuracy_text(found: Mapping[str, Any] | None) -> str:
    """What ``eval --json`` found, as it stands in a table."""
    if found is None or found["value"] is None:
        return ""
    value = float(found["value"])
    return f"{100 * value:.2f} %" if found["metric"] in ("top1", "top5", "agreement") else f"{value:.5g}"


_JUDGED = ("metric", "value", "standard_error", "samples")


def table_json(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as JSON."""
    return [
        {
            "step": r.name or None, "model": r.model, "bytes": r.size, "macs": r.macs,
            "accuracy": None if r.accuracy is None else {k: r.accuracy[k] for k in _JUDGED},
            "latency_ratio": None if r.speed is None else r.speed["ratio"],
            "verdict": None if r.speed is None else r.speed["verdict"],
        }
        for r in rows
    ]  # fmt: skip
