"""The page of ``accuracy.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import accuracy_cost
import accuracy_plot
import table
from accuracy_data import NETWORKS

Row = dict[str, Any]
PLOT = "accuracy.svg"
_SHORT = 0.02
"""A result this far above the budget did not reach it."""


def page(found: dict[str, Any]) -> str:
    """Markdown of everything that was measured: ``table``, ``peers``, ``curves``, ``samples``, ``cost``."""
    parts = ["# Accuracy without training", ""]
    for name, section in _SECTIONS.items():
        if found.get(name):
            parts += [*section(found[name], found), ""]
    failed = [f"- {row['what']}: {row['failure']}" for row in _all(found) if row.get("failure")]
    if failed:
        parts += ["## What failed", "", *dict.fromkeys(failed)]
    return "\n".join(parts).rstrip()


def _all(found: dict[str, Any]) -> list[Row]:
    return [row for name in _SECTIONS for row in found.get(name, [])]


# -- the goals ----------------------------------------------------------------------------------------------------


def _goals(rows: Sequence[Row], found: dict[str, Any]) -> list[str]:
    head = [
        "network", "MACs left", "rounds", "dense", "pruned, mean", "each draw", "drop", "drop to reach", "agreement",
        "output error", "not compensated",
    ]  # fmt: skip
    cells = []
    for (name, macs, steps), draws in _grouped(rows, "network", "macs", "steps"):
        title, unit = NETWORKS[name].title, _Unit(name)
        fitted = [d["with"] for d in draws if "with" in d]
        if not fitted:
            cells.append([title, table.share(macs), str(steps), *["failed"] * (len(head) - 3)])
            continue
        plain = mean(d["without"]["score"] for d in draws if "without" in d)
        score, dense = mean(f["score"] for f in fitted), fitted[0]["dense"]
        target = NETWORKS[name].budgets[macs]
        drop = unit.drop(dense, score)
        cells.append(
            [title, table.share(mean(f["macs_left"] for f in fitted)), str(steps), unit.show(dense), unit.show(score),
             " ".join(unit.show(f["score"]) for f in fitted), unit.show_drop(drop),
             "-" if target is None else f"{target:g} {'reached' if drop <= target else 'missed'}",
             f"{100 * mean(f['agreement'] for f in fitted):.1f}",
             f"{mean(f['output_error'] for f in fitted):.4f}", unit.show(plain)]
        )  # fmt: skip
    return [
        "## Calibrated and compensated, not trained",
        "",
        "Accuracy in %, for the Llama loss in nats per token (lower is better). Draws of the calibration inputs: "
        f"{found['draws']}; where a network has no more inputs than are used, draws differ in their order and in what "
        "is held out. Agreement: share of the test inputs, in %, with the dense network's answer. Output error: "
        "mean square error relative to the variance of the dense output. Rounds: of pruning and fitting, `--steps`. "
        "The last column carries out the same plans "
        "without compensation. Every plan was proved equal to its masked original.",
        "",
        table.markdown([head, *cells], right=range(1, len(head))),
    ]


def _beside(rows: Sequence[Row], found: dict[str, Any]) -> list[str]:
    head = ["network", "MACs wanted", *dict.fromkeys(r["method"] for r in rows), "Secateur"]
    cells = []
    ours = {
        (name, macs): [d["with"] for d in draws if "with" in d]
        for (name, macs, steps), draws in _grouped(found.get("table", []), "network", "macs", "steps")
        if steps == 1
    }
    for (name, macs), own in _grouped(rows, "network", "macs"):
        unit = _Unit(name)
        by_method = {r["method"]: r for r in own}
        line = [NETWORKS[name].title, table.share(macs)]
        line += [_peer_cell(by_method.get(method), macs, unit) for method in head[2:-1]]
        mine = ours.get((name, macs))
        line.append(unit.show(mean(f["score"] for f in mine)) if mine else "-")
        cells.append(line)
    return [
        "## Beside other tools",
        "",
        "The same files, budgets and calibration inputs (the first draw), no training. *l2* is Secateur with the norm "
        "of the weights and no data. Torch-Pruning takes a share of every layer's inner width by magnitude, of the "
        "graphs of convolutions, which become PyTorch modules here; it has no calibration. onnxsim ranks by weights "
        "times inputs; its ridge regression refits matrix products, not convolutions. In brackets: MACs left, where "
        "they are not the budget.",
        "",
        table.markdown([head, *cells], right=range(1, len(head))),
    ]


def _peer_cell(row: Row | None, macs: float, unit: _Unit) -> str:
    if row is None:
        return "-"
    if row.get("failure"):
        return "failed"
    left = row["macs_left"]
    if left > macs + _SHORT:
        return f"budget not reached ({table.share(left)})"
    return unit.show(row["score"]) + (f" ({table.share(left)})" if left < macs - _SHORT else "")


# -- curves, samples, cost ----------------------------------------------------------------------------------------


def _curves(rows: Sequence[Row], _: dict[str, Any]) -> list[str]:
    lines = [
        "## Accuracy against MACs left",
        "",
        "One draw of 512 calibration inputs. In brackets: MACs left, where they are not the budget.",
        "",
        f"![Accuracy against MACs left]({PLOT})",
        "",
    ]
    for (name,), own in _grouped(rows, "network"):
        budgets = sorted({r["macs"] for r in own}, reverse=True)
        unit = _Unit(name)
        cells = []
        for (method, compensated), points in _grouped(own, "method", "compensated"):
            at = {p["macs"]: p for p in points}
            fitted = "yes" if compensated else "no"
            cells.append([method, fitted, *(_peer_cell(at.get(b), b, unit) for b in budgets)])
        head = ["method", "compensated", *(table.share(b) for b in budgets)]
        dense = next((r["dense"] for r in own if "dense" in r), None)
        title = NETWORKS[name].title + ("" if dense is None else f" (dense {unit.show(dense)})")
        lines += [f"### {title}", "", table.markdown([head, *cells], right=range(2, len(head))), ""]
    return lines[:-1]


def write_plot(rows: Sequence[Row], folder: Path) -> None:
    """Draw the curves to ``folder/accuracy.svg``."""
    panels = []
    for (name,), own in _grouped(rows, "network"):
        dense = next((r["dense"] for r in own if "dense" in r), None)
        line = []
        for compensated, what in ((False, "without compensation"), (True, "with compensation")):
            points = [r for r in own if r["compensated"] == compensated and "score" in r]
            lines = [
                accuracy_plot.Line(method, [(p["macs_left"], p["score"]) for p in at])
                for (method,), at in _grouped(points, "method")
            ]
            line.append(accuracy_plot.Panel(f"{NETWORKS[name].title}, {what}", lines, dense))
        panels.append(line)
    budgets = [r["macs"] for r in rows]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = accuracy_plot.svg(panels, max(budgets) + 0.05, min(budgets) - 0.05)
    (folder / PLOT).write_text(drawn, encoding="utf-8")


def _samples(rows: Sequence[Row], _: dict[str, Any]) -> list[str]:
    head = ["network", "MACs left", "calibration inputs", "accuracy", "drop", "agreement", "output error", "seconds"]
    cells = []
    for row in rows:
        unit, fitted = _Unit(row["network"]), row.get("with")
        title = [NETWORKS[row["network"]].title]
        if fitted is None:
            cells.append([*title, table.share(row["macs"]), str(row["samples"]), *["failed"] * (len(head) - 3)])
            continue
        cells.append(
            [*title, table.share(fitted["macs_left"]), str(row["samples"]), unit.show(fitted["score"]),
             unit.show_drop(unit.drop(fitted["dense"], fitted["score"])), f"{100 * fitted['agreement']:.1f}",
             f"{fitted['output_error']:.4f}", f"{fitted['seconds']:.0f}"]
        )  # fmt: skip
    return ["## Number of calibration inputs", "", table.markdown([head, *cells], right=range(1, len(head)))]


def _cost(rows: Sequence[Row], _: dict[str, Any]) -> list[str]:
    head = ["network", "calibration inputs", "CPU s", "at most", "wall s", "peak memory, GB", "at most"]
    cells = []
    for row in rows:
        seconds, memory = accuracy_cost.LIMITS[row["network"]]
        title = accuracy_cost.NETWORKS[row["network"]]
        count = str(accuracy_cost.SAMPLES[row["network"]])
        limit = "-" if memory is None else f"{memory / 1e9:g}"
        if "cpu" not in row:
            cells.append([title, count, "failed", str(seconds), "-", "-", limit])
            continue
        ended = "failed after " if row["failure"] else ""
        cells.append(
            [title, count, f"{ended}{row['cpu']:.0f}", str(seconds), f"{row['wall']:.0f}", f"{row['peak'] / 1e9:.2f}",
             limit]
        )  # fmt: skip
    return [
        "## Cost",
        "",
        "The whole process of `secateur prune MODEL -o OUT --macs 0.5 --align 1 --calib FILE.npz`, imports included.",
        "",
        table.markdown([head, *cells], right=range(1, len(head))),
    ]


_SECTIONS: dict[str, Callable[[Sequence[Row], dict[str, Any]], list[str]]] = {
    "table": _goals,
    "peers": _beside,
    "curves": _curves,
    "samples": _samples,
    "cost": _cost,
}


# -- numbers ------------------------------------------------------------------------------------------------------


class _Unit:
    """How the score of a network is shown: per cent, or nats per token."""

    def __init__(self, name: str) -> None:
        self.nats = NETWORKS[name].metric == "perplexity"

    def show(self, score: float) -> str:
        return f"{score:.3f}" if self.nats else f"{100 * score:.2f}"

    def drop(self, dense: float, score: float) -> float:
        """How much worse, in points or nats."""
        return score - dense if self.nats else 100 * (dense - score)

    def show_drop(self, drop: float) -> str:
        return f"{drop:.3f}" if self.nats else f"{drop:.2f}"


def _grouped(rows: Sequence[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by the values of some keys, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    return list(groups.items())
