"""What the commands print on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.blocks import KIND, Block, Blocks, find_blocks
from exporter.graph import Graph
from exporter.groups import Frozen, Group, Groups
from exporter.hints import hint_for, kind_of_hint, together
from exporter.interface import shrunk
from exporter.plan import PlannedGroup
from exporter.proof import Proof
from exporter.pruner import Result, Totals
from exporter.report_calibration import calibrated_text, value_text
from exporter.tables import error_text, milliseconds, quantity, short, table
from runtime.nouns import counted
from runtime.robust import Ratio

if TYPE_CHECKING:
    from exporter.calibration.fidelity import Fidelity
    from runtime.contention import Flag
    from runtime.evaluation import Evaluation
    from runtime.latency import Latency

_NAMED_SPANS = 2
_NAMED_TENSORS = 4


# -- inspect and prune ------------------------------------------------------------------------------------------


def spans_text(group: Group) -> str:
    """The axes of constants a group spans: the first few by name, the number of the rest."""
    named = list(dict.fromkeys(f"{short(s.tensor)}[{s.axis}]" for s in group.parameters))
    more = len(named) - _NAMED_SPANS
    return ", ".join(named[:_NAMED_SPANS]) + (f" +{more}" if more > 0 else "")


def groups_table(
    groups: Groups,
    planned: Mapping[str, PlannedGroup] | None = None,
    blocks: Blocks | None = None,
    dropped: frozenset[str] = frozenset(),
) -> str:
    """One row per residual block and group: name, kind, width, what is kept, what it spans."""
    head = ["group", "kind", "width", "spans"] if planned is None else ["group", "kind", "width", "kept", "spans"]
    rows = [head]
    for block in blocks or ():
        row = [short(block.name), KIND, "1", _block_text(block)]
        if planned is not None:
            row.insert(3, str(int(block.name not in dropped)))
        rows.append(row)
    for group in groups:
        row = [short(group.name), group.kind, str(group.width), spans_text(group)]
        if planned is not None:
            kept = len(planned[group.name].keep) if group.name in planned else group.width
            row.insert(3, str(kept))
        rows.append(row)
    return table(rows, right=(2,) if planned is None else (2, 3))


def _block_text(block: Block) -> str:
    around = f", {counted(len(block.inside), 'block')} inside" if block.inside else ""
    return f"{quantity(block.parameters)} parameters, {quantity(block.macs)} MACs{around}"


def totals_table(
    before: Totals,
    after: Totals,
    latency: tuple[Latency, Latency, Ratio] | None = None,
    fidelity: Fidelity | None = None,
) -> str:
    """Parameters, multiply-accumulates, file size, latency and accuracy, before and after."""
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
    accuracy = fidelity.accuracy if fidelity is not None else None
    if accuracy is not None:
        old_, new_ = (value_text(v, accuracy) for v in (accuracy.dense, accuracy.pruned))
        rows.append([accuracy.metric, old_, new_, f"on {counted(accuracy.samples, 'held-out sample')}"])
    return table(rows, right=(1, 2))


def frozen_text(frozen: Sequence[Frozen]) -> str:
    """What stays, grouped by reason."""
    if not frozen:
        return "nothing is frozen"
    by_reason: dict[tuple[str, str], list[Frozen]] = {}
    for row in frozen:
        by_reason.setdefault((row.reason.text, kind_of_hint(hint_for(row.reason))), []).append(row)
    lines = ["frozen, by reason:"]
    for (text, kind), rows in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        shown = [_frozen_axis(r) for r in rows[:_NAMED_TENSORS]]
        more = f", and {len(rows) - _NAMED_TENSORS} more" if len(rows) > _NAMED_TENSORS else ""
        where = rows[0].reason.where
        lines.append(f"  {text} ({short(where)})" if where else f"  {text}")
        lines.append(f"    {', '.join(shown)}{more}")
        if kind:
            lines.append(f"    to free it: {together(hint_for(row.reason) for row in rows)}")
    return "\n".join(lines)


def _frozen_axis(row: Frozen) -> str:
    part = f"{row.count} of {row.size}" if row.count < row.size else str(row.size)
    return f"{short(row.tensor)}[{row.axis}] ({part})"


def inspect_text(graph: Graph, groups: Groups, before: Totals) -> str:
    """The whole of ``secateur inspect``."""
    prunable, blocks = prunable_parameters(groups), find_blocks(groups)
    name = graph.source.path.name if graph.source.path is not None else "model"
    size = f", {quantity(before.file_bytes)}B" if before.file_bytes else ""
    binding = ", ".join(f"{k}={v}" for k, v in graph.binding.symbols.items())
    sizes = [f"dynamic axes, sizes taken: {binding}"] if binding else []
    if graph.batch > 1:
        sizes = ["; ".join([*(sizes or [f"a batch of {graph.batch}"]), "MACs are counted for one sample"])]
    lines = [
        f"{name}: {quantity(before.parameters)} parameters, {quantity(before.macs)} MACs{size}, "
        f"{counted(len(graph.nodes), 'node')}",
        *sizes,
        "",
        groups_table(groups, blocks=blocks) if len(groups) or len(blocks) else "no group of units can be removed",
        "",
        f"{counted(len(groups), 'group')}; {100 * prunable / max(before.parameters, 1):.1f} % of the parameters are in "
        f"{'it' if len(groups) == 1 else 'one'}",
        "",
        frozen_text(groups.frozen),
        *(f"residual block {short(r.name)} stays: {r.reason}\n    to free it: {r.hint}" for r in blocks.refused),
    ]
    return "\n".join(lines)


def prunable_parameters(groups: Groups) -> int:
    """Number of parameters that belong to at least one unit."""
    masks: dict[str, list[tuple[int, Any]]] = {}
    for group in groups:
        for span in (s for s in group.parameters if s.tensor in groups.graph.trained):
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


def prune_text(result: Result, latency: tuple[Latency, Latency, Ratio] | None = None, more: str = "") -> str:
    """The whole of ``secateur prune``: details first; at the end before and after, and the verdict.

    Args:
        result: what was done.
        latency: of both models, and their ratio, where they were measured.
        more: shown before the end.
    """
    flags = [flag for side in latency[:2] for flag in side.flags] if latency is not None else []
    planned = {g.name: g for g in result.plan.groups}
    lines = [
        groups_table(result.groups, planned, result.blocks, dropped_blocks(result)),
        "",
        frozen_text(result.groups.frozen),
        *calibrated_text(result),
        *_interface(result),
        *([more] if more else []),
        "",
        *(f"note: {w}" for w in result.warnings),
        *([""] if result.warnings else []),
        totals_table(result.before, result.after, latency, result.fidelity),
        *_cautions(flags),
        *_achieved(result),
        verdict(result),
    ]
    return "\n".join(lines)


def _cautions(flags: Sequence[Flag]) -> Sequence[str]:
    if not flags:
        return ()
    from exporter.latency.report import cautions  # what measures takes a while to load

    return cautions(flags)


def dropped_blocks(result: Result) -> frozenset[str]:
    """Names of the residual blocks that go, those inside others included."""
    nodes = {d.node for d in result.plan.drop}
    gone = [b for b in result.blocks or () if b.drop.node in nodes]
    return frozenset(name for b in gone for name in (b.name, *b.inside))


def _achieved(result: Result) -> list[str]:
    """How far the budget was missed, where alignment, or the size of whole blocks, left more than 2 % of it."""
    if result.search is not None:  # nobody asked for this budget
        return []
    blocks = result.plan.drop and all(len(g.keep) == g.width for g in result.plan.groups)
    why = "no residual block that goes would fit" if blocks else "alignment leaves no width between"
    for kind, old, new in (
        ("macs", result.before.macs, result.after.macs),
        ("params", result.before.parameters, result.after.parameters),
    ):
        target = result.plan.options.get(kind)
        if isinstance(target, float) and old:
            missed = target - new / old
            if missed > 0.02 * target:
                return [f"--{kind} {target:g}: {new / old:.3f} is left, {missed:.3f} less than allowed: {why}"]
    return []


def _interface(result: Result) -> list[str]:
    """The axes of inputs and outputs that shrank: what calls the model must follow."""
    rows: dict[tuple[str, str, int, int], list[str]] = {}
    for cut in shrunk(result.plan, result.groups.graph):
        what = "number of ids" if cut.ids else f"axis {cut.axis}"
        rows.setdefault((cut.kind, what, cut.before, len(cut.keep)), []).append(cut.name)
    gone = [name for drop in result.plan.drop for name in drop.interface]
    if not rows and not gone:
        return []
    lines = ["", "THE INTERFACE CHANGES (kept indices: hide in the plan, or --json):"]
    for (kind, what, before, after), names in rows.items():
        more = f", and {len(names) - _NAMED_TENSORS} more" if len(names) > _NAMED_TENSORS else ""
        lines.append(f"  {kind} {', '.join(names[:_NAMED_TENSORS])}{more}: {what} is {after}, was {before}")
    if gone:
        lines.append(f"  gone with the layers: {', '.join(gone)}")
    return lines


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
        f"proved equal to the masked original, relative error {error_text(proof.error)} (accepted: "
        f"{proof.tolerance:g}), {counted(proof.runs, 'input set')}, {counted(proof.inner, 'inner tensor')}"
        + (f", piece by piece ({proof.pieces} pieces)" if proof.pieces > 1 else "")
    )


# -- eval -------------------------------------------------------------------------------------------------------


def evaluation_text(model: Path, result: Evaluation) -> str:
    """The value with its standard error, and what was done to the data."""
    scale, unit, places = (100, " %", ".2f") if result.rate else (1, "", ".5g")
    value = f"{scale * result.value:{places}}{unit}"
    error = (
        "" if result.error is None else f" (standard error {scale * result.error:{'.2f' if result.rate else '.2g'}})"
    )
    what = f"{counted(result.samples, 'sample')}, output '{result.output}', {result.seconds:.1f} s"
    return "\n".join([*(f"note: {n}" for n in result.notes), f"{model}: {result.metric} {value}{error}; {what}"])
