"""Measurements as JSON with a version field, and as CSV: raw samples, flags, and the environment they were taken in."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from runtime.environment import environment
from runtime.roofline import bottleneck, bound

if TYPE_CHECKING:
    from exporter.aligning import Aligned
    from exporter.latency.budget import LatencyOutcome
    from runtime.agreement import OutputDifference
    from runtime.backends import Availability
    from runtime.comparison import Comparison, Side
    from runtime.contention import Flag
    from runtime.latency import Latency
    from runtime.layers import LayerDifference
    from runtime.lint import Finding
    from runtime.profiling import NodeTime, Profile
    from runtime.robust import Ratio
    from runtime.roofline import Peaks
    from runtime.savings import Saving
    from runtime.staircase import Staircase

JSON_VERSION = 1
_TIMES = ("wall_s", "cpu_s", "thread_cpu_s", "device_s")


def bench_json(results: Sequence[Latency], ratios: Sequence[Ratio]) -> dict[str, Any]:
    """All of ``bench``, raw samples included. Ratios are of the models to the first of the same batch."""
    return {
        "version": JSON_VERSION,
        "environment": environment(),
        "results": [latency_json(r) for r in results],
        "ratios_to_first": [ratio_json(r) for r in ratios],
    }


def latency_json(latency: Latency) -> dict[str, Any]:
    """One measurement."""
    low, high = latency.interval
    return {
        "model": latency.model,
        "backend": latency.backend,
        "threads": latency.threads,
        "shapes": {k: list(v) for k, v in latency.shapes.items()},
        "batch": latency.batch,
        "load_s": latency.load,
        "first_s": latency.first,
        "cold": asdict(latency.cold) if latency.cold is not None else None,
        "median_s": latency.median,
        "median_low_s": low,
        "median_high_s": high,
        "min_s": float(latency.samples.min()),
        "mean_s": float(latency.samples.mean()),
        "p90_s": latency.percentile(90),
        "p99_s": latency.percentile(99),
        "device_median_s": latency.device_median,
        "samples_per_s": latency.throughput,
        "settled": latency.settled,
        "flags": flags_json(latency.flags),
        "samples_s": _rounded(latency.samples),
        "cpu_s": _rounded(latency.cpu),
        "thread_cpu_s": _rounded(latency.thread),
        "device_s": _rounded(latency.device),
        "switched": [bool(s) for s in latency.switched],
        "switches": [int(s) for s in latency.switches],
        "other_processors": _rounded(latency.others, 3),
        "streams": None
        if latency.streams is None
        else {
            "streams": latency.streams.streams,
            "runs_per_s": latency.streams.rate,
            "samples_s": _rounded(latency.streams.samples),
        },
        "gpu": asdict(latency.gpu) if latency.gpu is not None else None,
    }


def bench_csv(results: Sequence[Latency]) -> str:
    """One line for each sample."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "backend", "threads", "batch", "sample", *_TIMES, "switches", "other_processors"])
    for r in results:
        table = zip(r.samples, r.cpu, r.thread, r.device, r.switches, r.others, strict=True)
        for number, (wall, cpu, thread, device, switches, others) in enumerate(table):
            times = [f"{t:.9f}" if math.isfinite(t) else "" for t in (wall, cpu, thread, device)]
            load = f"{others:.3f}" if math.isfinite(others) else ""
            writer.writerow([r.model, r.backend, r.threads, r.batch, number, *times, int(switches), load])
    return text.getvalue()


def ratio_json(ratio: Ratio) -> dict[str, float]:
    """A ratio with its interval."""
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high}


def flags_json(flags: Sequence[Flag]) -> list[dict[str, str]]:
    """Signs of contention."""
    return [asdict(f) for f in flags]


def comparison_json(found: Comparison) -> dict[str, Any]:
    """All of ``compare``."""
    return {
        "version": JSON_VERSION,
        "environment": environment(),
        "first": _side_json(found.first),
        "other": _side_json(found.other),
        "clock": found.clock,
        "ratio": ratio_json(found.ratio),
        "wall_ratio": ratio_json(found.wall),
        "verdict": found.verdict,
        "rounds": found.rounds,
        "goal": {"fail_if_slower": found.goal.slower, "min_speedup": found.goal.speedup, "met": found.met},
        "outputs": [_output_json(o) for o in found.outputs],
        "layers": [layer_json(row) for row in found.layers],
        "flags": flags_json(found.flags),
        "savings": savings_json(found.savings),
    }


def profile_json(found: Profile, machine: Peaks) -> dict[str, Any]:
    """All of ``profile``."""
    return {
        "version": JSON_VERSION,
        "environment": environment(),
        "model": found.model,
        "backend": found.backend,
        "threads": found.threads,
        "shapes": {k: list(v) for k, v in found.shapes.items()},
        "runs": found.runs,
        "latency_s": found.latency,
        "kernels_s": found.kernels,
        "peaks": {"flops": machine.flops, "bytes_per_s": machine.bandwidth},
        "nodes": [_node_json(n, machine) for n in found.nodes],
    }


def trace_json(found: Profile) -> dict[str, Any]:
    """The last recorded run for Chrome's trace viewer (chrome://tracing, ui.perfetto.dev)."""
    return {"traceEvents": list(found.events), "displayTimeUnit": "ns"}


def backends_json(found: Mapping[str, Availability]) -> dict[str, Any]:
    """All of ``backends``."""
    return {
        "version": JSON_VERSION,
        "environment": environment(),
        "backends": [
            {"name": n, "device": a.device, "version": a.version, "usable": not a.missing, "missing": a.missing}
            for n, a in found.items()
        ],
    }


def staircase_json(found: Staircase) -> dict[str, Any]:
    """All of ``probe``."""
    return {
        "version": JSON_VERSION,
        "environment": environment(),
        "backend": found.backend,
        "threads": found.threads,
        "cached": found.cached,
        "steps": {kind: found.step(kind) for kind in found.curves},
        "seconds": {kind: {str(w): t for w, t in curve.items()} for kind, curve in found.curves.items()},
        "penalty": {kind: {str(w): found.penalty(kind, w) for w in curve} for kind, curve in found.curves.items()},
    }


def aligned_json(found: Aligned) -> dict[str, Any]:
    """All of ``align``."""
    return {
        "version": JSON_VERSION,
        "output": str(found.output),
        "groups": [asdict(p) for p in found.paddings],
        "refused": dict(found.refused),
        "error": found.error,
        "comparison": comparison_json(found.comparison),
    }


def lint_json(model: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """All of ``lint``."""
    return {"version": JSON_VERSION, "model": model, "findings": [asdict(f) for f in findings]}


def outcome_json(found: LatencyOutcome) -> dict[str, Any]:
    """What pruning to a latency came to."""
    return {
        "target": {"share": found.target.share, "seconds": found.target.seconds},
        "share": found.share,
        "predicted": found.predicted,
        "measured": ratio_json(found.ratio),
        "tried": [{"predicted": p, "measured": ratio_json(r)} for p, r in found.tried],
        "comparison": comparison_json(found.comparison),
        "savings": savings_json(found.savings),
    }


def savings_json(rows: Sequence[Saving]) -> list[dict[str, Any]]:
    """What each layer saved, and what holds it back."""
    return [asdict(r) for r in rows]


def _node_json(node: NodeTime, machine: Peaks) -> dict[str, Any]:
    return {
        **asdict(node),
        "flops_per_s": node.rate,
        "intensity": node.intensity,
        "bound_s": bound(node, machine),
        "bottleneck": bottleneck(node, machine),
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "model": side.model,
        "backend": side.backend,
        "threads": side.threads,
        "shapes": {k: list(v) for k, v in side.shapes.items()},
        "samples_s": _rounded(side.wall),
        "thread_cpu_s": _rounded(side.cpu),
        "device_s": _rounded(side.device),
        "switched": [bool(s) for s in side.switched],
    }


def _output_json(output: OutputDifference) -> dict[str, Any]:
    return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(output).items()}


def layer_json(row: LayerDifference) -> dict[str, Any]:
    """A layer of two models."""
    return {**asdict(row), "difference_s": row.difference}


def _rounded(values: Any, places: int = 9) -> list[float | None]:
    """Numbers JSON can hold: what is not known is null."""
    return [round(float(v), places) if math.isfinite(v) else None for v in values]
