"""Parts that several reports share: what is frozen, 2:4, why it is not faster, how often a run takes how long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.hints import kind_of_hint, together
from exporter.page import charts
from exporter.page.document import Card, Section
from exporter.page.markup import Content, Markup, bullets, folded, name_of, paragraph, table
from exporter.tables import milliseconds, quantity
from runtime.nouns import all_of, counted

Document = Mapping[str, Any]

RATES = ("top1", "top5", "agreement")
"""Metrics that are a share of samples."""

_NAMED = 6
_SHOWN = 12
REASONS = {
    "unpruned": "kept all of its work",
    "layout": "only changes the layout of tensors",
    "alignment": "a number of channels outside the blocked layout",
    "overhead": "so short that starting it counts",
    "memory": "as fast as the memory, so less arithmetic does not help",
    "compute": "as fast as the arithmetic",
    "kernel": "slower than memory and arithmetic allow",
}
"""What holds a layer back, as ``runtime.roofline.bottleneck`` calls it."""


def percent(share: float | None, places: int = 1) -> str:
    """A share as text; "" where it is not known."""
    return "" if share is None or not math.isfinite(share) else f"{100 * share:.{places}f} %"


def ratio_text(ratio: Document) -> str:
    """A ratio with its interval."""
    return f"{ratio['value']:.3f} ({ratio['low']:.3f} .. {ratio['high']:.3f})"


def ratio_tone(ratio: Document) -> str:
    """Whether a ratio of times is good: below one, as far as its interval goes."""
    return "good" if ratio["high"] < 1 else "bad" if ratio["low"] > 1 else "warn"


def ratio_card(name: str, ratio: Document, note: str = "") -> Card:
    """A ratio of times."""
    interval = f"95 %: {ratio['low']:.3f} .. {ratio['high']:.3f}"
    return Card(name, f"{ratio['value']:.3f}x", f"{interval}; {note}" if note else interval, ratio_tone(ratio))


def value_text(value: float | None, metric: str) -> str:
    """A value of a metric: per cent for a rate."""
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if metric in RATES else f"{value:.5g}"


def answers_kept(found: Document) -> list[str]:
    """How many answers are the original's, and whether the inputs say anything of accuracy, in sentences.

    Args:
        found: with ``agreement`` and ``synthetic``.
    """
    kept = found["agreement"]
    return [
        *([f"{percent(kept)} of the answers are the original's."] if kept is not None else []),
        *(["These inputs are made up: accuracy is unmeasured."] if found["synthetic"] else []),
    ]


def names(found: Sequence[str], most: int = _NAMED) -> Content:
    """The first few names, and how many more there are."""
    parts: list[Content] = []
    for k, each in enumerate(found[:most]):
        parts += [", " if k else "", name_of(each)]
    return [*parts, f", and {len(found) - most} more" if len(found) > most else ""]


def frozen_section(rows: Sequence[Document]) -> Section:
    """Axes that had to stay, by reason.

    Args:
        rows: as ``prune --json`` has them under ``frozen``.
    """
    by_reason: dict[tuple[str, str], list[Document]] = {}
    for row in rows:
        by_reason.setdefault((row["reason"], kind_of_hint(row.get("hint") or "")), []).append(row)
    items: list[Content] = []
    for (reason, kind), found in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        axes = [f"{r['tensor']}[{r['axis']}]" for r in found]
        where = next((r["where"] for r in found if r["where"]), "")
        at: Content = [" (at ", name_of(where), ")"] if where else ""
        hint = f". To free it: {together(row['hint'] for row in found)}" if kind else ""
        items.append([f"{reason}", at, f": {counted(len(axes), 'axis')}, ", names(axes), hint])
    body = [
        [name_of(r["tensor"]), str(r["axis"]), f"{r['count']} of {r['size']}", r["reason"], name_of(r["where"] or "")]
        for r in rows
    ]
    whole = table(["tensor", "axis", "slots that stay", "reason", "at"], body, "every frozen axis", right=(1, 2))
    intro = "An axis is frozen where nothing proves that it may shrink. What is frozen stays as it was."
    content = (paragraph(intro), bullets(items), folded(all_of(len(rows), "frozen axis"), whole))
    return Section("What could not be cut, and why", content if rows else ())


def sparse_section(rows: Sequence[Document], of: str) -> Section:
    """Which weights could have 2:4.

    Args:
        rows: ``weight``, ``op``, ``shape``, ``size``, ``reason`` ("" where it can) and ``gain`` of each weight.
        of: what was looked at.
    """
    if not rows:
        return Section("", ())
    able = [r for r in rows if not r["reason"]]
    total = sum(r["size"] for r in rows) or 1
    share = sum(r["size"] for r in able) / total
    gain = sum(r["size"] for r in able if r["gain"] == "likely") / total
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            reasons.setdefault(row["reason"], []).append(row["weight"])
    stays = [[f"{reason}: ", names(found)] for reason, found in sorted(reasons.items(), key=lambda i: -len(i[1]))]
    body = [
        [name_of(r["weight"]), r["op"], "x".join(map(str, r["shape"])), r["reason"] or "can have it", r["gain"]]
        for r in rows
    ]
    return Section(
        "2:4 sparsity",
        (
            paragraph(
                f"Of the {of}, {len(able)} of {counted(len(rows), 'weight')} ({percent(share)} of all their numbers) "
                "can have two "
                f"zeros in every four, which TensorRT's sparse kernels take. By their sizes, {percent(gain)} are in "
                "layers where such kernels tend to gain; only a measurement on the device tells whether they do."
            ),
            paragraph("Next: ", name_of("secateur sparsify MODEL -o SPARSE.onnx --pattern 2:4 --calib DATA")),
            bullets(stays),
            folded(
                all_of(len(rows), "weight"),
                table(["weight", "layer", "shape", "2:4", "gain of sparse kernels"], body, "weights of layers"),
            ),
        ),
    )


def savings_part(rows: Sequence[Document]) -> list[Content]:
    """Why it is not faster: layers that take longer than the work that is left would.

    Args:
        rows: as ``runtime.savings`` has them, the one that loses most first.
    """
    held = [r for r in rows if r["reason"]]
    if not rows:
        return []
    total = sum(r["seconds"] for r in rows) or 1.0
    sums: dict[str, float] = {}
    for row in held:
        sums[row["reason"]] = sums.get(row["reason"], 0.0) + row["lost"]
    ranked = sorted(sums.items(), key=lambda item: -item[1])
    bars = [
        charts.Bar(reason, (lost / total,), (percent(lost / total),), REASONS.get(reason, ""))
        for reason, lost in ranked
    ]
    body = [
        [
            name_of(r["name"]), r["op"], percent(r["macs_left"], 0), percent(r["time_left"], 0) or "new",
            milliseconds(r["seconds"]), milliseconds(r["lost"]), r["reason"],
        ]
        for r in rows
    ]  # fmt: skip
    head = ["layer", "operator", "MACs left", "time left", "time now", "lost", "held back by"]
    found: list[Content] = []
    if bars:
        found.append(
            charts.figure(
                "Why it is not faster still",
                charts.bars(bars, "time lost, by reason"),
                "Time that layers take beyond what the work that is left of them would, as a share of the time of all "
                "layers now.",
            )
        )
    found.append(folded("Every layer: work left against time left", table(head, body, "savings", right=(2, 3, 4, 5))))
    return found


def layers_part(rows: Sequence[Document], first: str, other: str) -> list[Content]:
    """Time of each layer in two models.

    Args:
        rows: as ``compare --json`` has them under ``layers``.
        first, other: what the models are called.
    """
    if not rows:
        return []
    bars = [
        charts.Bar(
            r["name"],
            (r["first"] or 0.0, r["other"] or 0.0),
            tuple(milliseconds(t) if t is not None else "none" for t in (r["first"], r["other"])),
            r["op"],
        )
        for r in sorted(rows, key=lambda r: -max(r["first"] or 0.0, r["other"] or 0.0))[:_SHOWN]
    ]
    body = [
        [
            name_of(r["name"]), r["op"],
            *(milliseconds(t) if t is not None else "" for t in (r["first"], r["other"])),
            f"{1e3 * r['difference_s']:+.3g} ms",
            *(quantity(n) if n else "" for n in (r["first_macs"], r["other_macs"])),
        ]
        for r in rows
    ]  # fmt: skip
    head: list[Content] = ["layer", "operator", name_of(first), name_of(other), "difference", "MACs before", "MACs now"]
    shown = f"The {counted(len(bars), 'layer')} that take longest" if len(rows) > len(bars) else "Every layer"
    return [
        charts.figure(
            "Time per layer",
            [charts.key(("other", first), ("main", other)), charts.bars(bars, "time per layer in both models")],
            f"{shown}. Recorded runs; the latency above comes from runs that are not recorded.",
        ),
        folded(all_of(len(rows), "layer"), table(head, body, "time per layer in both models", right=range(2, 7))),
    ]


def samples_part(series: Sequence[tuple[str, Sequence[float], str]]) -> list[Content]:
    """How runs of one or two models were distributed.

    Args:
        series: name, seconds of each run, class of its colour.
    """
    known = [(n, sorted(v for v in values if v is not None), kind) for n, values, kind in series]
    if not all(values for _, values, _ in known):
        return []
    low = min(v[0] for _, v, _ in known)
    high = max(_quantile(v, 0.9) for _, v, _ in known)
    plots: list[Content] = []
    for called, values, kind in known:
        half = milliseconds(values[len(values) // 2])
        words = f"{called}: half of its {counted(len(values), 'run')} take less than {half}"
        plots += [paragraph(words), charts.histogram(values, low, high, f"distribution of run times. {words}", kind)]
    body = [[n, *(milliseconds(_quantile(v, q)) for q in (0, 0.5, 0.9, 0.99)), str(len(v))] for n, v, _ in known]
    caption = f"From {milliseconds(low)} to {milliseconds(high)}, from left to right; slower runs count at the end."
    return [
        charts.figure("How long runs took", plots, caption),
        folded("As a table", table(["", "fastest", "median", "90 %", "99 %", "runs"], body, "run times", range(1, 6))),
    ]


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, math.floor(q * len(ordered)))]


def flags_part(flags: Sequence[Document]) -> Markup:
    """Signs that something else used the machine."""
    return bullets([f"Caution: {f['text']}" for f in flags])


def notes_section(notes: Sequence[str]) -> Section:
    """What the reader should know."""
    return Section("Notes", (bullets(notes),) if notes else ())
