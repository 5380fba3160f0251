"""Sparse weights: speed and validity beside polygraphy and onnxsim, accuracy by method, reordering, shares of zeros.

python benchmarks/sparsity.py --data DIR [--parts speed,methods,shares,order]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import child
import table

Row = dict[str, Any]

LIMIT = 3600.0
child.THREADS = "1"  # threads that wait for each other would be counted as work
SPEED = ("resnet50", "bert", "vit_b_16")
NETWORKS = ("resnet56", "digits_vit", "llama")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("secateur", {}),
    "polygraphy": ("polygraphy", {}),
    "onnxsim, magnitude": ("onnxsim", {"method": "magnitude"}),
    "onnxsim, Wanda": ("onnxsim", {"method": "wanda"}),
    "onnxsim, SparseGPT": ("onnxsim", {"method": "sparsegpt"}),
    "Wanda": ("secateur", {"calib": True, "method": "wanda", "refit": False}),
    "SparseGPT": ("sparsegpt", {}),
    "magnitude, fitted": ("secateur", {"calib": True, "method": "magnitude"}),
    "**Secateur** (obs, fitted)": ("secateur", {"calib": True}),
}
SHARES = ("0.5", "0.8", "0.9", "0.95")
SHARE_METHODS: dict[str, dict[str, Any]] = {
    "magnitude (L1), local": {},
    "magnitude, global": {"scope": "global"},
    "Taylor, global": {"calib": True, "method": "taylor", "scope": "global", "refit": False},
    "Wanda, local": {"calib": True, "method": "wanda", "refit": False},
    "magnitude, global, fitted": {"calib": True, "method": "magnitude", "scope": "global"},
    "Taylor, global, fitted": {"calib": True, "method": "taylor", "scope": "global"},
    "obs, fitted, local": {"calib": True},
    "obs, fitted, global": {"calib": True, "scope": "global"},
    "magnitude, global, fitted, iterative": {
        "calib": True,
        "method": "magnitude",
        "scope": "global",
        "schedule": "iterative",
    },
    "magnitude, global, fitted, cubic": {
        "calib": True,
        "method": "magnitude",
        "scope": "global",
        "schedule": "cubic",
    },
    "obs, fitted, local, cubic": {"calib": True, "schedule": "cubic"},
}
ORDERS = ((128, 64, 0), (128, 64, 40), (128, 64, 500), (512, 512, 0))
"""Rows, columns, rounds of mixing: 128 filters by 64 channels is the matrix apex gives figures for."""
SEEDS = (1, 2, 3)
"""Of the matrices; apex's is the first."""
PARTS = ("speed", "methods", "shares", "order")


def main() -> None:
    """Measure, print, write."""
    options = _options()
    about = table.environment()
    options.cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Row]] = {p: [] for p in PARTS}
    if options.keep and options.keep.is_file():
        found |= json.loads(options.keep.read_text(encoding="utf-8"))
    makers = {"speed": _speed, "methods": _methods, "shares": _shares, "order": _order}
    for part in options.parts:
        for row in makers[part](options):
            found[part] = [*(r for r in found[part] if r["key"] != row["key"]), row]
            if options.keep:
                options.keep.write_text(json.dumps(found), encoding="utf-8")
    pages = {"speed": _speed_page, "methods": _methods_page, "shares": _shares_page, "order": _order_page}
    text = "\n\n".join(["# Sparsity", *(pages[p](found[p]) for p in PARTS if found[p])])
    table.publish("sparsity", text, found, about, options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", metavar="DIR", required=True, help="the folder with onnx/ and the inputs")
    parser.add_argument("--parts", default=",".join(PARTS), help="which tables (all)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of the table of methods")
    parser.add_argument("--methods", default=";".join(METHODS), help="of the table of methods, divided by semicolons")
    parser.add_argument("--patterns", default="2:4,1:4", help="of the table of methods; 1:4 for ResNet-56 alone")
    parser.add_argument("--speed", default=",".join(SPEED), help="networks of the table of speed")
    parser.add_argument("--shares", default=",".join(SHARES), help="of the table of shares")
    parser.add_argument("--share-methods", default=";".join(SHARE_METHODS), help="of that table, as for --methods")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each tool for speed (3)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="figures of parts measured before, and where to add")
    parser.add_argument("--cache", type=Path, default=table.CACHE, help="where exports are kept (build/benchmarks)")
    parser.add_argument("--results", type=Path, default=table.RESULTS, help="where the table goes (benchmarks/results)")
    options = parser.parse_args()
    options.methods, options.share_methods = options.methods.split(";"), options.share_methods.split(";")
    for name in ("parts", "networks", "patterns", "speed", "shares"):
        setattr(options, name, [x for x in getattr(options, name).split(",") if x])
    if set(options.parts) - set(PARTS):
        parser.error(f"--parts: there is {', '.join(PARTS)}")
    return options


# -- speed ------------------------------------------------------------------------------------------------------


def _speed(options: argparse.Namespace) -> Iterator[Row]:
    for network in options.speed:
        source = options.cache / f"{network}_random.onnx"
        built = child.call("zoo:write", LIMIT, name=network, kind="random", path=str(source))
        if built.error:
            sys.exit(f"sparsity: {network} was not exported: {built.error}")
        with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
            out, ignored = Path(scratch) / "out.onnx", Path(scratch) / "ignored.json"
            files = {"source": str(source), "output": str(out)}
            tools = {
                "Secateur": [sys.executable, "-m", "exporter", "sparsify", str(source), "-o", str(out), "-q"],
                "onnxsim": child.command_for("sparsity_runs:onnxsim_magnitude", ignored, files),
                "polygraphy": child.command_for("sparsity_runs:polygraphy", ignored, files),
            }
            imports = {
                "Secateur": ["exporter.sparsity.report", "onnx.checker"],
                "onnxsim": ["onnx", "onnxsim"],
                "polygraphy": ["polygraphy.tools", "onnx", "onnx_graphsurgeon"],
            }
            for tool, command in tools.items():
                table.say(f"{network}: {tool}")
                out.unlink(missing_ok=True)
                used = [child.run(command, LIMIT) for _ in range(options.repeat if tool != "polygraphy" else 1)]
                before = child.run(child.command_for("child:import_all", ignored, {"modules": imports[tool]}), LIMIT)
                row = {
                    "key": f"{network} {tool}",
                    "network": network,
                    "tool": tool,
                    "file": source.stat().st_size,
                    "peak": used[0].peak,
                }
                row |= {"file": source.stat().st_size, "peak": used[0].peak}
                row |= {"cpu": median(u.cpu for u in used), "imports": before.cpu}
                if out.is_file():
                    checked = child.call(
                        "sparsity_runs:validity", LIMIT, path=str(out), pattern="2:4", source=str(source)
                    )
                    row |= {"after": out.stat().st_size, **checked.value, "error": checked.error}
                else:
                    row["error"] = child.shorten(used[0].output.strip().splitlines()[-1:][0] if used[0].output else "")
                yield row


def _speed_page(rows: list[Row]) -> str:
    head = ["network", "tool", "CPU s beyond imports", "with imports", "peak memory / file", "file after / before"]
    cells = [[*head, "layers valid", "metadata, opsets, functions kept"]]
    for r in rows:
        if "after" not in r:
            cells.append([r["network"], r["tool"], r.get("error", "failed"), "", "", "", "", ""])
            continue
        kept = ", ".join(k for k in ("metadata", "opsets", "functions") if r.get(k)) or "none"
        cells.append(
            [
                r["network"],
                r["tool"],
                f"{max(r['cpu'] - r['imports'], 0):.2f}",
                f"{r['cpu']:.2f}",
                f"{r['peak'] / r['file']:.1f}",
                f"{r['after'] / r['file']:.3f}",
                f"{r['valid']} of {r['eligible']}",
                "all" if kept.count(",") == 2 else kept,
            ]
        )
    text = (
        "## Speed and validity, 2:4 by magnitude\n\n"
        "From the file to the file, in a process of its own; Secateur's check of the result included. A layer is valid "
        "when no run along its inputs has more than two weights that are not zero, in the weight as the layer reads it "
        "(`secateur verify --pattern 2:4`).\n\n"
    )
    return text + table.markdown(cells, right=range(2, 7))


# -- accuracy ---------------------------------------------------------------------------------------------------


def _methods(options: argparse.Namespace) -> Iterator[Row]:
    for network in options.networks:
        for pattern in options.patterns:
            for title in options.methods:
                tool, more = METHODS[title]
                if pattern != "2:4" and (tool == "polygraphy" or network != "resnet56"):
                    continue
                table.say(f"{network} {pattern}: {title}")
                arguments = {"name": network, "data": options.data, "tool": tool, "pattern": pattern, "options": more}
                done = child.call("sparsity_runs:method", LIMIT, **arguments)
                about = {"key": f"{network} {pattern} {title}", "network": network, "pattern": pattern, "method": title}
                yield {**about, "error_text": done.error, "cpu": done.usage.cpu, **done.value}


def _methods_page(rows: list[Row]) -> str:
    groups = list(dict.fromkeys((r["network"], r["pattern"]) for r in rows))
    lines = [
        "## One shot, no training, by method",
        "",
        "The same calibration inputs for all (at most 512, none tested on); accuracy in percent, for the language",
        "model perplexity. In brackets: the layers in which the pattern holds, where not in all of them.",
        "",
    ]
    cells = [["method", *(f"{n}, {p}" for n, p in groups), "CPU s, all"]]
    dense = {
        g: next((r["dense"] for r in rows if (r["network"], r["pattern"]) == g and "dense" in r), None) for g in groups
    }
    cells.append(["dense", *(_score(g[0], dense[g]) for g in groups), ""])
    for title in dict.fromkeys(r["method"] for r in rows):
        mine = {(r["network"], r["pattern"]): r for r in rows if r["method"] == title}
        cells.append([title, *(_cell(g, mine.get(g)) for g in groups), f"{sum(r['cpu'] for r in mine.values()):.0f}"])
    return "\n".join([*lines, table.markdown(cells, right=range(1, len(groups) + 2))])


def _cell(group: tuple[str, str], row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if "score" not in row:
        return "error"
    missing = f" [{row['valid']} of {row['eligible']}]" if row.get("valid") != row.get("eligible") else ""
    tied = " [tied embedding too]" if row.get("tied_pruned") else ""
    return _score(group[0], row["score"]) + missing + tied


def _score(network: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{math.exp(value):.2f}" if network == "llama" else f"{100 * value:.2f}"


def _shares(options: argparse.Namespace) -> Iterator[Row]:
    for title, share in itertools.product(options.share_methods, options.shares):
        more = SHARE_METHODS[title]
        table.say(f"resnet56, {share}: {title}")
        given = {"pattern": share, "options": {**more, "storage": "sparse"}}
        done = child.call("sparsity_runs:method", LIMIT, name="resnet56", data=options.data, tool="secateur", **given)
        about = {"key": f"{share} {title}", "share": share, "method": title}
        yield {**about, "cpu": done.usage.cpu, "error_text": done.error, **done.value}


def _shares_page(rows: list[Row]) -> str:
    shares = sorted({r["share"] for r in rows}, key=float)
    cells = [["method", *(f"{100 * float(s):g} %" for s in shares), "CPU s, all"]]
    for title in (t for t in SHARE_METHODS if any(r["method"] == t for r in rows)):
        mine = {r["share"]: r for r in rows if r["method"] == title}
        used = sum(r["cpu"] for r in mine.values())
        cells.append([title, *(_share_cell(mine.get(s, {})) for s in shares), f"{used:.0f}"])
    dense = next((r["dense"] for r in rows if "dense" in r), None)
    text = (
        f"## Zeros anywhere: ResNet-56 on CIFAR-10 ({_score('resnet56', dense)} dense)\n\n"
        "Accuracy in percent, and the size of the file with `--storage sparse`, relative to the dense one.\n\n"
    )
    return text + table.markdown(cells, right=range(1, len(shares) + 2))


def _share_cell(row: Row) -> str:
    return f"{100 * row['score']:.2f} ({row['bytes'] / row['source_bytes']:.2f})" if "score" in row else "-"


# -- order ------------------------------------------------------------------------------------------------------


def _order(options: argparse.Namespace) -> Iterator[Row]:
    for rows, columns, rounds in ORDERS:
        given = {"rows": rows, "columns": columns, "rounds": rounds}
        runs = [child.call("sparsity_runs:efficacy", LIMIT, seed=seed, **given).value for seed in SEEDS]
        yield {"key": f"{rows} {columns} {rounds}", **given, "runs": runs}
    for network in options.networks:
        table.say(f"reordering {network}")
        done = child.call("sparsity_runs:reordered", LIMIT, name=network, data=options.data)
        yield {"key": network, "network": network, "error_text": done.error, **done.value}


def _order_page(found: list[Row]) -> str:
    cells = [["filters x channels", "rounds of mixing", "efficacy, %", "CPU s", "other two seeds"]]
    for s in (r for r in found if all(r.get("runs", [{}]))):
        first, *others = s["runs"]
        rest = ", ".join(f"{r['efficacy']:.1f}" for r in others)
        size, rounds = f"{s['rows']} x {s['columns']}", str(s["rounds"])
        cells.append([size, rounds, f"{first['efficacy']:.1f}", f"{median(r['seconds'] for r in s['runs']):.2f}", rest])
    rows = [["network", "groups reordered", "magnitude kept", "before", "dense outputs moved by"]]
    for f in found:
        if "groups" in f:
            name = f["network"]
            rows.append(
                [name, str(f["groups"]), f"{100 * f['after']:.2f} %", f"{100 * f['before']:.2f} %", f"{f['error']:.0e}"]
            )
    return (
        "## Reordering\n\nEfficacy: of the magnitude that 2:4 loses against the largest half of every row, the share "
        "that an order of the columns brings back. The definition and the matrices (uniform entries) are those of "
        "`permutation_test.py` in NVIDIA apex, which reports for 128 x 64 and its seed 35.5 after 61 s on a CPU (0.013 "
        "s on a V100), and 36.6 as the best of all it tries.\n\n"
        + table.markdown(cells, right=(1, 2, 3, 4))
        + ("\n\n" + table.markdown(rows, right=(1, 2, 3, 4)) if len(rows) > 1 else "")
    )


if __name__ == "__main__":
    main()
