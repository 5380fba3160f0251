"""The page of the survey: a summary, what falls short and why, and one table per source of networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import shortfall
import table

MACS_TARGET = 0.30
PRUNABLE_TARGET = 0.97
_NAMED = 0.005

Row = dict[str, Any]

INTRODUCTION = """
Architectures with random weights, each exported by torch's dynamo exporter with its default opset and in a second
variant, chosen in turn (legacy: the TorchScript exporter). Secateur was asked to remove {ratio:.0%} of
the units (`--ratio {ratio} --align 1`). Prunable: share of the parameters that belong to a unit. MACs and parameters:
what is left, by Secateur's cost model; a network whose every layer is cut on both sides keeps about a quarter. Proven:
relative error against the masked original in ONNX Runtime. Fixed batch: the exporter could not make it dynamic."""
PEERS = """
onnxsim: MACs left in the file it wrote, if ONNX Runtime runs it; Torch-Pruning: its own count, if the pruned module
runs. Both on the first variant, with a limit of {limit:.0f} seconds. Neither checks that the numbers are right."""


def page(rows: Sequence[Row], ratio: float, limit: float) -> str:
    """The whole page.

    Args:
        rows: as ``survey.py`` makes them, two or more per network.
        ratio: of units that was asked for.
        limit: seconds a peer may take.
    """
    ours = [r for r in rows if "secateur" in r]
    cut = [r for r in ours if "macs_left" in r["secateur"]]
    parts = ["# Survey", _paragraph(INTRODUCTION.format(ratio=ratio)), _summary(rows, ours, cut)]
    if any("onnxsim" in r for r in rows):
        parts += [_paragraph(PEERS.format(limit=limit)), _peer_summary(rows)]
    parts += ["## What falls short, and why", _short(rows, cut)]
    for source in dict.fromkeys(r["network"].partition("/")[0] for r in rows):
        own = [r for r in rows if r["network"].startswith(f"{source}/")]
        parts += [f"## {source}", _table(own)]
    return "\n\n".join(parts)


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _summary(rows: Sequence[Row], ours: Sequence[Row], cut: Sequence[Row]) -> str:
    loaded = [r for r in ours if not r["secateur"]["failure"]]
    explained = [r for r in loaded if "explained" in r["secateur"]]
    small = [r for r in cut if r["secateur"]["macs_left"] <= MACS_TARGET]
    networks = {r["network"] for r in rows}
    reasons: Counter[str] = Counter()
    for row in cut:
        for share, text, _ in row["secateur"]["why"]["macs"]:
            reasons[text] += share
    lines = [
        f"- **{len(networks)} architectures**, {len(ours)} files; {len(rows) - len(ours)} could not be exported",
        f"- loaded and proven: **{len(cut)}** of {len(ours)}; not pruned, with the reason: {len(explained)}; failed: "
        f"{len(ours) - len(loaded)}",
    ]
    if cut:
        shares = [r["secateur"]["prunable"] for r in cut]
        seconds = [r["secateur"]["seconds"] for r in cut]
        lines += [
            f"- parameters that belong to a unit: median **{median(shares):.1%}**, least {min(shares):.1%}",
            f"- MACs left: median **{table.share(median(r['secateur']['macs_left'] for r in cut))}**; at most "
            f"{MACS_TARGET:.2f} in **{len(small) / len(cut):.0%}** of the files",
            f"- seconds for one file, proof included: median {median(seconds):.1f}, most {max(seconds):.1f}",
        ]
        total = sum(reasons.values())
        named = "; ".join(f"{text} ({share / total:.0%})" for text, share in reasons.most_common(4))
        lines.append(f"- what holds MACs above a quarter, by their sum over the files: {named}")
    return "\n".join(lines)


def _peer_summary(rows: Sequence[Row]) -> str:
    lines = []
    for tool, key in (("onnxsim", "onnxsim"), ("Torch-Pruning", "torch_pruning")):
        found = [r[key] for r in rows if key in r]
        good = [f["macs_left"] for f in found if not f["failure"]]
        if found:
            middle = f", MACs left: median {table.share(median(good))}" if good else ""
            lines.append(f"- {tool}: {len(good)} of {len(found)} networks give a file or module that runs{middle}")
    return "\n".join(lines)


def _short(rows: Sequence[Row], cut: Sequence[Row]) -> str:
    """Every file that misses a target, is not pruned, or was not exported."""
    lines = []
    for row in sorted(cut, key=lambda r: -r["secateur"]["macs_left"]):
        ours = row["secateur"]
        name = f"{row['network']} ({row['variant']})"
        if ours["macs_left"] > MACS_TARGET:
            lines.append(f"- {name}: MACs left {table.share(ours['macs_left'])}. {_reasons(ours['why']['macs'])}")
        if ours["prunable"] < PRUNABLE_TARGET:
            lines.append(f"- {name}: prunable {ours['prunable']:.1%}. {_reasons(ours['why']['parameters'])}")
    for row in rows:
        name = f"{row['network']} ({row['variant']})"
        if "secateur" not in row:
            lines.append(f"- {name}: not exported. {row['export']['error']}")
        elif row["secateur"]["failure"]:
            lines.append(f"- {name}: **failed**. {row['secateur']['failure']}")
        elif "explained" in row["secateur"]:
            lines.append(f"- {name}: not pruned. {row['secateur']['explained']} {row['secateur']['reasons']}")
    return "\n".join(lines) or "Nothing."


def _reasons(found: Sequence[Sequence[Any]]) -> str:
    named = [
        f"{text if text == shortfall.SINGLE else f'{text}, {where}'}: {share:.1%}"
        for share, text, where in found
        if share > _NAMED
    ]
    return "; ".join(named) + "."


def _table(rows: Sequence[Row]) -> str:
    peers = any("onnxsim" in r for r in rows)
    head = ["network", "variant", "opset", "MMACs", "prunable", "MACs", "parameters", "proven", "seconds"]
    lines = [head + (["onnxsim", "Torch-Pruning"] if peers else [])]
    for row in rows:
        cells = [row["network"].partition("/")[2], row["variant"]]
        ours = row.get("secateur", {})
        fixed = ", fixed batch" if row["export"].get("static") else ""
        opset = f"{row['export']['opset']}{fixed}" if "opset" in row["export"] else "-"
        if "macs_left" in ours:
            cells += [opset, f"{ours['macs'] / 1e6:.1f}", f"{ours['prunable']:.1%}", table.share(ours["macs_left"])]
            cells += [table.share(ours["parameters_left"]), f"yes, {ours['error']:.0e}", f"{ours['seconds']:.1f}"]
        elif not ours:
            cells += ["not exported", *[""] * 6]
        else:
            cells += [opset, "-", "-", "-", "-", "explained" if "explained" in ours else "**no**", "-"]
        if peers:
            cells += [_peer(row.get("onnxsim")), _peer(row.get("torch_pruning"))]
        lines.append(cells)
    return table.markdown(lines, right=(2, 3, 4, 5, 6, 8, 9, 10))


def _peer(found: Row | None) -> str:
    if found is None:
        return ""
    if found["failure"]:
        return "time" if found["failure"].startswith("time limit") else "broken"
    return table.share(found["macs_left"])
