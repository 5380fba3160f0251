"""What pruning is worth in time: latency left beside multiply-accumulates left, against Torch-Pruning and onnxsim.

For each network: Torch-Pruning's export and onnxsim's file at half of the channels, and Secateur's at the same
multiply-accumulates as each, all counted by one cost model. All files of a network are timed against the dense one in
one interleaved run, one thread, by CPU time. Then ``--macs 0.5`` and ``--latency 0.5x`` of Secateur, and how long the
latter took. An interrupted run goes on where it was: rows are kept with the hash of Secateur's source.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import child
import kept
import numpy as np
import table

NETWORKS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "shufflenet_v2_x1_0", "densenet121", "googlenet", "squeezenet1_1", "convnext_tiny"),
)
_LIMIT = 900.0
_ROUND_TO = 8
_TOOLS = ("torch-pruning", "onnxsim")
_HALF, _NEAR, _EQUAL = 0.5, 0.03, 0.01
_SHAPES = {"input": (1, 3, 224, 224)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="networks, separated by commas (all)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of one paired run (20)")
    parser.add_argument("--skip-latency", action="store_true", help="leave out --latency 0.5x")
    parser.add_argument("--cache", type=Path, default=table.CACHE)
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    options = parser.parse_args()
    about = table.environment()
    folder = options.cache / "latency"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = options.only.split(",") if options.only else list(NETWORKS)
    found = {}
    for name in chosen:
        key = kept.digest(kept.source(), str(options.seconds), str(options.skip_latency))
        found[name] = kept.once(folder / "rows", name, key, partial(_network, name, folder, options))
        table.say(f"{name}: {found[name]}")
    whole = options.only is None
    page = f"# Time left\n\n{_page(found)}"
    table.publish("latency", page, {"networks": found}, about, options.results if whole else folder)


def _network(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    dense = folder / f"{name}.onnx"
    exported = child.call("zoo:write", _LIMIT, name=name, kind="random", path=str(dense))
    if exported.error:
        return {"error": exported.error, "retry": True}
    row: dict[str, Any] = {"macs": _macs(dense)}
    files: dict[str, Path] = {}
    peers = {
        "torch-pruning": ("peers:prune_torch", {"name": name, "round_to": _ROUND_TO}),
        "onnxsim": ("peers:prune_onnxsim", {"source": str(dense)}),
    }
    for tool, (function, arguments) in peers.items():
        file = folder / f"{name}-{tool}.onnx"
        outcome = child.call(function, _LIMIT, output=str(file), ratio=0.5, **arguments)
        runs = child.call("peers:check_runs", _LIMIT, path=str(file), name=name) if not outcome.error else outcome
        if runs.error or outcome.value.get("export"):
            row[tool] = {"error": runs.error or outcome.value["export"]}
            continue
        left = _macs(file) / row["macs"]
        row[tool] = {"macs": left}
        files[tool] = file
        files[f"ours, as {tool}"] = _ours(dense, folder / f"{name}-as-{tool}.onnx", left, row, f"ours, as {tool}")
    files["ours, half"] = _ours(dense, folder / f"{name}-half.onnx", 0.5, row, "ours, half")
    files = {what: file for what, file in files.items() if file.is_file() and "error" not in row[what]}
    for what, ratio in times(dense, files, options.seconds, _SHAPES).items():
        row[what]["time"] = ratio
    if not options.skip_latency:
        row["latency"] = _to_latency(dense, folder / f"{name}-latency.onnx")
    return row


def _macs(path: Path) -> float:
    outcome = child.call("ours:measure", _LIMIT, path=str(path))
    return float(outcome.value["macs"]) if outcome.value else float("nan")


def _ours(dense: Path, file: Path, share: float, row: dict[str, Any], what: str) -> Path:
    file.unlink(missing_ok=True)
    outcome = child.call("latency:prune_to_macs", _LIMIT, source=str(dense), output=str(file), macs=share)
    row[what] = {"error": outcome.error} if outcome.error else dict(outcome.value)
    return file


def prune_to_macs(source: str, output: str, macs: float) -> dict[str, Any]:
    """Prune and prove as ``secateur prune --macs`` does. To be called in a child."""
    from exporter import prune

    result = prune(source, output, macs=macs, shapes=_SHAPES)
    return {"macs": result.after.macs / result.before.macs}


def times(
    dense: Path, files: dict[str, Path], seconds: float, shapes: dict[str, tuple[int, ...]] | None = None
) -> dict[str, dict[str, float]]:
    """CPU time of each file relative to the dense one's, with its interval, from one interleaved run."""
    from runtime.latency import bench
    from runtime.robust import ratio_of, undisturbed

    paths = [dense, *files.values()]
    results = bench(paths, threads=1, seconds=seconds / len(paths), shapes=shapes)
    found = {}
    for what, other in zip(files, results[1:], strict=True):
        logs = np.log(other.thread) - np.log(results[0].thread)
        ratio = ratio_of([undisturbed(logs, results[0].switched | other.switched)])
        found[what] = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
    return found


def _to_latency(dense: Path, output: Path) -> dict[str, Any]:
    from exporter.errors import SecateurError
    from exporter.latency.budget import Target, prune_to_latency
    from runtime.backends import SessionOptions
    from runtime.runners import Asked

    started = time.perf_counter()
    try:
        asked = Asked(options=SessionOptions(threads=1), shapes=_SHAPES)
        result, outcome = prune_to_latency(dense, output, Target(share=0.5), asked)
    except SecateurError as error:
        return {"error": str(error).splitlines()[0], "seconds": time.perf_counter() - started}
    return {
        "ratio": outcome.ratio.value,
        "rounds": len(outcome.tried),
        "macs": result.after.macs / result.before.macs,
        "seconds": time.perf_counter() - started,
    }


def _page(found: dict[str, dict[str, Any]]) -> str:
    head = ["network", "Torch-Pruning: MACs", "time", "Secateur, same MACs: time"]
    head += ["onnxsim: MACs", "time", "Secateur, same MACs: time", "--macs 0.5: MACs", "time", "--latency 0.5x: time"]
    rows = [[*head, "seconds"]]
    for name, row in found.items():
        if "error" in row:
            rows.append([name, row["error"], *[""] * 9])
            continue
        cells = [name]
        for tool in _TOOLS:
            cells += [_cell(row, tool, "macs"), _cell(row, tool, "time"), _cell(row, f"ours, as {tool}", "time")]
        cells += [_cell(row, "ours, half", "macs"), _cell(row, "ours, half", "time")]
        landed = row.get("latency", {})
        cells += [table.share(landed["ratio"]) if "ratio" in landed else landed.get("error", "-")]
        rows.append([*cells, f"{landed['seconds']:.0f}" if "seconds" in landed else "-"])
    about = "Shares of the dense network's; time is CPU time, one thread."
    return f"{table.markdown(rows, right=range(1, 11))}\n\n{about}\n\n{_summary(found)}"


def _summary(found: dict[str, dict[str, Any]]) -> str:
    """The page in four numbers; times that differ by less than ``_EQUAL`` count as equal."""
    halves = [1 / row["ours, half"]["time"]["ratio"] for row in found.values() if "time" in row.get("ours, half", {})]
    landed = [row["latency"]["ratio"] for row in found.values() if "ratio" in row.get("latency", {})]
    behind = [name for name, row in found.items() if any(_slower(row, tool) for tool in _TOOLS)]
    near = sum(abs(ratio / _HALF - 1) <= _NEAR for ratio in landed)
    return (
        f"`--macs 0.5` makes them {statistics.median(halves):.2f} times as fast in the median, "
        f"{min(halves):.2f} times at least. At the multiply-accumulates of each peer Secateur's file is as fast or "
        f"faster (within {_EQUAL:.0%}) in {len(found) - len(behind)} of {len(found)} networks"
        f"{', slower in ' + ' and '.join(behind) if behind else ''}. `--latency 0.5x` lands within {_NEAR:.0%} in "
        f"{near} of {len(found)}."
    )


def _slower(row: dict[str, Any], tool: str) -> bool:
    """Whether a peer's file is clearly faster than ours of the same size; not where the peer gave none that runs."""
    cells = row.get(tool, {}), row.get(f"ours, as {tool}", {})
    if "time" not in cells[0]:
        return False
    return "time" not in cells[1] or cells[1]["time"]["ratio"] > (1 + _EQUAL) * cells[0]["time"]["ratio"]


def _cell(row: dict[str, Any], what: str, key: str) -> str:
    cell = row.get(what, {})
    if "error" in cell:
        return "error"
    value = cell.get(key)
    return table.share(value["ratio"] if isinstance(value, dict) else value)


if __name__ == "__main__":
    main()
