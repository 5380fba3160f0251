"""What bench, compare, profile, probe, lint and backends print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from exporter.tables import milliseconds, quantity, shapes_text, short, table, threads_text
from runtime.nouns import counted
from runtime.robust import Ratio, needed
from runtime.roofline import bottleneck, bound, held_back

if TYPE_CHECKING:
    from exporter.aligning import Aligned
    from exporter.latency.budget import LatencyOutcome
    from runtime.agreement import OutputDifference
    from runtime.backends import Availability
    from runtime.comparison import Comparison
    from runtime.contention import Flag
    from runtime.gpu_state import GpuRecord
    from runtime.latency import Latency
    from runtime.layers import LayerDifference
    from runtime.lint import Finding
    from runtime.profiling import NodeTime, Profile
    from runtime.roofline import Peaks
    from runtime.savings import Saving
    from runtime.staircase import Staircase

_CLOCKS = {"cpu": "CPU time of one thread", "wall": "wall time", "device": "time on the device"}
_VERDICTS = {
    "faster": "{} is faster",
    "slower": "{} is slower",
    "same": "no difference: {} takes the same within 1 %",
    "inconclusive": "inconclusive: the interval leaves open which is faster; give more --seconds or a quieter machine",
}


def bench_text(results: Sequence[Latency], ratios: Sequence[Ratio | None]) -> str:
    """One row for each model and batch; with several models, the ratio to the first of the same batch.

    Args:
        results: the measurements.
        ratios: of each to the first of its batch, None for that one itself.
    """
    batches = len({r.batch for r in results}) > 1
    paired = any(r is not None for r in ratios)
    cold = any(r.cold is not None for r in results)
    head = ["model", *(["batch"] if batches else []), "median", "+-", "min", "mean", "p90", "p99", "a second"]
    head += ["load", "first run", *(["memory"] if cold else []), "samples"]
    head += ["against the first (95 % interval)"] if paired else []
    rows = [head]
    for result, ratio in zip(results, ratios, strict=True):
        rows.append(_bench_row(result, batches, cold) + ([_ratio(ratio) if ratio else ""] if paired else []))
    shapes = shapes_text(results[0].shapes)
    threads = threads_text(results[0].threads)
    inputs = f"inputs at batch {results[0].batch}" if batches else "inputs"
    lines = [f"{results[0].backend}, {threads}, {inputs}: {shapes or 'none'}", "", table(rows, right=range(1, 13))]
    lines += [*_streams(results, batches), *_gpu(results[-1].gpu)]
    return "\n".join([*lines, *cautions(f for r in results for f in r.flags)])


def _bench_row(result: Latency, batches: bool, cold: bool) -> list[str]:
    low, high = result.interval
    reach = max(high - result.median, result.median - low) / result.median
    start = result.cold or result
    memory = result.cold.memory if result.cold is not None else None
    return [
        result.model,
        *([str(result.batch)] if batches else []),
        milliseconds(result.median),
        f"{100 * reach:.1f} %",
        milliseconds(float(result.samples.min())),
        milliseconds(float(result.samples.mean())),
        _percentile(result, 90),
        _percentile(result, 99),
        f"{result.throughput:.4g}",
        milliseconds(start.load),
        milliseconds(start.first),
        *([f"{quantity(memory)}B" if memory is not None else "?"] if cold else []),
        str(result.samples.size),
    ]


def _streams(results: Sequence[Latency], batches: bool) -> list[str]:
    lines = []
    for r in results:
        if r.streams is not None:
            alone = 1 / float(r.samples.mean())
            name = f"{r.model} at batch {r.batch}" if batches else r.model
            lines.append(
                f"{name}: {r.streams.streams} at a time make {r.streams.rate:.4g} runs a second, "
                f"{r.streams.rate / alone:.2f} times as many as one after another"
            )
    return ["", *lines] if lines else []


def _gpu(record: GpuRecord | None) -> list[str]:
    """What the GPU was doing around the samples."""
    if record is None:
        return []
    if record.before is None or record.after is None:
        return ["", f"clocks, power and temperature of the GPU are not known: {record.missing}"]
    known = (
        f"{name} {_number(getattr(record.before, field))} -> {_number(getattr(record.after, field))} {unit}"
        for name, field, unit in (("clock", "clock", "MHz"), ("power", "power", "W"), ("", "temperature", "C"))
    )
    return ["", f"{record.after.name}: {', '.join(k.strip() for k in known)}"]


def _number(value: float | None) -> str:
    return f"{value:.0f}" if value is not None else "?"


def _percentile(latency: Latency, q: int) -> str:
    value = latency.percentile(q)
    return milliseconds(value) if value is not None else f"needs {needed(q)}"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} .. {ratio.high:.3f})"


def cautions(flags: Iterable[Flag]) -> list[str]:
    """Lines on what disturbed a measurement, each sign once; none where nothing did."""
    texts = {f.kind: f.text for f in flags}
    return ["", *(f"caution: {text}" for text in texts.values())] if texts else []


def comparison_text(found: Comparison, top: int) -> str:
    """The whole of ``compare``."""
    first, other = found.first, found.other
    a, b = side_names(found)
    rows = [["", "median", "backend", "threads"]]
    for name, side in ((a, first), (b, other)):
        rows.append([name, milliseconds(side.median), side.backend, str(side.threads or "default")])
    lines = [
        table(rows, right=(1,)),
        "",
        f"{b} takes {_ratio(found.ratio)} times as long as {a}, by {_CLOCKS[found.clock]} "
        f"({counted(first.wall.size, 'pair')} in {counted(found.rounds, 'round')})",
    ]
    if found.clock != "wall":
        lines.append(f"by wall time: {_ratio(found.wall)}")
    if found.outputs:
        lines += ["", outputs_text(found.outputs)]
    if found.layers and top:
        lines += ["", layers_text(found.layers, top), *held_back_text(found.savings, top)]
    return "\n".join([*lines, *cautions(found.flags), "", verdict_text(found)])


def side_names(found: Comparison) -> tuple[str, str]:
    """What the two models are called: as their files are, told apart by A and B where these are called the same."""
    first, other = found.first.model, found.other.model
    return (first, other) if first != other else (f"{first} (A)", f"{other} (B)")


def verdict_text(found: Comparison) -> str:
    """Which is faster, and whether the goal is met."""
    lines = [f"verdict: {_VERDICTS[found.verdict].format(side_names(found)[1])}"]
    return "\n".join([*lines, *([_goal(found)] if found.goal.most is not None else [])])


def _goal(found: Comparison) -> str:
    limit = f"at most {found.goal.most:.3f} times as long"
    if found.met is None:
        return f"goal ({limit}): open, the interval holds it; give more --seconds"
    return f"goal ({limit}): {'met' if found.met else 'MISSED'}"


def outputs_text(outputs: Sequence[OutputDifference]) -> str:
    """How far outputs are apart, one row each."""
    rows = [["output", "largest difference", "mean", "of the deviation", "cosine", "same top-1"]]
    for o in outputs:
        if o.problem:
            rows.append([short(o.name), o.problem, "", "", "", ""])
            continue
        top1 = f"{100 * o.top1:.1f} %" if o.top1 is not None else ""
        rows.append([short(o.name), f"{o.largest:.2g}", f"{o.mean:.2g}", f"{o.relative:.2g}", f"{o.cosine:.6f}", top1])
    return table(rows, right=(1, 2, 3, 4, 5))


def layers_text(layers: Sequence[LayerDifference], top: int) -> str:
    """The layers that differ most."""
    rows = [["layer", "operator", "first", "other", "difference", "MACs"]]
    for row in layers[:top]:
        first, other = (milliseconds(t) if t is not None else "-" for t in (row.first, row.other))
        macs = f"{quantity(row.first_macs)} -> {quantity(row.other_macs)}" if row.first_macs or row.other_macs else ""
        rows.append([short(row.name), row.op, first, other, f"{row.difference * 1e3:+.3g} ms", macs])
    rest = sum(r.difference for r in layers[top:])
    more = [f"and {counted(len(layers) - top, 'more layer')}: {rest * 1e3:+.3g} ms"] if len(layers) > top else []
    return "\n".join([table(rows, right=(2, 3, 4)), *more])


def profile_text(found: Profile, machine: Peaks, top: int) -> str:
    """The whole of ``profile``: kernels by time, then sums by bottleneck."""
    ordered = sorted(found.nodes, key=lambda n: -n.seconds)
    rows = [["node", "operator", "time", "share", "MACs", "GFLOP/s", "bytes", "FLOP/B", "of the roof", "held back by"]]
    total = found.kernels or 1.0
    rows += [
        [
            short(node.name),
            node.op,
            f"{node.seconds * 1e6:.4g} us",
            f"{100 * node.seconds / total:.1f} %",
            quantity(node.macs) if node.macs else "",
            f"{node.rate / 1e9:.3g}" if node.macs else "",
            quantity(node.bytes),
            f"{node.intensity:.3g}" if node.macs else "",
            f"{100 * min(bound(node, machine) / node.seconds, 1):.0f} %" if node.seconds else "",
            bottleneck(node, machine),
        ]
        for node in ordered[:top]
    ]
    threads = threads_text(found.threads)
    rest = ordered[top:]
    lines = [
        f"{found.model}: {milliseconds(found.latency)} a run, {milliseconds(found.kernels)} of it in "
        f"{counted(len(found.nodes), 'kernel')}; {found.backend}, {threads}, "
        f"inputs: {shapes_text(found.shapes) or 'none'}",
        f"this machine at its best: {machine.flops / 1e9:.3g} GFLOP/s, {machine.bandwidth / 1e9:.3g} GB/s",
        "",
        table(rows, right=range(2, 9)),
    ]
    if rest:
        share = sum(n.seconds for n in rest) / total
        lines.append(f"and {counted(len(rest), 'more kernel')}: {100 * share:.1f} % of the time")
    return "\n".join([*lines, "", *_by_bottleneck(found.nodes, machine, total)])


_MEANING = {
    "layout": "only change the layout of tensors",
    "alignment": "convolutions outside the blocked layout, because of their number of channels",
    "overhead": "so short that starting them counts",
    "memory": "as fast as the memory",
    "compute": "as fast as the arithmetic",
    "kernel": "slower than memory and arithmetic allow",
}


def _by_bottleneck(nodes: Sequence[NodeTime], machine: Peaks, total: float) -> list[str]:
    sums = held_back(nodes, machine)
    return [f"{100 * seconds / total:5.1f} %  {kind}: {_MEANING[kind]}" for kind, seconds in sums.items()]


def bottleneck_text(found: Profile, machine: Peaks) -> str:
    """What most of the time goes to, in a sentence."""
    sums = held_back(found.nodes, machine)
    if not sums:
        return "no kernel was recorded"
    kind, seconds = next(iter(sums.items()))
    share = 100 * seconds / (found.kernels or 1.0)
    return f"{share:.0f} % of the time is in kernels held back by {kind}: {_MEANING[kind]}"


def backends_text(found: Mapping[str, Availability]) -> str:
    """One row for each backend."""
    rows = [["backend", "device", "here"]]
    rows += [[name, a.device, a.version if not a.missing else f"no: {a.missing}"] for name, a in found.items()]
    return table(rows)


def staircase_text(found: Staircase) -> str:
    """One table: time against width, relative to what the best widths make of it."""
    kinds = list(found.curves)
    widths = sorted({w for curve in found.curves.values() for w in curve})
    rows = [["width", *kinds]]
    rows += [[str(width), *(_step(found, kind, width) for kind in kinds)] for width in widths]
    threads = threads_text(found.threads)
    best = "; ".join(f"{kind} {found.step(kind)}" for kind in kinds)
    return "\n".join(
        [
            f"{found.backend}, {threads}: time, and how much of it more than the best widths would take",
            "",
            table(rows, right=range(1, len(kinds) + 1)),
            "",
            f"widths to aim at are multiples of: {best}",
        ]
    )


def _step(found: Staircase, kind: str, width: int) -> str:
    seconds = found.curves[kind].get(width)
    if seconds is None:
        return ""
    excess = found.penalty(kind, width)
    return f"{seconds * 1e6:.4g} us" + (f"  {excess:.2f}x" if excess >= 1.1 else "       ")


def aligned_text(found: Aligned) -> str:
    """The whole of ``align``."""
    rows = [["group", "width", "now"], *([short(p.name), str(p.before), str(p.after)] for p in found.paddings)]
    comparison = found.comparison
    return "\n".join(
        [
            table(rows, right=(1, 2)),
            "",
            *(f"{short(name)} stays: {why}" for name, why in found.refused.items()),
            f"takes {_ratio(comparison.ratio)} times as long as before, by {_CLOCKS[comparison.clock]}: "
            f"{1 / comparison.ratio.value:.2f}x as fast",
            f"wrote {found.output}: outputs are the same, relative error {found.error:.1e}",
        ]
    )


def lint_text(model: str, findings: Sequence[Finding]) -> str:
    """Findings, the costliest first."""
    if not findings:
        return f"{model}: nothing found that makes it slow"
    lines = [f"{model}: {counted(len(findings), 'finding')}"]
    for f in findings:
        cost = f" [{100 * f.share:.1f} % of the time]" if f.share is not None else ""
        lines.append(f"  {f.rule}: {f.text}{cost}")
        if f.advice:
            lines.append(f"    {f.advice}")
    return "\n".join(lines)


def outcome_text(found: LatencyOutcome, top: int = 8) -> str:
    """What pruning to a latency came to, and why it is not faster still."""
    comparison = found.comparison
    lines = [
        "",
        f"latency: {_ratio(found.ratio)} of the original's, by {_CLOCKS[comparison.clock]}; "
        f"asked for {found.share:.3f}, predicted {found.predicted:.3f}, {counted(len(found.tried), 'round')}",
        _before_and_after(comparison),
    ]
    return "\n".join([*lines, *held_back_text(found.savings, top)])


def held_back_text(savings: Sequence[Saving], top: int) -> list[str]:
    """Why a model is not faster still: the layers that lag most, and what holds them back all together.

    Args:
        savings: of all layers.
        top: how many layers to show.
    """
    held = [s for s in savings if s.reason]
    if not held:
        return []
    sums: dict[str, float] = {}
    for saving in held:
        sums[saving.reason] = sums.get(saving.reason, 0.0) + saving.lost
    total = sum(s.seconds for s in savings) or 1.0
    ranked = sorted(sums.items(), key=lambda item: -item[1])
    shares = [f"{100 * lost / total:5.1f} % of its time: {_REASONS[reason]}" for reason, lost in ranked]
    return ["", "why it is not faster still:", savings_text(held, top), "", *shares]


def _before_and_after(comparison: Comparison) -> str:
    first, other = comparison.first, comparison.other
    if comparison.clock == "device":
        took = [float(np.median(side.device)) for side in (first, other)]
        return f"  {milliseconds(took[0])} -> {milliseconds(took[1])} on the device; {other.backend}"
    return (
        f"  {milliseconds(first.median)} -> {milliseconds(other.median)} wall time; "
        f"{other.backend}, {threads_text(other.threads)}"
    )


_REASONS = {
    **{kind: f"{kind}, {meaning}" for kind, meaning in _MEANING.items()},
    "unpruned": "unpruned, layers that kept all of their work",
}


def savings_text(rows: Sequence[Saving], top: int) -> str:
    """Work saved against time saved, layer by layer, and what holds back those that lag."""
    body = [["layer", "MACs left", "time left", "time", "held back by"]]
    for r in rows[:top]:
        macs = f"{100 * r.macs_left:.0f} %" if r.macs_left is not None else ""
        left = f"{100 * r.time_left:.0f} %" if r.time_left is not None else "new"
        body.append([short(r.name), macs, left, milliseconds(r.seconds), r.reason])
    return table(body, right=(1, 2, 3))
