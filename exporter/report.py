"""What the commands print: console tables, and the same as JSON with a version field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from exporter.graph import Graph
from exporter.groups import Frozen, Group, Groups
from exporter.hints import hint_for
from exporter.plan import PlannedGroup
from exporter.pruner import Result, Totals
from exporter.verifier import Proof
from runtime.latency import Latency, Ratio

JSON_VERSION = 1

_NAMED_SPANS = 2
_NAMED_TENSORS = 4
_LONGEST_NAME = 44


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Align columns; the first row is the heading. Columns in ``right`` are flushed right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    flushed = set(right)
    lines = []
    for number, row in enumerate(rows):
        cells = [c.rjust(w) if k in flushed else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def quantity(value: float) -> str:
    """A count with a metric prefix: 25.6 M."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f}"


def short(name: str) -> str:
    """A name with its middle left out where it is longer than a table can bear."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 3) // 2
    return f"{name[:half]}...{name[-half:]}"


def milliseconds(seconds: float) -> str:
    """A time in ms, with three significant digits."""
    return f"{seconds * 1e3:.3g} ms"


# -- inspect and prune ------------------------------------------------------------------------------------------


def spans_text(group: Group) -> str:
    """The axes of constants a group spans: the first few by name, the number of the rest."""
    named = list(dict.fromkeys(f"{short(s.tensor)}[{s.axis}]" for s in group.parameters))
    more = len(named) - _NAMED_SPANS
    return ", ".join(named[:_NAMED_SPANS]) + (f" +{more}" if more > 0 else "")


def groups_table(groups: Groups, planned: Mapping[str, PlannedGroup] | None = None) -> str:
    """One row per group: name, kind, width, what is kept, what it spans."""
    head = ["group", "kind", "width", "spans"] if planned is None else ["group", "kind", "width", "kept", "spans"]
    rows = [head]
    for group in groups:
        row = [short(group.name), group.kind, str(group.width), spans_text(group)]
        if planned is not None:
            kept = len(planned[group.name].keep) if group.name in planned else group.width
            row.insert(3, str(kept))
        rows.append(row)
    return table(rows, right=(2,) if planned is None else (2, 3))


def totals_table(before: Totals, after: Totals, latency: tuple[Latency, Latency, Ratio] | None = None) -> str:
    """Parameters, multiply-accumulates, file size and latency, before and after."""
    rows = [["", "before", "after", "left"]]
    for name, old, new, unit in (
        ("parameters", before.parameters, after.parameters, ""),
        ("MACs", before.macs, after.macs, ""),
        ("file", before.file_bytes, after.file_bytes, "B"),
    ):
        if old and new:
            rows.append([name, quantity(old) + unit, quantity(new) + unit, f"{100 * new / old:.1f} %"])
    if latency is not None:
        dense, pruned, ratio = latency
        interval = f"{100 * ratio.value:.1f} % ({100 * ratio.low:.1f} .. {100 * ratio.high:.1f})"
        rows.append(["latency", milliseconds(dense.median), milliseconds(pruned.median), interval])
    return table(rows, right=(1, 2))


def frozen_text(frozen: Sequence[Frozen]) -> str:
    """What stays, grouped by reason."""
    if not frozen:
        return "nothing is frozen"
    by_reason: dict[tuple[str, str], list[Frozen]] = {}
    for row in frozen:
        by_reason.setdefault((row.reason.text, hint_for(row.reason)), []).append(row)
    lines = ["frozen, by reason:"]
    for (text, hint), rows in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        shown = [_frozen_axis(r) for r in rows[:_NAMED_TENSORS]]
        more = f", and {len(rows) - _NAMED_TENSORS} more" if len(rows) > _NAMED_TENSORS else ""
        where = rows[0].reason.where
        lines.append(f"  {text} ({short(where)})" if where else f"  {text}")
        lines.append(f"    {', '.join(shown)}{more}")
        if hint:
            lines.append(f"    to free it: {hint}")
    return "\n".join(lines)


def _frozen_axis(row: Frozen) -> str:
    part = f"{row.count} of {row.size}" if row.count < row.size else str(row.size)
    return f"{short(row.tensor)}[{row.axis}] ({part})"


def inspect_text(graph: Graph, groups: Groups, before: Totals) -> str:
    """The whole of ``secateur inspect``."""
    prunable = prunable_parameters(groups)
    name = graph.source.path.name if graph.source.path is not None else "model"
    size = f", {quantity(before.file_bytes)}B" if before.file_bytes else ""
    binding = ", ".join(f"{k}={v}" for k, v in graph.binding.symbols.items())
    lines = [
        f"{name}: {quantity(before.parameters)} parameters, {quantity(before.macs)} MACs{size}, "
        f"{len(graph.nodes)} nodes",
        *([f"dynamic axes, sizes taken: {binding}"] if binding else []),
        "",
        groups_table(groups) if len(groups) else "no group of units can be removed",
        "",
        f"{len(groups)} groups; {100 * prunable / max(before.parameters, 1):.1f} % of the parameters are in one",
        "",
        frozen_text(groups.frozen),
    ]
    return "\n".join(lines)


def prunable_parameters(groups: Groups) -> int:
    """Number of parameters that belong to at least one unit."""
    masks: dict[str, list[tuple[int, Any]]] = {}
    for group in groups:
        for span in group.parameters:
            masks.setdefault(span.tensor, []).append((span.axis, span.units >= 0))
    total = 0
    for name, axes in masks.items():
        shape = groups.graph.shape(name) or ()
        sizes = list(shape)
        free: dict[int, Any] = {}
        for axis, mask in axes:
            free[axis] = free.get(axis, False) | mask
        fixed = 1
        for axis, size in enumerate(sizes):
            fixed *= int(size - free[axis].sum()) if axis in free else size
        total += int(np.prod(sizes, dtype=np.int64)) - fixed
    return total


def prune_text(result: Result, latency: tuple[Latency, Latency, Ratio] | None = None) -> str:
    """The whole of ``secateur prune``."""
    planned = {g.name: g for g in result.plan.groups}
    lines = [
        groups_table(result.groups, planned),
        "",
        totals_table(result.before, result.after, latency),
        *_achieved(result),
        "",
        frozen_text(result.groups.frozen),
        "",
        *(f"note: {w}" for w in result.warnings),
        verdict(result),
    ]
    return "\n".join(lines)


def _achieved(result: Result) -> list[str]:
    """How far the budget was missed, where alignment did not allow more than 2 % of it."""
    for kind, old, new in (
        ("macs", result.before.macs, result.after.macs),
        ("params", result.before.parameters, result.after.parameters),
    ):
        target = result.plan.options.get(kind)
        if isinstance(target, float) and old:
            short = target - new / old
            if short > 0.02 * target:
                return [
                    f"--{kind} {target:g}: {new / old:.3f} is left, {short:.3f} less than allowed: "
                    "alignment leaves no width between"
                ]
    return []


def verdict(result: Result) -> str:
    """The last line."""
    if result.output is None:
        return f"dry run: nothing was written ({result.seconds:.1f} s)"
    if result.proof is None:
        return f"wrote {result.output}, NOT proved ({result.seconds:.1f} s)"
    return f"wrote {result.output}: {proof_text(result.proof)} ({result.seconds:.1f} s)"


def proof_text(proof: Proof) -> str:
    """One line on a proof."""
    return (
        f"proved equal to the masked original, relative error {proof.error:.1e} (accepted: {proof.tolerance:g}), "
        f"{proof.runs} input sets, {proof.inner} inner tensors"
    )


# -- bench ------------------------------------------------------------------------------------------------------


def shapes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """Input shapes in a line: ``image 1x3x224x224; mask 1x16``."""
    return "; ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def bench_text(results: Sequence[Latency], ratios: Sequence[Ratio]) -> str:
    """One row per model; with several, the ratio to the first."""
    head = ["model", "median", "min", "mean", "p90", "p99", "load", "first run", "samples"]
    if ratios:
        head.append("against the first (95 % interval)")
    rows = [head]
    for i, r in enumerate(results):
        row = [
            r.model,
            milliseconds(r.median),
            milliseconds(float(r.samples.min())),
            milliseconds(float(r.samples.mean())),
            _percentile(r, 90, 64),
            _percentile(r, 99, 662),
            milliseconds(r.load),
            milliseconds(r.first),
            str(r.samples.size),
        ]
        if ratios:
            row.append(
                "" if i == 0 else f"{ratios[i - 1].value:.3f} ({ratios[i - 1].low:.3f} .. {ratios[i - 1].high:.3f})"
            )
        rows.append(row)
    shapes = shapes_text(results[0].shapes)
    threads = f"{results[0].threads} threads" if results[0].threads else "default threads"
    return f"{results[0].backend}, {threads}, inputs: {shapes or 'none'}\n\n" + table(rows, right=range(1, 9))


def _percentile(latency: Latency, q: int, needed: int) -> str:
    value = latency.percentile(q)
    return milliseconds(value) if value is not None else f"needs {needed}"


# -- JSON -------------------------------------------------------------------------------------------------------


def inspect_json(graph: Graph, groups: Groups, before: Totals) -> dict[str, Any]:
    """All of ``inspect``."""
    return {
        "version": JSON_VERSION,
        "model": _model_json(graph),
        "totals": _totals_json(before),
        "prunable_parameters": prunable_parameters(groups),
        "groups": [_group_json(g) for g in groups],
        "frozen": [_frozen_json(f) for f in groups.frozen],
    }


def prune_json(result: Result, latency: tuple[Latency, Latency, Ratio] | None = None) -> dict[str, Any]:
    """All of ``prune``."""
    planned = {g.name: g for g in result.plan.groups}
    document: dict[str, Any] = {
        "version": JSON_VERSION,
        "model": _model_json(result.groups.graph),
        "output": str(result.output) if result.output is not None else None,
        "options": dict(result.plan.options),
        "before": _totals_json(result.before),
        "after": _totals_json(result.after),
        "groups": [{**_group_json(g), "keep": list(planned[g.name].keep)} for g in result.groups],
        "frozen": [_frozen_json(f) for f in result.groups.frozen],
        "proof": proof_json(result.proof) if result.proof is not None else None,
        "seconds": result.seconds,
        "warnings": list(result.warnings),
    }
    if latency is not None:
        dense, pruned, ratio = latency
        document["latency"] = {"dense": latency_json(dense), "pruned": latency_json(pruned), "ratio": ratio_json(ratio)}
    return document


def proof_json(proof: Proof) -> dict[str, Any]:
    """A proof."""
    return {
        "error": proof.error,
        "outputs": dict(proof.outputs),
        "tolerance": proof.tolerance,
        "change": proof.change,
        "inner": proof.inner,
        "runs": proof.runs,
        "shapes": [{k: list(v) for k, v in shapes.items()} for shapes in proof.shapes],
        "warnings": list(proof.warnings),
    }


def bench_json(results: Sequence[Latency], ratios: Sequence[Ratio]) -> dict[str, Any]:
    """All of ``bench``, raw samples included."""
    import platform

    return {
        "version": JSON_VERSION,
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "results": [latency_json(r) for r in results],
        "ratios_to_first": [ratio_json(r) for r in ratios],
    }


def latency_json(latency: Latency) -> dict[str, Any]:
    """One measurement."""
    return {
        "model": latency.model,
        "backend": latency.backend,
        "threads": latency.threads,
        "shapes": {k: list(v) for k, v in latency.shapes.items()},
        "load_s": latency.load,
        "first_s": latency.first,
        "median_s": latency.median,
        "min_s": float(latency.samples.min()),
        "mean_s": float(latency.samples.mean()),
        "p90_s": latency.percentile(90),
        "p99_s": latency.percentile(99),
        "samples_s": [round(float(s), 9) for s in latency.samples],
        "cpu_s": [round(float(s), 9) for s in latency.cpu],
        "switched": [bool(s) for s in latency.switched],
    }


def ratio_json(ratio: Ratio) -> dict[str, float]:
    """A ratio with its interval."""
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high}


def _model_json(graph: Graph) -> dict[str, Any]:
    return {
        "file": str(graph.source.path) if graph.source.path is not None else None,
        "sha256": graph.source.sha256,
        "opsets": dict(graph.opsets),
        "nodes": len(graph.nodes),
        "shapes": {k: list(v) for k, v in graph.binding.shapes.items()},
    }


def _totals_json(totals: Totals) -> dict[str, int | None]:
    return {"parameters": totals.parameters, "macs": totals.macs, "file_bytes": totals.file_bytes}


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "width": group.width,
        "spans": [{"tensor": s.tensor, "axis": s.axis, "constant": s.constant} for s in group.spans],
        "partners": list(group.partners),
    }


def _frozen_json(frozen: Frozen) -> dict[str, Any]:
    return {
        "tensor": frozen.tensor,
        "axis": frozen.axis,
        "count": frozen.count,
        "size": frozen.size,
        "reason": frozen.reason.text,
        "where": frozen.reason.where,
        "hint": hint_for(frozen.reason),
    }
