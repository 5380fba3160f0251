"""The reports of ``compare`` and ``profile``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from exporter.page import charts
from exporter.page.document import Card, Page, Section
from exporter.page.markup import Content, folded, name_of, paragraph, table
from exporter.page.sections import (
    REASONS,
    Document,
    flags_part,
    layers_part,
    percent,
    ratio_card,
    ratio_text,
    samples_part,
    savings_part,
)
from exporter.tables import milliseconds, quantity, shapes_text, threads_text
from runtime.nouns import all_of, counted

_CLOCKS = {"cpu": "CPU time of one thread", "wall": "wall time", "device": "time on the device"}
_TONES = {"faster": "good", "slower": "bad", "same": "warn", "inconclusive": "warn"}
_SHOWN = 12


def compare_page(document: Document, verdict: str) -> Page:
    """Make the report of ``compare``.

    Args:
        document: as ``compare --json`` writes it.
        verdict: the last line on the console.
    """
    first, other, goal = document["first"], document["other"], document["goal"]
    met = goal["met"]
    asked = goal["fail_if_slower"] is not None or goal["min_speedup"] is not None
    tone = _TONES[document["verdict"]] if not asked else "warn" if met is None else "good" if met else "bad"
    names = _told_apart(first, other)
    cards = [ratio_card("Time against the first", document["ratio"], _CLOCKS[document["clock"]])]
    for name, side in zip(names, (first, other), strict=True):
        cards.append(Card(name, milliseconds(_median(side)), f"median wall time; {_how(side)}"))
    outputs = document["outputs"]
    apart = [o["relative"] for o in outputs if o.get("relative") is not None]
    if apart:
        cards.append(Card("Outputs differ by", f"{max(apart):.2g}", "of their deviation, the output that differs most"))
    if asked:
        limits = [f"at most {100 * goal['fail_if_slower']:g} % slower"] if goal["fail_if_slower"] is not None else []
        limits += [f"{goal['min_speedup']:g} times as fast"] if goal["min_speedup"] is not None else []
        state = "open" if met is None else "met" if met else "missed"
        cards.append(Card("Goal", state, " and ".join(limits), tone))
    return Page(
        f"Comparing {names[0]} with {names[1]}",
        verdict,
        tone,
        tuple(cards),
        (
            Section("Which is faster", tuple(_ratio_part(document, names))),
            Section("Layer by layer", tuple(_layers(document, names))),
            _outputs_section(outputs),
        ),
    )


def _told_apart(first: Document, other: Document) -> tuple[str, str]:
    """What to call the two: by their files, else by what differs."""
    if first["model"] != other["model"]:
        return first["model"], other["model"]
    if first["backend"] != other["backend"]:
        return f"{first['model']} on {first['backend']}", f"{other['model']} on {other['backend']}"
    return f"{first['model']} (first)", f"{other['model']} (second)"


def _how(side: Document) -> str:
    return f"{side['backend']}, {threads_text(side['threads'])}, {shapes_text(side['shapes']) or 'no inputs'}"


def _median(side: Document) -> float:
    return float(statistics.median(side["samples_s"]))


def _ratio_part(document: Document, names: tuple[str, str]) -> list[Content]:
    first, other = document["first"], document["other"]
    rows: list[list[Content]] = [[f"{_CLOCKS[document['clock']]} (decides)", ratio_text(document["ratio"])]]
    if document["clock"] != "wall":
        rows.append(["wall time", ratio_text(document["wall_ratio"])])
    goal = document["goal"]
    limits = [1 + goal["fail_if_slower"]] if goal["fail_if_slower"] is not None else []
    limits += [1 / goal["min_speedup"]] if goal["min_speedup"] is not None else []
    mark = (min(limits), f"goal {min(limits):.3f}") if limits else (1.0, "equal")
    ratios = [document["ratio"], *([document["wall_ratio"]] if len(rows) > 1 else [])]
    dots = [
        charts.Dot(k, r["value"], _SHORT[c], f"{_CLOCKS[c]}: {ratio_text(r)}", r["low"], r["high"], k == 0)
        for k, (r, c) in enumerate(zip(ratios, (document["clock"], "wall"), strict=False))
    ]
    plot = charts.plane(
        dots, charts.Scale("", lambda _: ""), charts.Scale("times as long", lambda v: f"{v:.3g}"),
        f"{names[1]} takes {ratio_text(document['ratio'])} times as long as {names[0]}", mark=mark,
    )  # fmt: skip
    pairs = len(first["samples_s"])
    return [
        paragraph(
            f"{names[1]} takes {ratio_text(document['ratio'])} times as long as {names[0]}: {counted(pairs, 'pair')} "
            f"in {counted(document['rounds'], 'round')}, both loaded anew in each. Lines are 95 % intervals."
        ),
        charts.figure("", plot),
        table(["by", "times as long (95 %)"], rows, "ratios", right=(1,)),
        *samples_part([(names[0], first["samples_s"], "other"), (names[1], other["samples_s"], "main")]),
        flags_part(document["flags"]),
    ]


_SHORT = {"cpu": "CPU time", "wall": "wall time", "device": "device"}


def _layers(document: Document, names: tuple[str, str]) -> list[Content]:
    found = layers_part(document["layers"], *names) + savings_part(document.get("savings") or ())
    return found or [paragraph("Layers were not timed: only ONNX Runtime's own backends tell what each layer takes.")]


def _outputs_section(outputs: Sequence[Document]) -> Section:
    rows: list[list[Content]] = []
    for o in outputs:
        if o.get("problem"):
            rows.append([name_of(o["name"]), o["problem"], "", "", "", ""])
            continue
        numbers = [f"{o[k]:.2g}" if o[k] is not None else "" for k in ("largest", "mean", "relative")]
        cosine = f"{o['cosine']:.6f}" if o["cosine"] is not None else ""
        rows.append([name_of(o["name"]), *numbers, cosine, percent(o["top1"])])
    head = ["output", "largest difference", "mean", "of the deviation", "cosine", "same top-1"]
    return Section("Outputs", (table(head, rows, "how far outputs are apart", right=range(1, 6)),) if rows else ())


def profile_page(document: Document, verdict: str) -> Page:
    """Make the report of ``profile``.

    Args:
        document: as ``profile --json`` writes it.
        verdict: the line that says what the time goes to.
    """
    nodes = sorted(document["nodes"], key=lambda n: -n["seconds"])
    total = sum(n["seconds"] for n in nodes) or 1.0
    macs = sum(n["macs"] for n in nodes)
    peak = document["peaks"]
    rate = 2 * macs / document["latency_s"] if document["latency_s"] else 0.0
    threads = threads_text(document["threads"])
    cards = (
        Card("A run takes", milliseconds(document["latency_s"]), f"{document['backend']}, {threads}"),
        Card("In kernels", milliseconds(document["kernels_s"]), f"{len(nodes)} of them"),
        Card("Work", f"{quantity(macs)} MACs", shapes_text(document["shapes"]) or "no inputs"),
        Card("Arithmetic", f"{rate / 1e9:.3g} GFLOP/s", f"{percent(rate / peak['flops'], 0)} of what this machine does "
             f"at best, {peak['flops'] / 1e9:.3g}"),
    )  # fmt: skip
    return Page(
        f"Where the time of {document['model']} goes",
        verdict,
        "",
        cards,
        (
            Section("What holds it back", tuple(_bottlenecks(nodes, total))),
            Section("The kernels that take longest", tuple(_kernels(nodes, total))),
            Section("Against what this machine can do", tuple(_roofline(nodes, peak))),
        ),
    )


def _bottlenecks(nodes: Sequence[Document], total: float) -> list[Content]:
    sums: dict[str, float] = {}
    for node in nodes:
        sums[node["bottleneck"]] = sums.get(node["bottleneck"], 0.0) + node["seconds"]
    ranked = sorted(sums.items(), key=lambda item: -item[1])
    rows = [charts.Bar(k, (s / total,), (percent(s / total),), REASONS.get(k, "")) for k, s in ranked]
    return [charts.bars(rows, "share of the time by what holds it back")]


def _kernels(nodes: Sequence[Document], total: float) -> list[Content]:
    rows = [
        charts.Bar(
            n["name"], (n["seconds"],), (f"{_microseconds(n['seconds'])}, {percent(n['seconds'] / total)}",),
            f"{n['op']}, held back by {n['bottleneck']}",
        )
        for n in nodes[:_SHOWN]
    ]  # fmt: skip
    body = [
        [
            name_of(n["name"]), n["op"], _microseconds(n["seconds"]), percent(n["seconds"] / total),
            quantity(n["macs"]) if n["macs"] else "", f"{n['flops_per_s'] / 1e9:.3g}" if n["macs"] else "",
            quantity(n["bytes"]), f"{n['intensity']:.3g}" if n["macs"] else "", n["bottleneck"],
        ]
        for n in nodes
    ]  # fmt: skip
    head = ["node", "operator", "time", "share", "MACs", "GFLOP/s", "bytes", "FLOP/B", "held back by"]
    return [
        charts.bars(rows, "kernels by time"),
        folded(all_of(len(nodes), "kernel"), table(head, body, "kernels by time", right=range(2, 8))),
    ]


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.4g} us"


def _roofline(nodes: Sequence[Document], peak: Document) -> list[Content]:
    working = [n for n in nodes if n["macs"] and n["seconds"] > 0 and n["bytes"]]
    if not working:
        return []
    dots = [
        charts.Dot(
            n["intensity"], n["flops_per_s"], "",
            f"{n['name']}: {n['flops_per_s'] / 1e9:.3g} GFLOP/s at {n['intensity']:.3g} FLOP/B, "
            f"{_microseconds(n['seconds'])}",
            main=k < _SHOWN,
        )
        for k, n in enumerate(working)
    ]  # fmt: skip
    ridge = peak["flops"] / peak["bytes_per_s"]
    least = min(d.x for d in dots)
    most = max(*(d.x for d in dots), 2 * ridge)
    start = min(least, ridge / 2)
    roof = [(start, start * peak["bytes_per_s"]), (ridge, peak["flops"]), (most, peak["flops"])]
    plot = charts.plane(
        dots, charts.Scale("operations for each byte (FLOP/B)", _short, log=True),
        charts.Scale("GFLOP/s", lambda v: _short(v / 1e9), log=True),
        f"speed of {counted(len(dots), 'kernel')} against their operations for each byte", roof=roof,
    )  # fmt: skip
    caption = (
        f"Each point is a kernel; the larger ones take longest. No kernel can be above the dashed line: on its slope "
        f"the memory ({peak['bytes_per_s'] / 1e9:.3g} GB/s) is the limit, on its flat part the arithmetic "
        f"({peak['flops'] / 1e9:.3g} GFLOP/s); small ones may pass the slope, because their data stay in the cache. "
        "The numbers are in the table of kernels."
    )
    return [charts.figure("", plot, caption)]


def _short(value: float) -> str:
    return f"{value:.3g}"
