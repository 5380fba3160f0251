"""What ``sparsify``, ``inspect --sparsity`` and ``verify --pattern`` print, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from exporter.graph import Graph
from exporter.report_calibration import accuracy_lines
from exporter.report_json import accuracy_json
from exporter.sparsity.check import Checked
from exporter.sparsity.choice import LeftOut, choose_weights
from exporter.sparsity.codes import stored_values
from exporter.sparsity.layers import Weight, benefit
from exporter.sparsity.patterns import Pattern
from exporter.sparsity.sparsifier import SparseLayer, Sparsified
from exporter.tables import quantity, short, table
from runtime.nouns import counted, out_of

if TYPE_CHECKING:
    from exporter.sparsity.permuting import Permuted

JSON_VERSION = 1
_NAMED = 4
_HALVES = (TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)


def _weight_cells(weight: Weight) -> list[str]:
    use = weight.uses[0]
    more = f" +{len(weight.uses) - 1}" if len(weight.uses) > 1 else ""
    shape = "x".join(map(str, weight.dims))
    return [short(weight.name), f"{use.node.op.rpartition(':')[2]}{more}", shape, _dtype(weight)]


def _dtype(weight: Weight) -> str:
    return str(TensorProto.DataType.Name(weight.dtype)).lower()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# -- sparsify ---------------------------------------------------------------------------------------------------


def sparsify_text(result: Sparsified) -> str:
    """The whole of ``secateur sparsify``."""
    fitted = any(x.fit is not None for x in result.layers)
    head = ["weight", "layer", "shape", "type", "zeros", "magnitude kept"]
    rows = [head + (["chosen by", "output error", "as it was"] if fitted else [])]
    for layer in result.layers:
        cells = [*_weight_cells(layer.weight), _percent(layer.after), _percent(layer.kept)]
        if fitted:
            fit = layer.fit
            cells += ["magnitude", "", ""] if fit is None else [fit.method, f"{fit.error:.2g}", f"{fit.plain:.2g}"]
        rows.append(cells)
    size = f"{quantity(result.before)}B"
    lines = [
        table(rows, right=(4, 5, 7, 8)),
        "",
        *_left_lines(result.left),
        f"{result.pattern}: {counted(len(result.layers), 'weight')}; "
        f"{_percent(result.zeros / max(result.parameters, 1))} of the "
        f"{quantity(result.parameters)} weights of layers are zero; file {size}"
        + (f" -> {quantity(result.after)}B" if result.after is not None else ""),
        *_permuted_lines(result),
        *_held_lines(result),
        *_advice(result),
        *(f"note: {n}" for n in result.notes),
        verdict(result),
    ]
    return "\n".join(lines)


def _left_lines(left: Sequence[LeftOut]) -> list[str]:
    """What stays dense, grouped by reason."""
    if not left:
        return []
    by_reason: dict[str, list[LeftOut]] = {}
    for row in left:
        by_reason.setdefault(row.reason, []).append(row)
    lines = ["stay as they are, by reason:"]
    for reason, rows in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {reason}: {_named([r.weight.name for r in rows])}")
        if rows[0].free:
            lines.append(f"    to take it all the same: {rows[0].free}")
    return [*lines, ""]


def _permuted_lines(result: Sparsified) -> list[str]:
    found = result.permuted
    if found is None:
        return []
    whole = found.weights + sum(map(len, found.still.values()))
    head = "--permute left the order of channels as it is"
    if found.groups:
        equal = f"the reordered dense model was proved equal to the original (relative error {found.error:.1e})"
        head = (
            f"reordered {counted(found.groups, 'group of channels', 'groups of channels')}, for {found.weights} of "
            f"{counted(whole, 'weight')}: "
            f"{_percent(found.after)} of the magnitude stays instead of {_percent(found.before)}; {equal}"
        )
    rows = [f"  no order chosen for {_named(names)}: {reason}" for reason, names in found.still.items()]
    return [head, *rows, *(f"  note: {n}" for n in found.notes)]


def _named(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(short, names[:_NAMED])) + more


def _held_lines(result: Sparsified) -> list[str]:
    held = result.held
    if held is None:
        return []
    lines = [
        f"on {counted(held.samples, 'held-out input')}: output error {held.error:.3g} of the outputs' variance "
        f"({held.plain:.3g} with the weights chosen one by one, as they were)"
    ]
    lines += accuracy_lines(held.accuracy, held.agreement)
    if held.synthetic:
        lines.append("these inputs are made up: accuracy is unmeasured; give real ones with --calib")
    return lines


def _advice(result: Sparsified) -> list[str]:
    lines = []
    if result.held is None:
        lines.append(
            "accuracy is unmeasured, and magnitude alone costs much of it: give --calib DATA, and try secateur eval"
        )
    kinds = sorted({_dtype(x.weight) for x in result.layers if x.weight.dtype not in _HALVES})
    if kinds and result.pattern.grouped and (result.pattern.keep, result.pattern.of) == (2, 4):
        lines.append(f"TensorRT's sparse kernels take fp16 and int8; {', '.join(kinds)} weights have to be converted")
    if result.smaller:
        size = quantity((result.after or result.before) - result.smaller)
        lines.append(f"as sparse initializers the file would take {size}B: --storage sparse")
    return lines


def verdict(result: Sparsified) -> str:
    """The last line."""
    if result.output is None:
        return f"dry run: nothing was written ({result.seconds:.1f} s)"
    kept = "; all else of the file is as it was, byte for byte" if result.unchanged else ""
    checked = f"{result.pattern} checked" if result.pattern.grouped else "zeros counted"
    return f"wrote {result.output}: {checked}{kept} ({result.seconds:.1f} s)"


def sparsify_json(result: Sparsified) -> dict[str, Any]:
    """All of ``sparsify``."""
    held, permuted = result.held, result.permuted
    return {
        "version": JSON_VERSION,
        "model": str(result.graph.source.path) if result.graph.source.path else None,
        "output": str(result.output) if result.output is not None else None,
        "pattern": str(result.pattern),
        "weights": [_layer_json(x) for x in result.layers],
        "left_out": [_left_json(x) for x in result.left],
        "parameters": result.parameters,
        "zeros": result.zeros,
        "file_bytes": {"before": result.before, "after": result.after, "sparse_storage_saves": result.smaller},
        "fidelity": None
        if held is None
        else {
            "samples": held.samples,
            "plain": _number(held.plain),
            "error": _number(held.error),
            "agreement": held.agreement,
            "accuracy": accuracy_json(held.accuracy),
            "synthetic": held.synthetic,
        },
        "permutation": None if permuted is None else _permuted_json(permuted),
        "all_else_unchanged": result.unchanged,
        "seconds": result.seconds,
        "notes": list(result.notes),
    }


def _permuted_json(found: Permuted) -> dict[str, Any]:
    return {
        **vars(found),
        "still": {reason: list(names) for reason, names in found.still.items()},
        "notes": [*found.notes],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _weight_json(weight: Weight) -> dict[str, Any]:
    use = weight.uses[0]
    return {
        "weight": weight.name,
        "nodes": [u.node.proto.name or u.node.key for u in weight.uses],
        "op": use.node.op,
        "shape": list(weight.dims),
        "type": _dtype(weight),
        "axis": use.operand.axis,
        "inputs": use.inputs,
        "outputs": use.outputs,
    }


def _layer_json(layer: SparseLayer) -> dict[str, Any]:
    fit = layer.fit
    return {
        **_weight_json(layer.weight),
        "zeros_before": layer.before,
        "zeros": layer.after,
        "magnitude_kept": layer.kept,
        "chosen_by": "magnitude" if fit is None else fit.method,
        "output_error": None if fit is None else _number(fit.error),
        "output_error_by_magnitude": None if fit is None else _number(fit.plain),
        "damping": None if fit is None else fit.damping,
    }


def _left_json(left: LeftOut) -> dict[str, Any]:
    return {**_weight_json(left.weight), "reason": left.reason, "free": left.free or None}


# -- inspect ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inspected:
    """A weight of a model: the share of zeros, runs that break a pattern, and why it cannot have it."""

    weight: Weight
    zeros: float
    runs: int
    broken: int
    reason: str
    free: str


def inspect_sparsity(graph: Graph, pattern: Pattern) -> list[Inspected]:
    """Look at all weights of layers.

    Args:
        graph: the graph.
        pattern: N:M.
    """
    taken, left = choose_weights(graph, pattern)
    reasons = {x.weight.name: x for x in left}
    rows = []
    for weight in sorted([*taken, *(x.weight for x in left)], key=lambda w: w.uses[0].node.index):
        stored = stored_values(graph, weight)
        nonzero = stored.values != stored.zero.astype(stored.values.dtype)
        out = reasons.get(weight.name)
        runs = broken = 0
        if out is None:
            counts = nonzero.reshape(-1, pattern.of, weight.uses[0].step).sum(1)
            runs, broken = counts.size, int((counts > pattern.keep).sum())
        zeros = 1 - int(nonzero.sum()) / weight.size
        rows.append(Inspected(weight, zeros, runs, broken, out.reason if out else "", out.free if out else ""))
    return rows


def inspect_text(graph: Graph, pattern: Pattern, rows: Sequence[Inspected]) -> str:
    """The whole of ``secateur inspect --sparsity``."""
    name = graph.source.path.name if graph.source.path is not None else "model"
    if not rows:
        return f"{name} has no layer with a constant weight"
    cells = [["weight", "layer", "shape", "type", "axis", "zeros", str(pattern), "gain of sparse kernels"]]
    for row in rows:
        axis = row.weight.uses[0].operand.axis
        state = "cannot" if row.reason and not row.free else "left out" if row.reason else _state(row)
        gain = row.reason or benefit(row.weight)
        cells.append([*_weight_cells(row.weight), "" if axis is None else str(axis), _percent(row.zeros), state, gain])
    total = sum(r.weight.size for r in rows)
    zeros = sum(r.zeros * r.weight.size for r in rows)
    able = [r for r in rows if not r.reason]
    share = sum(r.weight.size for r in able) / max(total, 1)
    valid = sum(not r.broken for r in able)
    return "\n".join(
        [
            table(cells, right=(5,)),
            "",
            f"{name}: {quantity(total)} weights of layers, {_percent(zeros / max(total, 1))} of them zero; "
            f"{len(able)} of {len(rows)} can have {pattern} ({_percent(share)} of the weights), {valid} have it",
            "the gain is guessed from sizes alone: measure it",
        ]
    )


def _state(row: Inspected) -> str:
    return "has it" if not row.broken else f"{out_of(row.broken, row.runs, 'run', 'does', 'do')} not"


def inspect_json(graph: Graph, pattern: Pattern, rows: Sequence[Inspected]) -> dict[str, Any]:
    """All of ``inspect --sparsity``."""
    return {
        "version": JSON_VERSION,
        "model": str(graph.source.path) if graph.source.path else None,
        "pattern": str(pattern),
        "weights": [
            {
                **_weight_json(r.weight),
                "zeros": r.zeros,
                "runs": r.runs,
                "broken_runs": r.broken,
                "gain": benefit(r.weight),
                "reason": r.reason or None,
                "free": r.free or None,
            }
            for r in rows
        ],
    }


# -- verify -----------------------------------------------------------------------------------------------------


def failures(rows: Sequence[Checked], pattern: Pattern, allow_dense: bool) -> list[Checked]:
    """Layers that break a pattern."""
    return [r for r in rows if r.broken and not (allow_dense and r.dense(pattern))]


def verify_text(model: Path, pattern: Pattern, rows: Sequence[Checked], allow_dense: bool) -> str:
    """The whole of ``secateur verify --pattern``."""
    wrong = failures(rows, pattern, allow_dense)
    looked = [r for r in rows if r.runs]
    dense = [r for r in looked if r.broken and r not in wrong]
    lines = [
        f"  {r.node} {list(r.shape)}: {out_of(r.broken, r.runs, 'run', 'breaks', 'break')} {pattern}"
        + (" (dense: leave it out with --keep, or allow it with --allow-dense)" if r.dense(pattern) else "")
        for r in wrong
    ]
    skipped: dict[str, int] = {}
    for row in rows:
        if not row.runs:
            skipped[row.skipped] = skipped.get(row.skipped, 0) + 1
    lines += [f"  not looked at: {counted(count, 'layer')}, {why}" for why, count in skipped.items()]
    if dense:
        lines.append(f"  dense, and allowed to be: {counted(len(dense), 'layer')}")
    good = len(looked) - len(wrong) - len(dense)
    runs = sum(r.runs for r in looked if not r.broken)
    end = f"{pattern} holds in {good} of {counted(len(looked), 'layer')} ({quantity(runs)} runs)"
    return "\n".join([*lines, f"{model}: {'FAILED: ' if wrong or not good else ''}{end}"])


def verify_json(model: Path, pattern: Pattern, rows: Sequence[Checked], allow_dense: bool) -> dict[str, Any]:
    """All of ``verify --pattern``."""
    wrong = failures(rows, pattern, allow_dense)
    return {
        "version": JSON_VERSION,
        "model": str(model),
        "pattern": str(pattern),
        "holds": not wrong and any(r.runs and not r.broken for r in rows),
        "layers": [
            {
                "node": r.node,
                "shape": list(r.shape),
                "runs": r.runs,
                "broken_runs": r.broken,
                "zeros": r.zeros,
                "skipped": r.skipped or None,
                "fails": r in wrong,
            }
            for r in rows
        ],
    }
