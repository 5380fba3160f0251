"""What the commands print, as JSON with a version field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.blocks import Block, find_blocks
from exporter.graph import Graph
from exporter.groups import Frozen, Group, Groups
from exporter.hints import hint_for
from exporter.interface import shrunk
from exporter.proof import Proof
from exporter.pruner import Result, Totals
from exporter.report import dropped_blocks, prunable_parameters
from exporter.rounds import Round
from exporter.search import Search
from runtime.robust import Ratio

if TYPE_CHECKING:
    from exporter.calibration.accuracy import Accuracy
    from exporter.calibration.fidelity import Fidelity
    from runtime.evaluation import Evaluation
    from runtime.latency import Latency

JSON_VERSION = 1


def inspect_json(graph: Graph, groups: Groups, before: Totals) -> dict[str, Any]:
    """All of ``inspect``."""
    return {
        "version": JSON_VERSION,
        "model": _model_json(graph),
        "totals": _totals_json(before),
        "prunable_parameters": prunable_parameters(groups),
        "layers": [_block_json(b) for b in find_blocks(groups)],
        "groups": [_group_json(g) for g in groups],
        "frozen": [_frozen_json(f) for f in groups.frozen],
    }


def prune_json(result: Result, latency: tuple[Latency, Latency, Ratio] | None = None) -> dict[str, Any]:
    """All of ``prune``."""
    planned, dropped = {g.name: g for g in result.plan.groups}, dropped_blocks(result)
    document: dict[str, Any] = {
        "version": JSON_VERSION,
        "model": _model_json(result.groups.graph),
        "output": str(result.output) if result.output is not None else None,
        "options": dict(result.plan.options),
        "before": _totals_json(result.before),
        "after": _totals_json(result.after),
        "layers": [{**_block_json(b), "kept": b.name not in dropped} for b in result.blocks or ()],
        "groups": [{**_group_json(g), "keep": list(planned[g.name].keep)} for g in result.groups],
        "frozen": [_frozen_json(f) for f in result.groups.frozen],
        "interface": [
            {"name": c.name, "kind": c.kind, "axis": c.axis, "before": c.before, "keep": list(c.keep)}
            for c in shrunk(result.plan, result.groups.graph)
        ],
        "proof": proof_json(result.proof) if result.proof is not None else None,
        "fidelity": _fidelity_json(result.fidelity) if result.fidelity is not None else None,
        "search": _search_json(result.search) if result.search is not None else None,
        "rounds": [_round_json(r) for r in result.rounds],
        "seconds": result.seconds,
        "warnings": list(result.warnings),
    }
    if latency is not None:
        from exporter.latency.report_json import latency_json, ratio_json  # what measures takes a while to load

        dense, pruned, ratio = latency
        document["latency"] = {"dense": latency_json(dense), "pruned": latency_json(pruned), "ratio": ratio_json(ratio)}
    return document


def _fidelity_json(found: Fidelity) -> dict[str, Any]:
    return {
        **vars(found),
        "accuracy": accuracy_json(found.accuracy),
        "refits": [vars(r) for r in found.refits],
        "unfitted": [vars(u) for u in found.unfitted],
    }


def accuracy_json(found: Accuracy | None) -> dict[str, Any] | None:
    """How a result was judged; what is not finite is null."""
    if found is None:
        return None
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(found).items()}


def _search_json(found: Search) -> dict[str, Any]:
    tries = [{**vars(t), "accuracy": accuracy_json(t.accuracy)} for t in found.tries]
    return {**vars(found), "tries": tries}


def _round_json(found: Round) -> dict[str, Any]:
    return {**vars(found), "proof": proof_json(found.proof) if found.proof is not None else None}


def proof_json(proof: Proof) -> dict[str, Any]:
    """A proof."""
    return {
        "error": proof.error,
        "outputs": dict(proof.outputs),
        "tolerance": proof.tolerance,
        "change": proof.change,
        "inner": proof.inner,
        "pieces": proof.pieces,
        "runs": proof.runs,
        "shapes": [{k: list(v) for k, v in shapes.items()} for shapes in proof.shapes],
        "warnings": list(proof.warnings),
    }


def evaluation_json(model: Path, result: Evaluation) -> dict[str, Any]:
    """All of ``eval``; a value that is no finite number is null."""
    return {
        "version": JSON_VERSION,
        "model": str(model),
        "metric": result.metric,
        "value": result.value if math.isfinite(result.value) else None,
        "standard_error": result.error if result.error is not None and math.isfinite(result.error) else None,
        "better": result.better,
        "output": result.output,
        "samples": result.samples,
        "seconds": result.seconds,
        "notes": list(result.notes),
    }


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


def _block_json(block: Block) -> dict[str, Any]:
    return {
        "name": block.name,
        "sum": block.drop.node,
        "parameters": block.parameters,
        "macs": block.macs,
        "nodes": len(block.nodes),
        "inside": sorted(block.inside),
    }


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
