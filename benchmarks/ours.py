"""Secateur's side of the benchmarks. Every function is to be called in a child."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.pruner import Result


def measure(path: str) -> dict[str, Any]:
    """Multiply-accumulates per sample and parameters of a file, by Secateur's cost model."""
    from exporter import find_groups, load
    from exporter.pruner import totals

    graph = load(path)
    found = totals(graph, find_groups(graph))
    return {"macs": found.macs, "parameters": found.parameters}


def inspect(path: str) -> dict[str, Any]:
    """Number of groups of a file, the share of its parameters that belongs to one, what freezes most of its axes."""
    from exporter import find_groups, load
    from exporter.report import prunable_parameters

    graph = load(path)
    groups = find_groups(graph)
    reasons = Counter(f"{f.reason.text} ({f.reason.where})" if f.reason.where else f.reason.text for f in groups.frozen)
    return {
        "groups": len(groups),
        "prunable": prunable_parameters(groups) / max(graph.parameters, 1),
        "frozen": reasons.most_common(1)[0][0] if reasons else "",
    }


def prune(source: str, output: str, ratio: float = 0.5, align: int = 1) -> dict[str, Any]:
    """Prune a file and prove the result.

    Returns:
        ``macs_left``, ``parameters_left``, ``groups``, ``prunable``, what the proof found, ``seconds``.
    """
    return _pruned(source, output, ratio, align)[1]


def _pruned(source: str, output: str, ratio: float, align: int) -> tuple[Result, dict[str, Any]]:
    """What ``prune`` of the library returned, and the figures of it."""
    from exporter import prune as prune_file
    from exporter.report import prunable_parameters

    started = time.perf_counter()
    result = prune_file(source, output, ratio=ratio, align=align)
    seconds = time.perf_counter() - started
    before, after, proof = result.before, result.after, result.proof
    assert proof is not None
    return result, {
        "macs": before.macs,
        "parameters": before.parameters,
        "macs_left": after.macs / max(before.macs, 1),
        "parameters_left": after.parameters / max(before.parameters, 1),
        "groups": len(result.groups),
        "prunable": prunable_parameters(result.groups) / max(before.parameters, 1),
        "error": proof.error,
        "change": proof.change,
        "warnings": list(result.warnings),
        "bytes": Path(output).stat().st_size,
        "seconds": seconds,
    }


def survey(source: str, output: str, ratio: float = 0.5) -> dict[str, Any]:
    """Like ``prune``, with what held back the cut; without a group, what freezes everything.

    Returns:
        What ``prune`` returns and ``why``, see ``shortfall``.
    """
    import shortfall

    from exporter import find_groups, load
    from exporter.errors import ModelError

    try:
        result, figures = _pruned(source, output, ratio, align=1)
    except ModelError as error:
        groups = find_groups(load(source))
        if len(groups) and _runs(source):
            raise
        return {"explained": str(error).splitlines()[0], "reasons": inspect(source)["frozen"]}
    return {**figures, "why": shortfall.shortfall(result.groups, result.plan)}


def _runs(source: str) -> bool:
    """Say whether ONNX Runtime loads a file."""
    import onnxruntime as ort

    try:
        ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def command_line(arguments: list[str]) -> dict[str, Any]:
    """Run the command line in this process, to see what it imports."""
    from exporter.cli import main

    status = main(arguments)
    if status:
        raise RuntimeError(f"exit status {status}")
    return {}
