"""What a build says: a table for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from exporter.engines.maker import Engine
from exporter.precision.converting import Converted
from exporter.tables import milliseconds, quantity, short, table
from runtime.engine.inspection import EngineLayer, precisions
from runtime.engine.log import LEVELS, telling
from runtime.engine.metadata import metadata_file
from runtime.engine.timing import LayerTime, slowest
from runtime.nouns import counted

VERSION = 1
_MOST = 12


def engine_text(engine: Engine, log: str = "") -> str:
    """The report for the console.

    Args:
        engine: what was built.
        log: show the log up to this level; empty for none.
    """
    built = engine.built
    lines = []
    if log:
        lines += [f"[{m.level}] {m.text}" for m in (built.log if log == LEVELS[-1] else telling(built.log, log))]
    if engine.converted is not None:
        lines += [converted_text(engine.converted), ""]
    lines.append(table(_rows(engine), right=(1, 2)))
    lines += ["", *_facts(engine)]
    lines.append(
        f"{engine.path}: {quantity(len(built.engine))}B, {built.flavour} {built.version}, {built.seconds:.1f} s; "
        f"described in {metadata_file(engine.path).name}"
    )
    return "\n".join(lines)


def _rows(engine: Engine) -> list[list[str]]:
    if engine.layers is not None:
        rows = [["layer", "type", "precision", "kernel"]]
        return rows + [[short(e.name), e.kind, e.precision, short(e.tactic)] for e in engine.layers[:_MOST]]
    counts: Counter[tuple[str, str]] = Counter()
    for layer in engine.built.layers:
        counts[layer.kind.replace("_", " "), "/".join(layer.types)] += 1
    rows = [["layers as read", "count", "type"]]
    return rows + [[kind, str(n), types] for (kind, types), n in counts.most_common(_MOST)]


def _facts(engine: Engine) -> list[str]:
    built = engine.built
    lines = []
    for k, ranges in enumerate(built.profiles):
        sizes = "; ".join(f"{name} {sizes}" for name, sizes in ranges.items())
        note = " (derived; change them with --shape)" if built.derived else ""
        lines.append(f"profile {k}: {sizes}{note}")
    if built.options.sparse:
        lines.append(_sparsity_text(engine))
    if built.fallbacks:
        lines.append(f"computed in float, {counted(len(built.fallbacks), 'layer')} of the quantized model:")
        lines += [f"  {f.operator} '{f.node}': {f.reason}" for f in built.fallbacks[:_MOST]]
        if len(built.fallbacks) > _MOST:
            lines.append(f"  and {len(built.fallbacks) - _MOST} more, see --json")
    if engine.layers is not None:
        kinds = ", ".join(f"{n} {kind}" for kind, n in precisions(engine.layers).items())
        lines.append(f"{counted(len(engine.layers), 'layer')} after fusion: {kinds}")
    else:
        lines.append(f"fused layers, kernels and memory are not known: {engine.unseen.splitlines()[0]}")
    if engine.memory is not None:
        lines.append(f"memory: {quantity(engine.memory)}B besides weights, at the largest sizes")
    lines += [f"{m.level}: {m.text}" for m in built.messages]
    return lines


def _sparsity_text(engine: Engine) -> str:
    found = engine.built.sparsity
    if found is None:
        return "sparse kernels allowed; this builder does not say where it chose them"
    chosen = "does not say for how many" if found.chosen is None else f"for {found.chosen} of them"
    names = f": {', '.join(found.kernels)}" if found.kernels else ""
    have = counted(found.eligible, "layer has", "layers have")
    return f"sparse kernels: {have} the pattern, the builder chose them {chosen}{names}"


def converted_text(found: Converted) -> str:
    """What a conversion to half precision did."""
    asked = [s for s in found.stay if s.asked]
    lines = [
        f"{counted(found.nodes, 'node computes', 'nodes compute')} in {found.precision}, {len(found.stay)} "
        f"{'stays' if len(found.stay) == 1 else 'stay'} in fp32, {counted(found.casts, 'cast')} added; outputs differ "
        f"by {found.error:.2g} of their standard deviation at most, {found.output_error**0.5:.2g} in the mean square "
        f"({counted(found.samples, 'sample')}, {found.source})"
    ]
    lines += [f"  {s.node} stays: {s.reason}" for s in asked[:_MOST]]
    reasons = Counter(s.reason for s in found.stay if not s.asked)
    lines += [f"  {n} x {reason}" if n > 1 else f"  {reason}" for reason, n in reasons.most_common(_MOST)]
    if found.source == "synthetic":
        lines.append("  made-up inputs show only some overflows: give real ones with --calib DATA")
    return "\n".join(lines)


def converted_json(found: Converted) -> dict[str, Any]:
    """The same for programs."""
    return {
        "version": VERSION,
        "path": str(found.path) if found.path is not None else None,
        "precision": found.precision,
        "nodes": found.nodes,
        "stay": [vars(s) for s in found.stay],
        "casts": found.casts,
        "bytes": {"before": found.before, "after": found.after},
        "errors": found.errors,
        "output_error": found.output_error,
        "samples": found.samples,
        "source": found.source,
        "keep_io": found.keep_io,
    }


def engine_json(engine: Engine) -> dict[str, Any]:
    """The report for programs."""
    built = engine.built
    return {
        "version": VERSION,
        "source": str(engine.source),
        "engine": str(engine.path),
        "bytes": len(built.engine),
        "backend": built.flavour,
        "backend_version": built.version,
        "seconds": built.seconds,
        "precision": engine.precision,
        "converted": converted_json(engine.converted) if engine.converted is not None else None,
        "profiles": [{n: str(r) for n, r in ranges.items()} for ranges in built.profiles],
        "profiles_derived": built.derived,
        "layers_read": [{"name": e.name, "kind": e.kind, "types": list(e.types)} for e in built.layers],
        "layers": [_layer_json(e) for e in engine.layers] if engine.layers is not None else None,
        "memory_bytes": engine.memory,
        "quantized": sorted(built.quantized),
        "float_layers": [vars(f) for f in built.fallbacks],
        "sparsity": vars(built.sparsity) if built.sparsity is not None else None,
        "device": vars(engine.device) if engine.device is not None else None,
        "timing_cache_written": built.timings,
        "messages": [vars(m) for m in built.messages],
        "log_lines": built.heard,
    }


def _layer_json(layer: EngineLayer) -> dict[str, Any]:
    return {**vars(layer), "formats": list(layer.formats), "nodes": list(layer.nodes)}


def layers_text(layers: Sequence[LayerTime], seconds: float, most: int) -> str:
    """Layers of an engine that take longest.

    Args:
        layers: all of them.
        seconds: of a run that is not profiled.
        most: how many to show.
    """
    total = sum(each.seconds for each in layers)
    rows = [["layer", "time", "share", "MACs", "GFLOP/s", "precision", "kernel"]]
    for each in slowest(layers, most):
        share = f"{100 * each.seconds / total:.1f} %" if total else ""
        macs, rate = each.node.macs, each.node.rate
        work = [quantity(macs), f"{rate / 1e9:.3g}"] if macs else ["", ""]
        rows.append(
            [
                short(each.layer.name), milliseconds(each.seconds), share, *work, each.layer.precision,
                short(each.layer.tactic),
            ]
        )  # fmt: skip
    return (
        table(rows, right=(1, 2, 3, 4))
        + f"\n\n{counted(len(layers), 'layer takes', 'layers take')} {milliseconds(total)} when each is timed; "
        f"a run takes {milliseconds(seconds)} on the device"
    )


def layers_json(layers: Sequence[LayerTime], seconds: float) -> dict[str, Any]:
    """The same for programs."""
    return {
        "version": VERSION,
        "seconds": seconds,
        "layers": [
            {
                **_layer_json(each.layer),
                "seconds": each.seconds,
                "node": each.node.name if each.node.keys else None,
                "keys": list(each.node.keys),
                "macs": each.node.macs,
                "bytes": each.node.bytes,
            }
            for each in layers
        ],
    }
