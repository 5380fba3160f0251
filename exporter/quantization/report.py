"""What ``quantize`` did, for the console and as JSON."""

from __future__ import annotations

from typing import Any

from exporter.latency.report_json import ratio_json
from exporter.quantization.quantizer import Quantized
from exporter.report_calibration import before_after
from exporter.report_json import accuracy_json
from exporter.search import shown
from exporter.tables import milliseconds, quantity, short, threads_text
from runtime.nouns import counted

_NAMED = 8


def quantize_text(found: Quantized) -> str:
    """The report."""
    lines = [
        f"{found.source} -> {found.output}",
        f"{found.precision.name} for {found.profile}: {found.precision.about}"
        + (f"; ranges by {found.method}" if found.method else ""),
        f"{len(found.quantized)} of {counted(len(found.layers), 'layer')} quantized",
    ]
    lines += _search(found)
    lines += [f"  {short(name)} stays in float: {why}" for name, why in list(found.reasons.items())[:_NAMED]]
    if len(found.reasons) > _NAMED:
        lines.append(f"  and {len(found.reasons) - _NAMED} more; --json has all")
    if found.accuracy is not None:
        lines.append(
            f"on {counted(found.accuracy.samples, 'held-out input')}: {found.accuracy.metric} "
            f"{before_after(found.accuracy)}"
        )
    if found.error is not None:
        lines.append(f"output error {found.error:.3g} of the outputs' variance")
        if found.fits and found.rounded is not None:
            lines[-1] += f"; {found.rounded:.3g} without fitting {counted(len(found.fits), 'layer')}"
    sparse, pattern = found.sparse
    if sparse:
        lines.append(f"zeros kept, as checked in the result: {counted(sparse, 'sparse layer')}, {pattern} of them 2:4")
    lines.append(
        f"size {quantity(found.before)}B -> {quantity(found.after)}B ({found.after / max(found.before, 1):.3f} of it)"
    )
    lines += _speed(found)
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _search(found: Quantized) -> list[str]:
    search = found.search
    if search is None:
        return []
    tries = ", ".join(f"{count}: {shown(drop, search.accuracy)}" for count, drop in search.tries)
    return [
        f"drop by number of layers in float ({search.accuracy.metric}, {counted(search.accuracy.samples, 'sample')}, "
        f"at most {shown(search.limit, search.accuracy)}): {tries}"
    ]


def _speed(found: Quantized) -> list[str]:
    compared = found.comparison
    if compared is None:
        if found.profile == "tensorrt":
            return ["speed was not measured: that takes the device (secateur compare --backend tensorrt)"]
        return []
    ratio = compared.ratio
    return [
        f"latency {milliseconds(compared.first.median)} -> {milliseconds(compared.other.median)}: {ratio.value:.3f} "
        f"times as long ({ratio.low:.3f} .. {ratio.high:.3f}), {counted(compared.first.wall.size, 'pair')}, "
        f"{threads_text(compared.first.threads, 'all')}: {compared.verdict}",
        *(f"caution: {flag.text}" for flag in compared.flags),
    ]


def quantize_json(found: Quantized) -> dict[str, Any]:
    """All of it."""
    compared = found.comparison
    return {
        "version": 1,
        "model": str(found.source),
        "output": str(found.output),
        "precision": found.precision.name,
        "profile": found.profile,
        "method": found.method or None,
        "layers": [
            {"node": x.node, "op": x.op, "weight": x.weight, "shape": list(x.shape),
             "quantized": x.node in found.quantized, "reason": found.reasons.get(x.node),
             "fit": None if x.weight not in found.fits else
             {"error": found.fits[x.weight].error, "error_rounded": found.fits[x.weight].plain}}
            for x in found.layers
        ],
        "bytes_before": found.before,
        "bytes_after": found.after,
        "accuracy": accuracy_json(found.accuracy),
        "output_error": found.error,
        "output_error_rounded": found.rounded,
        "search": None if found.search is None else {
            "limit": found.search.limit,
            "damage": dict(found.search.damage),
            "tries": [{"in_float": count, "drop": drop} for count, drop in found.search.tries],
        },
        "sparse_layers": found.sparse[0],
        "layers_2_4": found.sparse[1],
        "latency_ratio": None if compared is None else ratio_json(compared.ratio),
        "verdict": None if compared is None else compared.verdict,
        "notes": list(found.notes),
    }  # fmt: skip
