"""The report of ``run``: what each step of a recipe left, beside the model it began with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporter.page import charts
from exporter.page.document import Card, Page, Section
from exporter.page.markup import Content, name_of, paragraph, table
from exporter.page.sections import RATES, Document, percent, ratio_card, ratio_text, ratio_tone, value_text
from exporter.tables import quantity
from runtime.nouns import counted

_PERCENT = charts.Scale("", lambda v: f"{v:.3g} %")


def recipe_page(name: str, rows: Sequence[Document], steps: Sequence[Document]) -> Page:
    """Make the report.

    Args:
        name: of the recipe.
        rows: as ``run --json`` has them; the first is the model it began with.
        steps: ``number``, ``name``, ``command``, ``seconds`` and ``cached`` of each.
    """
    first, last = rows[0], rows[-1]
    size, macs = (f"{percent(last[k] / max(first[k], 1))} of the first" for k in ("bytes", "macs"))
    made = f"{counted(len(steps), 'step')}: {Path(last['model']).name}"
    accuracy, ratio = last["accuracy"], last["latency_ratio"]
    verdict = f"{made} has {size}'s size and {macs}'s multiply-accumulates."
    verdict += f" It takes {ratio['value']:.3f} times as long." if ratio else ""
    tone = ratio_tone(ratio) if ratio is not None else ""
    return Page(
        f"Recipe {name}",
        verdict,
        tone,
        tuple(_cards(first, last, accuracy, ratio)),
        (
            Section("Each model", (_models(rows),)),
            Section("Size and work", tuple(_bars(rows))),
            Section("What it cost, and what it gained", tuple(_plots(rows))),
            Section("The steps", (_steps(steps),)),
        ),
    )


def _cards(first: Document, last: Document, accuracy: Document | None, ratio: Document | None) -> list[Card]:
    cards = [
        Card(title, percent(last[k] / max(first[k], 1)), f"{quantity(first[k])}{unit} to {quantity(last[k])}{unit}")
        for k, title, unit in (("bytes", "File left", "B"), ("macs", "MACs left", ""))
    ]
    if ratio:
        cards.append(ratio_card("Latency", ratio))
    if accuracy and accuracy["value"] is not None:
        metric, before = accuracy["metric"], first["accuracy"]
        note = f"{value_text(before['value'], metric)} at first" if before else ""
        cards.append(Card(f"{metric} at the end", value_text(accuracy["value"], metric), note))
    return cards


def _called(row: Document) -> str:
    return row["step"] or "the first"


def _models(rows: Sequence[Document]) -> Content:
    first = rows[0]
    judged = next((r["accuracy"]["metric"] for r in rows if r["accuracy"]), None)
    timed = any(r["latency_ratio"] for r in rows)
    head = ["step", "model", "size", "of first", "MACs", "of first"]
    head += [*(["times as long (95 %)", "verdict"] if timed else []), *([str(judged)] if judged else [])]
    body: list[list[Content]] = []
    for row in rows:
        line: list[Content] = [
            _called(row), name_of(Path(row["model"]).name), f"{quantity(row['bytes'])}B",
            f"{row['bytes'] / max(first['bytes'], 1):.3f}", quantity(row["macs"]),
            f"{row['macs'] / max(first['macs'], 1):.3f}",
        ]  # fmt: skip
        if timed:
            ratio = row["latency_ratio"]
            line += [ratio_text(ratio) if ratio else "1", row["verdict"] or ""]
        if judged:
            line.append(value_text(row["accuracy"]["value"], judged) if row["accuracy"] else "")
        body.append(line)
    numbers = (2, 3, 4, 5, 6, 8) if timed else range(2, 7)
    return table(head, body, "models, in the order in which they were made", right=numbers)


def _bars(rows: Sequence[Document]) -> list[Content]:
    first = rows[0]
    found = [
        charts.Bar(
            _called(r), (r["bytes"] / max(first["bytes"], 1), r["macs"] / max(first["macs"], 1)),
            (percent(r["bytes"] / max(first["bytes"], 1)), percent(r["macs"] / max(first["macs"], 1))),
            Path(r["model"]).name,
        )
        for r in rows
    ]  # fmt: skip
    return [charts.key(("other", "file"), ("main", "MACs")), charts.bars(found, "size and work of each model")]


def _plots(rows: Sequence[Document]) -> list[Content]:
    judged = [r for r in rows if r["accuracy"] and r["accuracy"]["value"] is not None]
    timed = [r for r in rows if r["latency_ratio"]]
    found: list[Content] = []
    first = rows[0]
    if len(judged) > 1:
        metric = judged[0]["accuracy"]["metric"]
        rate = metric in RATES
        scale = 100 if rate else 1
        y = charts.Scale(metric, lambda v: f"{v:.4g}" + (" %" if rate else ""))
        found.append(_plot(
            f"{metric} against work",
            [(100 * r["macs"] / max(first["macs"], 1), r) for r in judged],
            charts.Scale("MACs, of the first", _PERCENT.text), y, scale,
        ))  # fmt: skip
        both = [r for r in judged if r["latency_ratio"] or r is first]
        if timed and len(both) > 1:
            found.append(_plot(
                f"{metric} against latency",
                [(100 * (r["latency_ratio"]["value"] if r["latency_ratio"] else 1.0), r) for r in both],
                charts.Scale("latency, of the first", _PERCENT.text), y, scale,
            ))  # fmt: skip
    elif timed:
        dots = [
            charts.Dot(
                100 * r["macs"] / max(first["macs"], 1), 100 * r["latency_ratio"]["value"], _called(r), "",
                100 * r["latency_ratio"]["low"], 100 * r["latency_ratio"]["high"], r is rows[-1],
            )
            for r in timed
        ]  # fmt: skip
        plot = charts.plane(
            dots, charts.Scale("MACs, of the first", _PERCENT.text),
            charts.Scale("latency, of the first", _PERCENT.text),
            "latency against work of each model", mark=(100.0, "the first"),
        )  # fmt: skip
        found.append(charts.figure("Latency against work", plot))
    if found:
        found.append(paragraph("The numbers are in the table of models; lines are 95 % intervals."))
    return found


def _plot(
    title: str, points: Sequence[tuple[float, Document]], x: charts.Scale, y: charts.Scale, scale: float
) -> Content:
    dots = []
    for place, row in points:
        a = row["accuracy"]
        reach = 1.96 * a["standard_error"] if a["standard_error"] is not None else None
        low, high = (None if reach is None else scale * (a["value"] + sign * reach) for sign in (-1, 1))
        name = f"{_called(row)}: {y.text(scale * a['value'])}"
        dots.append(charts.Dot(place, scale * a["value"], _called(row), name, low, high, row is points[-1][1]))
    return charts.figure(title, charts.plane(dots, x, y, f"{title}: {counted(len(dots), 'model')}"))


def _steps(steps: Sequence[Document]) -> Content:
    rows: list[list[Content]] = [
        [str(s["number"]), s["name"], f"{s['seconds']:.1f} s", "done before" if s["cached"] else "",
         name_of(s["command"])]
        for s in steps
    ]  # fmt: skip
    return table(["", "step", "took", "", "command"], rows, "steps", right=(0, 2))
