"""The report of ``sweep``: accuracy against latency of every model, and which of them nothing beats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from exporter.page import charts
from exporter.page.document import Card, Page, Section
from exporter.page.markup import Content, Markup, bullets, name_of, paragraph, table
from exporter.page.sections import RATES, Document, ratio_text, value_text
from exporter.page.standalone import standalone
from exporter.tables import milliseconds, quantity
from runtime.nouns import counted, out_of


def sweep_page(name: str, rows: Sequence[Document], notes: Sequence[str]) -> Page:
    """Make the report.

    Args:
        name: of the sweep.
        rows: as ``sweep --json`` has them.
        notes: what to know of the measurements.
    """
    made = {(r["model"], r["method"], r["budget"]) for r in rows if r["method"] and r["file"]}
    wanted = {(r["model"], r["method"], r["budget"]) for r in rows if r["method"]}
    best = {(r["model"], r["method"], r["budget"]) for r in rows if r["pareto"]}
    failed = len({(r["model"], r["method"], r["budget"]) for r in rows if r["error"]})
    verdict = (
        f"{out_of(len(made), len(wanted), 'model', 'was', 'were')} made; "
        f"{counted(len(best), 'is', 'are')} on the Pareto front of a device."
    )
    cards = [
        Card("Models made", str(len(made)), f"of {len(wanted)}", "warn" if len(made) < len(wanted) else ""),
        Card("On a Pareto front", str(len(best)), "originals included"),
        *([Card("With errors", str(failed), "the tables say which", "bad")] if failed else []),
    ]
    plots = [
        charts.figure(title, Markup(f'<div class="plot">{drawing}</div>'), "Dashed: the Pareto front. Lines are 95 % "
                      "intervals of accuracy; a pointer on a dot names its model.")
        for title, drawing in _plots(rows)
    ]  # fmt: skip
    devices = list(dict.fromkeys(r["device"] for r in rows))
    tables: list[Content] = [_table([r for r in rows if r["device"] == d], d or "models") for d in devices]
    return Page(
        f"Sweep {name}",
        verdict,
        "warn" if failed else "",
        tuple(cards),
        (
            Section("What is worth taking", tuple(plots)),
            Section("Every model", (paragraph("A star marks those on the Pareto front."), *tables)),
            Section("To know", (bullets(notes),) if notes else ()),
        ),
    )


def sweep_drawing(name: str, rows: Sequence[Document]) -> str:
    """The plots of the report as an SVG file; empty where nothing can be plotted.

    Args:
        name: of the sweep.
        rows: as ``sweep --json`` has them.
    """
    plots = list(_plots(rows))
    return standalone(f"Sweep {name}", plots) if plots else ""


def _plots(rows: Sequence[Document]) -> Iterator[tuple[str, Markup]]:
    """One for each device and task: title and drawing."""
    kinds = dict.fromkeys((r["device"], json.dumps(r["eval"], sort_keys=True)) for r in rows)
    for device, task in kinds:
        own = [r for r in rows if (r["device"], json.dumps(r["eval"], sort_keys=True)) == (device, task)]
        timed = any(r["latency_s"] is not None for r in own)
        cost = "latency_s" if timed else "macs"
        known = [r for r in own if r[cost] is not None and r["accuracy"] and r["accuracy"]["value"] is not None]
        if known:
            of = f"{known[0]['accuracy']['metric']} on {own[0]['eval']['data']}"
            title = f"{of}, {'against latency on ' + device if timed else 'against work'}"
            yield title, _plane(known, cost, title)


def _plane(rows: Sequence[Document], cost: str, title: str) -> Markup:
    metric = rows[0]["accuracy"]["metric"]
    scale = 100 if metric in RATES else 1
    y = charts.Scale(metric, lambda v: f"{v:.4g}" + (" %" if scale == 100 else ""))
    x = charts.Scale(
        "latency" if cost == "latency_s" else "multiply-accumulates", milliseconds if cost == "latency_s" else quantity
    )
    dots = [_dot(r, cost, scale) for r in rows]
    front = sorted((d for d in dots if d.main), key=lambda d: d.x)
    corners = [(front[0].x, front[0].y)] if front else []
    for one, other in pairwise(front):  # what is slower is better: a step up, or down where less is better
        corners += [(other.x, one.y), (other.x, other.y)]
    return charts.plane(dots, x, y, title, roof=corners, framed=False)


def _dot(row: Document, cost: str, scale: float) -> charts.Dot:
    found = row["accuracy"]
    value = scale * found["value"]
    reach = None if found["standard_error"] is None else 1.96 * scale * found["standard_error"]
    low, high = (None, None) if reach is None else (value - reach, value + reach)
    spent = milliseconds(row[cost]) if cost == "latency_s" else f"{quantity(row[cost])} MACs"
    title = f"{_called(row)}: {value_text(found['value'], found['metric'])}, {spent}"
    return charts.Dot(row[cost], value, _called(row) if row["pareto"] else "", title, low, high, row["pareto"])


def _called(row: Document) -> str:
    return " ".join(str(row[k]) for k in ("model", "method", "budget") if row[k])


def _table(rows: Sequence[Document], caption: str) -> Markup:
    head = [
        "model",
        "",
        "method",
        "budget",
        "size",
        "MACs",
        "latency",
        "times as long (95 %)",
        "accuracy",
        "file or error",
    ]
    lines: list[list[Content]] = [
        [
            r["model"], "★" if r["pareto"] else "", r["method"] or "", r["budget"] or "",
            f"{quantity(r['bytes'])}B" if r["bytes"] else "", quantity(r["macs"]) if r["macs"] else "",
            milliseconds(r["latency_s"]) if r["latency_s"] is not None else "",
            ratio_text(r["latency_ratio"]) if r["latency_ratio"] else "",
            value_text(r["accuracy"]["value"], r["accuracy"]["metric"]) if r["accuracy"] else "",
            r["error"] or name_of(Path(r["file"]).name if not r["method"] else r["file"]),
        ]
        for r in rows
    ]  # fmt: skip
    return table(head, lines, caption, right=range(4, 9))
