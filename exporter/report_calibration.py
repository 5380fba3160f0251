"""What the report of ``prune`` says of calibration: the search, the rounds, before and after, layers left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.search import shown
from exporter.tables import short, table
from runtime.nouns import counted, out_of

if TYPE_CHECKING:
    from exporter.calibration.accuracy import Accuracy
    from exporter.calibration.fidelity import Fidelity
    from exporter.pruner import Result
    from exporter.rounds import Round
    from exporter.search import Search, Try

_NAMED = 3
_COSTS = {"macs": "MACs", "params": "parameters"}


def calibrated_text(result: Result) -> list[str]:
    """Lines, each part after an empty one."""
    lines: list[str] = []
    if result.search is not None:
        lines += ["", *_search(result.search)]
    if result.rounds:
        lines += ["", *(_round(r, n, len(result.rounds)) for n, r in enumerate(result.rounds, 1))]
    if result.fidelity is not None:
        lines += ["", *_fidelity(result.fidelity)]
    return lines


def _search(found: Search) -> list[str]:
    """One row for each try, and how far they can be told apart."""
    head = [f"{_COSTS[found.of]} allowed", "left", found.metric, "drop", "95 % interval", ""]
    rows = [head, *(_try(t, i == found.chosen) for i, t in enumerate(found.tries))]
    judged = f"tries, judged on {counted(found.samples, 'sample')} that nothing is fitted to; --max-drop {found.given}"
    chosen = found.accuracy
    lines = [f"{judged}{' --sure' if found.sure else ''}:", table(rows, right=range(5))]
    if chosen.high > found.limit:
        unit = " points" if chosen.rate else ""
        lines.append(
            f"with {counted(found.samples, 'sample')} the drop may be as much as {shown(chosen.high, chosen)}{unit} "
            "(95 %): more samples beyond --calib-samples tell it better, and --sure asks for the whole interval"
        )
    return lines


def _try(tried: Try, chosen: bool) -> list[str]:
    budget = f"{100 * tried.budget:.1f} %"
    if tried.left is None or tried.accuracy is None:
        return [budget, "", "", "", "", "out of reach"]
    accuracy = tried.accuracy
    verdict = "chosen" if chosen else "within" if tried.within else "too much"
    interval = f"{shown(accuracy.low, accuracy)} .. {shown(accuracy.high, accuracy)}"
    value = value_text(accuracy.pruned, accuracy)
    return [budget, f"{100 * tried.left:.1f} %", value, shown(accuracy.drop, accuracy), interval, verdict]


def _round(found: Round, number: int, of: int) -> str:
    parts = [
        f"round {number} of {of}: {100 * found.macs:.1f} % of the MACs, {100 * found.params:.1f} % of the parameters"
    ]
    if found.error is not None:
        parts.append(f"output error {found.error:.3g}, {counted(found.refits, 'layer')} fitted")
        parts += [] if found.original else ["to the round before"]
    parts.append(f"proved to {found.proof.error:.1e}" if found.proof is not None else "not proved")
    return ", ".join(parts)


def _fidelity(found: Fidelity) -> list[str]:
    """How true the result is to the original on inputs nothing was fitted to."""
    lines = [f"on {counted(found.samples, 'held-out input')}: output error {found.error:.3g} of the outputs' variance"]
    if found.refits:
        moved = sum(r.damping is not None for r in found.refits)
        fitted = out_of(moved, len(found.refits), "layer", "was", "were")
        lines[0] += f" ({found.plain:.3g} before {fitted} fitted anew)"
    lines += accuracy_lines(found.accuracy, found.agreement)
    lines += _unfitted(found)
    if found.synthetic:
        lines.append(
            "these inputs are made up: accuracy is unmeasured; give real ones with --calib, or try secateur eval"
        )
    return lines


def accuracy_lines(accuracy: Accuracy | None, agreement: float | None) -> list[str]:
    """How the result was judged; see ``Fidelity``."""
    lines = []
    if accuracy is not None and accuracy.metric != "agreement":
        lines.append(f"{accuracy.metric} {before_after(accuracy)}")
    if agreement is not None:
        lines.append(f"the same class as the original's: {100 * agreement:.1f} %{_interval_of(accuracy)}")
    return lines


def before_after(accuracy: Accuracy) -> str:
    """An accuracy before and after, the drop and its interval."""
    before, after = (value_text(v, accuracy) for v in (accuracy.dense, accuracy.pruned))
    unit = " points" if accuracy.rate else ""
    low, high = shown(accuracy.low, accuracy), shown(accuracy.high, accuracy)
    return f"{before} before, {after} after: a drop of {shown(accuracy.drop, accuracy)}{unit} (95 %: {low} .. {high})"


def _interval_of(accuracy: Accuracy | None) -> str:
    if accuracy is None or accuracy.metric != "agreement":
        return ""
    return f" (95 %: {100 * (1 - accuracy.high):.1f} .. {100 * (1 - accuracy.low):.1f})"


def value_text(value: float, accuracy: Accuracy) -> str:
    """A value of the metric: per cent for a rate."""
    return f"{100 * value:.2f} %" if accuracy.rate else f"{value:.5g}"


def _unfitted(found: Fidelity) -> list[str]:
    """Layers behind a cut that kept their weights, by reason."""
    if not found.kept:
        return []
    kept = counted(len(found.unfitted), "layer behind a cut kept its", "layers behind a cut kept their")
    lines = [f"{kept} weights:"]
    for reason, names in found.kept.items():
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"  {reason}: {', '.join(short(n) for n in names[:_NAMED])}{more}")
    return lines
