"""What a sweep found, device by device: every model with its accuracy and latency, and which of them nothing beats."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.recipes.table import accuracy_text, size_and_macs
from exporter.sweeps.driver import Outcomes
from exporter.sweeps.sheet import Subject, Sweep, Variant
from exporter.sweeps.store import Outcome
from exporter.tables import milliseconds, quantity, table
from runtime.nouns import out_of

JSON_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One model on one device.

    Attributes:
        subject, method, budget: names; the last two are "" for the original.
        model: the file; "" where none was made.
        size: bytes.
        macs: multiply-accumulates of one sample.
        task: what makes accuracies comparable: the options it was judged by.
        accuracy: what ``eval`` found; None where it is not known.
        latency: seconds; None where it is not known. That of the original is the median of its runs beside all of its
            variants, that of a variant its paired ratio times that.
        ratio: of latencies to the original's, with an interval; None likewise, and for the original.
        front: whether no model of the same task is as good and faster, or as fast and better.
        error: what went wrong, else "".
    """

    subject: str
    method: str
    budget: str
    model: str
    size: int
    macs: int
    task: str
    accuracy: Mapping[str, Any] | None
    latency: float | None
    ratio: Mapping[str, Any] | None
    front: bool
    error: str


def rows_of(sweep: Sweep, found: Outcomes) -> dict[str, list[Row]]:
    """The rows of each device, models in the order of the file; under "" where there are no devices.

    Args:
        sweep: it.
        found: outcomes of its jobs.
    """
    originals = {s.name: size_and_macs(Path(s.recipe.model)) for s in sweep.subjects}
    rows = {}
    for device in [d.name for d in sweep.devices] or [""]:
        own: list[Row] = []
        for subject in sweep.subjects:
            variants = [v for v in sweep.variants if v.subject is subject]
            times = {v.name: _good(found.get(("time", f"{v.name} on {device}"))) for v in variants}
            known = [t.result["first_s"] for t in times.values() if t is not None]
            base = statistics.median(known) if known else None
            own.append(_original(subject, originals[subject.name], base, found))
            own += [_row(v, times[v.name], base, device, found) for v in variants]
        rows[device] = marked(own)
    return rows


def _good(outcome: Outcome | None) -> Outcome | None:
    return None if outcome is None or outcome.code else outcome


def _task(subject: Subject) -> str:
    return json.dumps(subject.recipe.evaluate, sort_keys=True)


def _original(subject: Subject, size: tuple[int, int], base: float | None, found: Outcomes) -> Row:
    judged = found.get(("eval", subject.name))
    good = _good(judged)
    accuracy, error = good.result if good else None, judged.error if judged is not None else ""
    return Row(
        subject.name, "", "", subject.recipe.model, *size, _task(subject), accuracy, base, None, False, error
    )  # fmt: skip


def _row(variant: Variant, time: Outcome | None, base: float | None, device: str, found: Outcomes) -> Row:
    names = [("make", variant.name), ("eval", variant.name), ("time", f"{variant.name} on {device}")]
    outcomes = [found[n] for n in names if n in found]
    made, judged = (_good(found.get(n)) for n in names[:2])
    ratio = time.result["ratio"] if time is not None else None
    return Row(
        variant.subject.name, variant.method, variant.budget,
        made.result["model"] if made else "", made.result["bytes"] if made else 0, made.result["macs"] if made else 0,
        _task(variant.subject), judged.result if judged else None,
        ratio["value"] * base if ratio is not None and base is not None else None, ratio, False,
        "; ".join(o.error for o in outcomes if o.error),
    )  # fmt: skip


def marked(rows: Sequence[Row]) -> list[Row]:
    """The rows, those marked that are on the Pareto front of accuracy and latency, or work if nothing was timed."""
    timed = any(row.latency is not None for row in rows)
    points = [(row, p) for row in rows if (p := _point(row, timed)) is not None]

    def beaten(row: Row, point: tuple[float, float]) -> bool:
        return any(
            other.task == row.task and all(a <= b for a, b in zip(p, point, strict=True)) and p != point
            for other, p in points
        )

    front = {id(row) for row, point in points if not beaten(row, point)}
    return [replace(row, front=id(row) in front) for row in rows]


def _point(row: Row, timed: bool) -> tuple[float, float] | None:
    """What is better when smaller: time, or work, and what accuracy lacks; None where one is not known."""
    cost = row.latency if timed else float(row.macs)
    if row.accuracy is None or row.accuracy["value"] is None or cost is None:
        return None
    value = float(row.accuracy["value"])
    return cost, -value if row.accuracy["better"] == "higher" else value


def outcome_text(kind: str, outcome: Outcome) -> str:
    """What came of a job, for a line of progress, with a comma before it."""
    if outcome.code:
        return f" ({outcome.error})"
    found = outcome.result
    if kind == "make":
        return f", {quantity(found['bytes'])}B, {quantity(found['macs'])} MACs"
    return (
        f", {found['metric']} {accuracy_text(found)}"
        if kind == "eval"
        else f", {found['ratio']['value']:.3f} times as long"
    )


def table_text(rows: Sequence[Row]) -> str:
    """The rows, fastest last within each model's, with a star before those on the front."""
    timed = any(row.latency is not None for row in rows)
    judged = list(dict.fromkeys(row.accuracy["metric"] for row in rows if row.accuracy))
    heading = ["", "model", "method", "budget", "size", "MACs", "of first"]
    heading += ["latency", "times as long (95 %)"] if timed else []
    heading += [str(judged[0]) if len(judged) == 1 else "accuracy", ""]
    first = {row.subject: row for row in rows if not row.method}
    lines = [heading]
    for row in rows:
        known = bool(row.model)
        share = row.macs / max(first[row.subject].macs, 1)
        line = ["*" if row.front else "", row.subject, row.method or "-", row.budget]
        line += [f"{quantity(row.size)}B", quantity(row.macs), f"{share:.3f}"] if known else ["", "", ""]
        if timed:
            line += [milliseconds(row.latency) if row.latency is not None else "", _ratio_text(row)]
        lines.append([*line, _accuracy_text(row, len(judged) > 1), row.error])
    return table(lines, right=range(4, len(heading) - 1))


def _ratio_text(row: Row) -> str:
    if row.ratio is None:
        return "1" if row.latency is not None else ""
    return f"{row.ratio['value']:.3f} ({row.ratio['low']:.3f} .. {row.ratio['high']:.3f})"


def _accuracy_text(row: Row, named: bool) -> str:
    if row.accuracy is None:
        return ""
    return f"{row.accuracy['metric']} {accuracy_text(row.accuracy)}" if named else accuracy_text(row.accuracy)


def notes_on(found: Outcomes, sweep: Sweep) -> list[str]:
    """What the reader should know of the measurements."""
    notes = []
    for device in sweep.devices:
        timed = [
            o.result for (kind, name), o in found.items()
            if kind == "time" and not o.code and name.endswith(f" on {device.name}")
        ]  # fmt: skip
        hosts = sorted({f"{t['host']} ({t['processor']})" for t in timed})
        if len(hosts) > 1:
            notes.append(
                f"{device.name} was measured on {len(hosts)} machines ({', '.join(hosts)}); compare ratios only if "
                "they are alike"
            )
        disturbed = sum(bool(t["cautions"]) for t in timed)
        if disturbed:
            notes.append(
                f"caution: on {device.name} {out_of(disturbed, len(timed), 'measurement', 'was', 'were')} disturbed by "
                "other work; their logs say by what"
            )
    return notes


def rows_json(rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """All rows as JSON."""
    return [
        {
            "device": device or None, "model": r.subject, "method": r.method or None, "budget": r.budget or None,
            "file": r.model or None, "bytes": r.size if r.model else None, "macs": r.macs if r.model else None,
            "accuracy": r.accuracy, "latency_s": r.latency, "latency_ratio": r.ratio, "pareto": r.front,
            "eval": json.loads(r.task), "error": r.error or None,
        }
        for device, own in rows.items() for r in own
    ]  # fmt: skip
