"""What pruning a ResNet-50 costs: CPU time, wall time and peak memory of the whole process, tool by tool.

    python benchmarks/speed.py [--repeat N]

Every tool runs in a process of its own, in turn, several times; so does a process that imports the same modules and
does nothing else. The difference is the work itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import child
import table

NETWORK = "resnet50"
RATIO = 0.5
LIMIT = 600.0
"""Seconds any one process may take."""

TARGET_CPU = 2.0
"""CPU seconds beyond imports Secateur may take without the proof."""
TARGET_MEMORY = 3.0
"""Peak memory it may take, in multiples of the file's size."""

Row = dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    options = _options()
    about = table.environment()
    options.cache.mkdir(parents=True, exist_ok=True)
    source = options.cache / f"{NETWORK}_random.onnx"
    table.say(f"exporting {NETWORK}")
    built = child.call("zoo:write", LIMIT, name=NETWORK, kind="random", path=str(source))
    if built.error:
        sys.exit(f"speed: {NETWORK} was not exported: {built.error}")
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        tools = _tools(source, Path(scratch))
        for tool in tools:
            _prepare(tool, source)
        for number in range(options.repeat):
            for tool in tools:
                table.say(f"round {number + 1} of {options.repeat}: {tool['tool']}")
                _measure(tool, Path(scratch))
    size = source.stat().st_size
    rows = [_summary(t, size) for t in tools]
    data = {"network": NETWORK, "file_bytes": size, "repeat": options.repeat, "tools": rows}
    table.publish("speed", _page(rows, size, options.repeat), data, about, options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds over all tools (5)")
    parser.add_argument("--cache", type=Path, default=table.CACHE, help="where the export is kept (build/benchmarks)")
    parser.add_argument("--results", type=Path, default=table.RESULTS, help="where the table goes (benchmarks/results)")
    return parser.parse_args()


def _tools(source: Path, scratch: Path) -> list[Row]:
    """Each tool: its command, and the same as a function call, to see what it imports."""
    out, ignored = scratch / "pruned.onnx", scratch / "ignored.json"
    line = ["prune", str(source), "-o", str(out), "--ratio", str(RATIO), "--quiet"]
    secateur = [("Secateur, no proof", [*line, "--no-verify"]), ("Secateur, proven", line)]
    tools = [
        {
            "tool": name,
            "call": ("ours:command_line", {"arguments": arguments}),
            "command": [sys.executable, "-m", "exporter", *arguments],
        }
        for name, arguments in secateur
    ]
    peers = [
        ("onnxsim", "peers:prune_onnxsim", {"source": str(source), "output": str(out), "ratio": RATIO}),
        ("Torch-Pruning", "peers:prune_torch", {"name": NETWORK, "output": str(out), "kind": "fresh"}),
    ]
    for name, function, arguments in peers:
        command = child.command_for(function, ignored, arguments)
        tools.append({"tool": name, "call": (function, arguments), "command": command})
    return [{**t, "output": out, "failure": "", "work": [], "imports": []} for t in tools]


def _prepare(tool: Row, source: Path) -> None:
    """Run a tool once, unmeasured: what it imports, and how much of the network it leaves."""
    table.say(f"trying {tool['tool']}")
    function, arguments = tool["call"]
    found = child.call("child:modules_after", LIMIT, function=function, arguments=arguments)
    tool["modules"], tool["failure"] = found.value.get("modules", []), found.error
    if not found.error:
        dense, pruned = (child.call("ours:measure", LIMIT, path=str(p)).value for p in (source, tool["output"]))
        tool["macs_left"] = pruned["macs"] / dense["macs"] if pruned and dense else None


def _measure(tool: Row, scratch: Path) -> None:
    """One run of a tool, and one of its imports."""
    if tool["failure"]:
        return
    tool["output"].unlink(missing_ok=True)
    usage = child.run(tool["command"], LIMIT)
    if usage.timed_out or usage.status or not tool["output"].is_file():
        tool["failure"] = child.shorten(usage.output.strip().splitlines()[-1] if usage.output.strip() else "no output")
        return
    tool["work"].append(usage)
    result = scratch / "imports.json"
    usage = child.run(child.command_for("child:import_all", result, {"modules": tool["modules"]}), LIMIT)
    tool["imports"].append(usage)


def _summary(tool: Row, size: int) -> Row:
    """Medians over the rounds, with every sample."""
    row: Row = {"tool": tool["tool"], "failure": tool["failure"], "macs_left": tool.get("macs_left")}
    if tool["failure"]:
        return row
    for key in ("work", "imports"):
        row[key] = {field: [getattr(u, field) for u in tool[key]] for field in ("cpu", "wall", "peak")}
        row[key].update({f"median_{field}": median(row[key][field]) for field in ("cpu", "wall", "peak")})
    row["cpu_beyond_imports"] = row["work"]["median_cpu"] - row["imports"]["median_cpu"]
    row["peak_per_file"] = row["work"]["median_peak"] / size
    return row


def _page(rows: Sequence[Row], size: int, repeat: int) -> str:
    return "\n\n".join(
        (
            "# Speed",
            f"Pruning {NETWORK} (file of {size / 1e6:.1f} MB) at ratio {RATIO}, whole processes, medians of {repeat} "
            "rounds over all tools in turn (lowest to highest in brackets). CPU: user and system seconds. Imports: a "
            "process that only imports what the tool imports. Torch-Pruning: building the network, pruning and "
            "exporting it, as it has no other way to an ONNX file. Peak: largest resident memory.",
            _table(rows),
            _targets(rows),
        )
    )


def _table(rows: Sequence[Row]) -> str:
    lines = [
        [
            "tool",
            "CPU s",
            "imports CPU s",
            "beyond imports",
            "wall s",
            "peak MB",
            "peak / file",
            "imports peak MB",
            "MACs left",
        ]
    ]
    for row in rows:
        if row["failure"]:
            lines.append([row["tool"], f"error: {row['failure']}", *[""] * 7])
            continue
        work, imports = row["work"], row["imports"]
        lines.append(
            [
                row["tool"],
                _spread(work["cpu"]),
                _spread(imports["cpu"]),
                f"{row['cpu_beyond_imports']:.2f}",
                _spread(work["wall"]),
                f"{work['median_peak'] / 1e6:.0f}",
                f"{row['peak_per_file']:.2f}",
                f"{imports['median_peak'] / 1e6:.0f}",
                table.share(row["macs_left"]),
            ]
        )
    return table.markdown(lines, right=range(1, 9))


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def _targets(rows: Sequence[Row]) -> str:
    """Whether Secateur without proof stays within its targets."""
    row = rows[0]
    if row["failure"]:
        return "Targets: not measured."
    cpu, memory = row["cpu_beyond_imports"], row["peak_per_file"]
    results = ((cpu, TARGET_CPU, "CPU seconds beyond imports"), (memory, TARGET_MEMORY, "times the file at the peak"))
    texts = [
        f"{value:.2f} {unit} (at most {target:g}: {'met' if value <= target else '**missed**'})"
        for value, target, unit in results
    ]
    return f"Targets for {row['tool']}: {'; '.join(texts)}."


if __name__ == "__main__":
    main()
