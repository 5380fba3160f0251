"""How much of a network each tool can cut, and whether what it writes still runs.

    python benchmarks/coverage.py [--only NAME,...] [--data DIR [--skip-networks]]

Prints a table over networks with random weights, the same networks with equal tensors merged, and with ``--data`` one
over the files in ``DIR/onnx``.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import child
import table
import zoo

RATIO = 0.5
LIMIT = 300.0
"""Seconds any one call may take."""

INTRODUCTION = f"""
Every tool was asked to remove {RATIO:.0%} of the channels (Secateur: `--ratio {RATIO} --align 1`). MACs and parameters
are what is left, by Secateur's cost model, as a share of the dense network; lower means that more of the graph was
understood. Proven: the pruned file equals its masked original in ONNX Runtime within that relative error. Simplified:
onnxsim's pruning after `onnxsim.simplify`. Broken: the tool raised, or ONNX Runtime refuses the file. Only Secateur
checks that the numbers are right; the other files merely run."""
MERGED = """
All biases are equal, and all normalisation parameters are. Shared: one-dimensional initializers with several users, and
the most users of one: by torch's exporter alone, and after merging what it left."""
FILES = f"""
`secateur prune --ratio {RATIO} --align 1` on files that nobody in this project wrote. Prunable: share of the parameters
that belong to a unit; MACs and parameters: what is left; proven: relative error against the masked original."""

Row = dict[str, Any]


def main() -> None:
    """Run what was asked for."""
    options = _options()
    only = set(filter(None, options.only.split(",")))
    about = table.environment()
    cache = options.cache
    cache.mkdir(parents=True, exist_ok=True)
    # a partial run does not replace the full tables
    results = options.results or (cache / "results" if only else table.RESULTS)
    names = [n for n in zoo.NETWORKS if (not only or n in only) and not options.skip_networks]
    files = sorted((options.data / "onnx").glob("*.onnx")) if options.data else []
    files = [f for f in files if not only or f.stem in only]
    unknown = only - set(names) - {f.stem for f in files}
    if unknown or (options.data and not only and not files):
        sys.exit(f"coverage: nothing is called {', '.join(sorted(unknown)) or options.data / 'onnx/*.onnx'}")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        out = Path(scratch) / "pruned.onnx"
        if names:
            random = [_network(n, "random", cache, out) for n in names]
            equal = [_network(n, "equal", cache, out) for n in names]
            table.publish("coverage", _networks_page(random, equal), {"random": random, "equal": equal}, about, results)
        if files:
            rows = [_file(f, out) for f in files]
            table.publish("coverage_data", _files_page(rows), {"files": rows}, about, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="NAME,...", help="only these networks and files (without .onnx)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="also prune every file in DIR/onnx")
    parser.add_argument("--skip-networks", action="store_true", help="only the files of --data")
    parser.add_argument("--cache", type=Path, default=table.CACHE, help="where exports are kept (build/benchmarks)")
    parser.add_argument("--results", type=Path, help="where tables go (benchmarks/results; with --only: the cache)")
    return parser.parse_args()


# -- running ----------------------------------------------------------------------------------------------------


def _network(name: str, kind: str, cache: Path, out: Path) -> Row:
    """One network with one set of weights, through every tool."""
    table.say(f"{name}, {kind} weights")
    source = cache / f"{name}_{kind}.onnx"
    built = child.call("zoo:write", LIMIT, name=name, kind=kind, path=str(source))
    row: Row = {"network": name, "built": built.value, "failure": built.error}
    if built.error:
        return row
    dense = child.call("ours:measure", LIMIT, path=str(source)).value
    row["dense"] = dense
    row["secateur"] = _run("ours:prune", out, source=str(source), output=str(out), ratio=RATIO)
    for key, simplify in (("onnxsim", False), ("simplified", True)):
        call = {"source": str(source), "output": str(out), "ratio": RATIO, "simplify": simplify}
        row[key] = _peer("peers:prune_onnxsim", name, dense, out, **call)
    if kind == "random":
        row["torch_pruning"] = _peer("peers:prune_torch", name, dense, out, name=name, output=str(out), ratio=RATIO)
        if name in zoo.TRANSFORMERS:
            row["torch_pruning_plain"] = row["torch_pruning"]
            call = {"name": name, "output": str(out), "ratio": RATIO, "recipe": True}
            row["torch_pruning"] = _peer("peers:prune_torch", name, dense, out, **call)
    return row


def _run(function: str, out: Path, **arguments: Any) -> Row:
    """What a call returned and took; the output file is removed, also one left over."""
    out.unlink(missing_ok=True)
    outcome = child.call(function, LIMIT, **arguments)
    table.say(f"  {function} {outcome.error or 'done'} ({outcome.usage.wall:.1f} s)")
    usage = {"wall": outcome.usage.wall, "cpu": outcome.usage.cpu, "peak": outcome.usage.peak}
    return {**outcome.value, "failure": outcome.error, "usage": usage}


def _peer(function: str, network: str, dense: Row, out: Path, **arguments: Any) -> Row:
    """Run a peer; measure its file with our cost model; see whether ONNX Runtime takes it."""
    row = _run(function, out, **arguments)
    if row["failure"]:
        return row
    if not out.is_file():  # pruned, but not exported
        return {**row, "counted_by": "the tool"}
    row["failure"] = _plain(child.call("peers:check_runs", LIMIT, path=str(out), name=network).error, out)
    measured = child.call("ours:measure", LIMIT, path=str(out))
    if measured.error:
        row["failure"] = row["failure"] or f"not measured: {measured.error}"
    else:
        row["macs_left"] = measured.value["macs"] / dense["macs"]
        row["parameters_left"] = measured.value["parameters"] / dense["parameters"]
    return row


def _plain(error: str, out: Path) -> str:
    """An error of ONNX Runtime without its codes and the temporary file's name."""
    return re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", error).replace(str(out), out.name)


def _file(file: Path, out: Path) -> Row:
    """Secateur on one file."""
    table.say(file.name)
    row = _run("ours:prune", out, source=str(file), output=str(out), ratio=RATIO)
    if row["failure"]:
        row.update(child.call("ours:inspect", LIMIT, path=str(file)).value)
    return {"file": file.name, **row}


# -- tables -----------------------------------------------------------------------------------------------------


def _networks_page(random: Sequence[Row], equal: Sequence[Row]) -> str:
    notes: list[str] = []
    parts = ["# Coverage", _paragraph(INTRODUCTION), "## Random weights", _random_table(random, notes)]
    parts += ["## Equal constants merged", _paragraph(MERGED), _equal_table(equal, notes)]
    parts += ["## Notes", "\n".join(f"{k}. {note}" for k, note in enumerate(notes, 1)) or "None."]
    return "\n\n".join(parts)


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _random_table(rows: Sequence[Row], notes: list[str]) -> str:
    head = [
        "network",
        "GMACs",
        "Secateur MACs",
        "parameters",
        "proven",
        "seconds",
        "onnxsim MACs",
        "simplified MACs",
        "Torch-Pruning MACs",
    ]
    lines = [head]
    for row in rows:
        if row["failure"]:
            lines.append([row["network"], _note("not exported", row["network"], row["failure"], notes), *[""] * 7])
            continue
        ours = row["secateur"]
        torch_pruning = _peer_cell(row, "torch_pruning", notes, "error")
        if "torch_pruning_plain" in row:
            plain = row["torch_pruning_plain"]
            text = plain["failure"] or f"MACs left {table.share(plain['macs_left'])}"
            text = f"with the attention settings of its own examples; with plain settings: {text}"
            torch_pruning = _note(torch_pruning, f"{row['network']}, Torch-Pruning", text, notes)
        lines.append(
            [
                row["network"],
                f"{row['dense']['macs'] / 1e9:.2f}",
                *_our_cells(row, notes),
                _seconds(ours),
                *(_peer_cell(row, k, notes) for k in ("onnxsim", "simplified")),
                torch_pruning,
            ]
        )
    return table.markdown(lines, right=(1, 2, 3, 5, 6, 7, 8))


def _equal_table(rows: Sequence[Row], notes: list[str]) -> str:
    lines = [
        [
            "network",
            "shared by exporter",
            "shared in all",
            "Secateur MACs",
            "parameters",
            "proven",
            "onnxsim MACs",
            "simplified MACs",
        ]
    ]
    for row in rows:
        if row["failure"]:
            lines.append([row["network"], _note("not exported", row["network"], row["failure"], notes), *[""] * 6])
            continue
        shared = [
            f"{s['shared']}, up to {s['most_uses']} uses" if s["shared"] else "none"
            for s in (row["built"]["exporter"], row["built"]["merged"])
        ]
        peers = [_peer_cell(row, k, notes) for k in ("onnxsim", "simplified")]
        lines.append([row["network"], *shared, *_our_cells(row, notes), *peers])
    return table.markdown(lines, right=(3, 4, 6, 7))


def _our_cells(row: Row, notes: list[str]) -> list[str]:
    """MACs left, parameters left, proven."""
    ours = row["secateur"]
    if ours["failure"]:
        return ["-", "-", _note("**no**", f"{row['network']}, Secateur", ours["failure"], notes)]
    proven = f"yes, {ours['error']:.0e}"
    if ours["warnings"]:
        proven = _note(proven, f"{row['network']}, Secateur", "; ".join(ours["warnings"]), notes)
    return [table.share(ours["macs_left"]), table.share(ours["parameters_left"]), proven]


def _peer_cell(row: Row, key: str, notes: list[str], word: str = "broken") -> str:
    found = row[key]
    tool = {"torch_pruning": "Torch-Pruning", "simplified": "onnxsim simplified"}.get(key, key)
    if key == "simplified" and found["failure"] == row["onnxsim"]["failure"]:
        tool = "onnxsim"  # one note for both
    if found["failure"]:
        return _note(word, f"{row['network']}, {tool}", found["failure"], notes)
    text = table.share(found["macs_left"])
    if found.get("export"):
        return _note(text, f"{row['network']}, {tool}", f"its own count, the export failed: {found['export']}", notes)
    return text


def _note(text: str, where: str, note: str, notes: list[str]) -> str:
    """The text with the number of a footnote."""
    line = f"{where}: {note}"
    if line not in notes:
        notes.append(line)
    return f"{text} [{notes.index(line) + 1}]"


def _seconds(row: Row) -> str:
    return f"{row['seconds']:.1f}" if "seconds" in row else "-"


def _files_page(rows: Sequence[Row]) -> str:
    head = ["file", "groups", "prunable", "MACs", "parameters", "proven", "seconds", "note"]
    lines = [head]
    for row in rows:
        groups = str(row["groups"]) if "groups" in row else "-"
        start = [row["file"].removesuffix(".onnx"), groups, _percent(row.get("prunable"))]
        if row["failure"]:
            lines.append([*start, "-", "-", "-", f"{row['usage']['wall']:.1f}", _why(row)])
            continue
        shares = [table.share(row[k]) for k in ("macs_left", "parameters_left")]
        lines.append([*start, *shares, f"yes, {row['error']:.0e}", _seconds(row), "; ".join(row["warnings"])])
    return "\n\n".join(("# Coverage: published files", _paragraph(FILES), table.markdown(lines, right=(1, 2, 3, 4, 6))))


def _why(row: Row) -> str:
    """Why a file was not pruned; where it has no group, what freezes most of it."""
    return row["failure"] + (f" Most of it: {row['frozen']}" if row.get("groups") == 0 and row["frozen"] else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    main()
