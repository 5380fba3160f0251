"""The survey: how much of every known architecture can be cut, and whether the cut is proven.

    python benchmarks/survey.py [--only NAME,...] [--all-variants] [--peers] [--jobs N]

Every network is exported twice: by torch's dynamo exporter with its default opset, and in one other variant, chosen in
turn; where both fail, the legacy exporter is tried. What was done before with the same code is taken from the cache, so
that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import child
import exports
import networks
import survey_page
import table

RATIO = 0.5
FALLBACK = "legacy-17"
PEERS = ("onnxsim", "torch_pruning")
EXPORT_LIMIT = 600.0
PRUNE_LIMIT = 300.0
PEER_LIMIT = 60.0
"""Seconds a call may take."""

Row = dict[str, Any]


def main() -> None:
    """Run what was asked for."""
    options = _options()
    only = [o for o in options.only.split(",") if o]
    about = table.environment()
    known = networks.names()
    chosen = [n for n in known if not only or any(o in (n, n.partition("/")[2]) for o in only)]
    if not chosen:
        sys.exit(f"survey: nothing is called {options.only}")
    options.cache.mkdir(parents=True, exist_ok=True)
    code = _code()
    with ThreadPoolExecutor(options.jobs) as pool:
        # the catalogue's place decides the second variant, so that --only picks the same
        jobs = [
            pool.submit(_network, n, _variants(known.index(n), options.all_variants), options, code) for n in chosen
        ]
        try:
            found = [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows = [row for rows in found for row in rows]
    results = options.results or (options.cache / "results" if only else table.RESULTS)
    table.publish("survey", survey_page.page(rows, RATIO, PEER_LIMIT), {"rows": rows}, about, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="NAME,...", help="only these networks, as NAME or SOURCE/NAME")
    parser.add_argument("--all-variants", action="store_true", help="every exporter and opset for every network")
    parser.add_argument("--peers", action="store_true", help="also onnxsim and Torch-Pruning, on the first variant")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time (1)")
    parser.add_argument(
        "--cache", type=Path, default=table.CACHE / "survey", help="exports and rows (build/benchmarks)"
    )
    parser.add_argument("--results", type=Path, help="where tables go (benchmarks/results; with --only: the cache)")
    return parser.parse_args()


def _variants(place: int, every: bool) -> list[str]:
    first, *others = exports.VARIANTS
    return [first, *others] if every else [first, others[place % len(others)]]


def _code() -> str:
    """Hash of the source that a row of ours depends on."""
    import exporter

    root = Path(exporter.__file__).parent
    files = sorted([*root.rglob("*.py"), *(root.parent / "runtime").rglob("*.py")])
    files += [child.HERE / "ours.py", child.HERE / "shortfall.py"]
    return sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def _network(name: str, variants: Sequence[str], options: argparse.Namespace, code: str) -> list[Row]:
    """All rows of one network."""
    folder = options.cache
    exports_of = partial(child.call, "exports:write", EXPORT_LIMIT, name=name, folder=str(folder))
    found: dict[str, Row] = {}
    for wanted in (list(variants), [FALLBACK]):
        outcome = exports_of(variants=wanted)
        found |= {v: outcome.value.get(v, {"error": outcome.error or "not exported"}) for v in wanted}
        written = [v for v in found if "error" not in found[v]]
        if written:
            break
    rows = []
    for variant, exported in found.items():
        row: Row = {"network": name, "variant": variant, "export": exported}
        rows.append(row)
        if "error" in exported:
            table.say(f"{name} {variant}: not exported, {exported['error']}")
            continue
        source = Path(exported["path"])
        row["secateur"] = _cached(source, "secateur", f"{code} {exported['maker']}", _ours)
        if options.peers and variant == written[0]:
            for tool in PEERS:
                row[tool] = _cached(source, tool, exported["maker"], partial(_peer, tool, name))
        table.say(_line(row))
    return rows


def _cached(source: Path, tool: str, key: str, work: Callable[[Path, Path], Row]) -> Row:
    """The result of a tool on a file, from an earlier run with the same key or made now.

    ``work`` is called with the file and a path for what it writes.
    """
    file = source.with_suffix(f".{tool}.json")
    if file.is_file():
        kept: Row = json.loads(file.read_text(encoding="utf-8"))
        if kept.get("key") == key:
            return kept
    out = source.with_suffix(f".{tool}.onnx")
    found: Row = {"key": key, **work(source, out)}
    out.unlink(missing_ok=True)
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def _ours(source: Path, out: Path) -> Row:
    outcome = child.call("ours:survey", PRUNE_LIMIT, source=str(source), output=str(out), ratio=RATIO)
    return {**outcome.value, "failure": outcome.error}


def _peer(tool: str, name: str, source: Path, out: Path) -> Row:
    """Another tool on the same network: what is left, or why nothing."""
    call = {"name": name} if tool == "torch_pruning" else {"source": str(source), "output": str(out)}
    outcome = child.call(f"survey_peers:{tool}", PEER_LIMIT, ratio=RATIO, **call)
    return {**outcome.value, "failure": outcome.error}


def _line(row: Row) -> str:
    ours = row["secateur"]
    start = f"{row['network']} {row['variant']}: "
    if ours["failure"]:
        return start + ours["failure"]
    if "explained" in ours:
        return f"{start}not pruned: {ours['explained']}, {ours['reasons']}"
    shares = f"macs {ours['macs_left']:.3f} params {ours['parameters_left']:.3f} prunable {ours['prunable']:.3f}"
    why = [w for w in (*ours["why"]["macs"], *ours["why"]["parameters"]) if w[0] > 0.01]
    return f"{start}{shares} error {ours['error']:.0e} {ours['seconds']:.1f} s {why}"


if __name__ == "__main__":
    main()
