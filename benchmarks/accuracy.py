"""Accuracy without training: calibrated choice and compensation at given budgets, beside magnitude and other tools.

    python benchmarks/accuracy.py --data DIR [--parts table,curves,samples,cost] [--only NAME,...] [--draws 3]
                                  [--macs .9,.8,...]

DIR holds ``onnx/`` and the calibration and test inputs that ``accuracy_data.py`` names. ``table`` prints the goals and
the other tools beside them, ``curves`` accuracy against MACs left for every score, ``samples`` what the number of
calibration inputs does, ``cost`` time and memory. What was done before with the same code is taken from the cache, so
that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import accuracy_cost
import accuracy_data
import accuracy_page
import child
import table

PARTS = ("table", "curves", "samples", "cost")
CURVES = ("resnet20",)
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25)
SAMPLES = 512
COUNTS = ("resnet56", 0.5, (128, 512, 2000))
COST_BUDGET = "0.5"
LIMIT = 1800.0
"""Seconds a call may take."""

_OURS = ("accuracy_data.py", "accuracy_runs.py")
_PEERS = (*_OURS, "accuracy_peers.py", "accuracy_torch.py", "ours.py")
_TOOLS = ("onnxruntime", "onnxsim", "torch", "torch-pruning")

Row = dict[str, Any]


def main() -> None:
    """Run what was asked for."""
    options = _options()
    about = table.environment()
    options.cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"draws": options.draws}
    if "table" in options.parts:
        goals = [(n, macs) for n in _chosen(options, accuracy_data.NETWORKS) for macs in _network(n).budgets]
        found["table"] = [
            {**_ours(options, n, macs, draw=d, steps=steps), "draw": d}
            for n, macs in goals
            for steps in _network(n).steps.get(macs, (1,))
            for d in range(options.draws)
        ]
        found["peers"] = [row for n, macs in goals for row in _peers(options, n, macs)]
    if "curves" in options.parts:
        found["curves"] = [
            row for n in _chosen(options, CURVES) for macs in options.macs for row in _points(options, n, macs)
        ]
    if "samples" in options.parts:
        name, macs, counts = COUNTS
        found["samples"] = [
            _ours(options, n, macs, samples=count) for n in _chosen(options, [name]) for count in counts
        ]
    if "cost" in options.parts:
        found["cost"] = [_cost(options, n) for n in _chosen(options, accuracy_cost.NETWORKS)]
    whole = not options.only and set(options.parts) == set(PARTS)
    results = options.results or (table.RESULTS if whole else options.cache / "results")
    if found.get("curves"):
        accuracy_page.write_plot(found["curves"], results)
    table.publish("accuracy", accuracy_page.page(found), found, about, results)


def _options() -> argparse.Namespace:
    known = [*accuracy_data.NETWORKS, *(n for n in accuracy_cost.NETWORKS if n not in accuracy_data.NETWORKS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the models and inputs are")
    parser.add_argument("--parts", type=_listed(str, PARTS), default=PARTS, help=f"some of {','.join(PARTS)} (all)")
    parser.add_argument(
        "--only", type=_listed(str, known), default=(), metavar="NAME,...", help=f"only these: {', '.join(known)}"
    )
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="draws of the calibration inputs (3)")
    parser.add_argument(
        "--macs", type=_listed(float), default=BUDGETS, metavar="SHARE,...", help="budgets of the curves (.9 to .25)"
    )
    parser.add_argument(
        "--cache", type=Path, default=table.CACHE / "accuracy", help="results and exports (build/benchmarks/accuracy)"
    )
    parser.add_argument(
        "--results", type=Path, help="where tables go (benchmarks/results; for some parts or networks: the cache)"
    )
    options = parser.parse_args()
    if options.draws < 1 or not all(0 < m < 1 for m in options.macs):
        parser.error("--draws is at least 1, and --macs are shares between 0 and 1")
    options.data, options.cache = options.data.resolve(), options.cache.resolve()
    return options


def _listed(kind: type, known: Any = None) -> Any:
    """A parser of values separated by commas."""

    def values(text: str) -> tuple[Any, ...]:
        found = tuple(kind(t.strip()) for t in text.split(",") if t.strip())
        wrong = [v for v in found if known is not None and v not in known]
        if wrong or not found:
            raise argparse.ArgumentTypeError(f"'{text}': choose from {', '.join(known or ('numbers',))}")
        return found

    return values


def _chosen(options: argparse.Namespace, names: Any) -> list[str]:
    return [n for n in names if not options.only or n in options.only]


def _network(name: str) -> accuracy_data.Network:
    return accuracy_data.NETWORKS[name]


# -- what is measured ---------------------------------------------------------------------------------------------


def _ours(
    options: argparse.Namespace,
    name: str,
    macs: float,
    *,
    draw: int = 0,
    samples: int = SAMPLES,
    score: str | None = None,
    scope: str | None = None,
    steps: int = 1,
) -> Row:
    arguments = {"macs": macs, "draw": draw, "samples": samples, "score": score, "scope": scope, "steps": steps}
    row = _cached(options, "accuracy_runs:prune", _code(), name, arguments)
    return {"network": name, "macs": macs, "samples": samples, "steps": steps, **row}


def _peers(options: argparse.Namespace, name: str, macs: float) -> list[Row]:
    """Magnitude and the other tools: one row each, with figures or why there are none."""
    start = {"network": name, "macs": macs}
    plain = _cached(options, "accuracy_runs:prune_magnitude", _code(), name, {"macs": macs})
    rows = [{**start, "method": "l2", "compensated": False, **plain}]
    if _network(name).torch:
        pruned = _cached(options, "accuracy_peers:torch_pruning", _code(*_PEERS), name, {"macs": macs})
        rows.append({**start, "method": "Torch-Pruning", "compensated": False, **pruned})
    both = {"macs": macs, "draw": 0, "samples": SAMPLES}
    pruned = _cached(options, "accuracy_peers:onnxsim", _code(*_PEERS), name, both)
    for method, key in (("onnxsim", "without"), ("onnxsim, ridge", "with")):
        rows.append({**start, "method": method, "compensated": key == "with", **_figures(pruned, key)})
    return rows


def _points(options: argparse.Namespace, name: str, macs: float) -> list[Row]:
    """Every score with and without compensation, and the other tools, at one budget."""
    rows: list[Row] = []
    for score, scope in _scores():
        method = f"{score}, {scope}"
        found = _ours(options, name, macs, score=score, scope=scope)
        for key in ("without", "with"):
            start = {"network": name, "macs": macs, "method": method, "compensated": key == "with"}
            rows.append(start | _figures(found, key))
    others = [r for r in _peers(options, name, macs) if r["method"] != "l2"]
    return rows + [{**r, "method": r["method"].partition(",")[0]} for r in others]


def _figures(row: Row, key: str) -> Row:
    """The part of a result with or without compensation, or why there is none."""
    found: Row = row.get(key, {"failure": row.get("failure"), "what": row["what"]})
    return found


@cache
def _scores() -> list[tuple[str, str]]:
    """Every score there is, with the scopes to try."""
    from exporter.importance import SCORERS
    from exporter.score_names import CALIBRATED, RECONSTRUCTION

    names = [*SCORERS, *(n for n in CALIBRATED if n != RECONSTRUCTION)]
    return [*((n, "local") for n in (*names, RECONSTRUCTION)), (RECONSTRUCTION, "damage")]


def _cost(options: argparse.Namespace, name: str) -> Row:
    """CPU time and peak memory of the command line; what was measured before is not taken again."""
    row: Row = {"network": name, "what": f"{name}, cost"}
    made = child.call("accuracy_cost:write", LIMIT, name=name, data=str(options.data), folder=str(options.cache))
    if made.error:
        return row | {"failure": made.error}
    out = options.cache / f"cost_{name}_pruned.onnx"
    words = ["prune", made.value["source"], "-o", str(out), "--macs", COST_BUDGET, "--align", "1"]
    words += ["--calib", made.value["calib"], "--calib-samples", str(accuracy_cost.SAMPLES[name])]
    done = child.call("ours:command_line", LIMIT, arguments=words)
    out.unlink(missing_ok=True)
    usage = done.usage
    table.say(f"{name}, cost: {usage.cpu:.0f} CPU s, {usage.peak / 1e9:.2f} GB {done.error}")
    return row | {"failure": done.error, "cpu": usage.cpu, "wall": usage.wall, "peak": usage.peak}


# -- the cache ----------------------------------------------------------------------------------------------------


def _cached(options: argparse.Namespace, function: str, code: str, name: str, arguments: Row) -> Row:
    """What a function returns for a network: from an earlier run of the same code on the same files, or made now.

    A failure is not kept.
    """
    what = " ".join([name, function.partition(":")[2], *(f"{k}={v}" for k, v in arguments.items() if v is not None)])
    key = sha256(json.dumps([function, code, _inputs(options.data, name), arguments]).encode()).hexdigest()[:24]
    file = options.cache / f"{name}_{key}.json"
    if file.is_file():
        kept: Row = json.loads(file.read_text(encoding="utf-8"))
        return {**kept, "what": what}
    outcome = child.call(function, LIMIT, name=name, data=str(options.data), **arguments)
    if outcome.error:
        table.say(f"{what}: {outcome.error}")
        return {"what": what, "failure": outcome.error}
    found: Row = {**outcome.value, "cpu": outcome.usage.cpu}
    file.write_text(json.dumps(found), encoding="utf-8")
    table.say(f"{what}: {_line(found)} {outcome.usage.cpu:.0f} CPU s")
    return {**found, "what": what}


def _line(found: Row) -> str:
    parts = {k: found[k] for k in ("without", "with") if k in found} or {"": found}
    return "; ".join(f"{k} {p['score']:.4f} at {p['macs_left']:.3f}".strip() for k, p in parts.items())


@cache
def _code(*files: str) -> str:
    """Hash of the source a result depends on: these files and the tools' versions; without files, all of Secateur's."""
    sources = [child.HERE / f for f in files or _OURS]
    versions = [f"{t} {metadata.version(t)}" for t in _TOOLS] if files else []
    if not files:
        import exporter

        root = Path(exporter.__file__).parent
        sources += sorted([*root.rglob("*.py"), *(root.parent / "runtime").rglob("*.py")])
    return sha256(b"".join(f.read_bytes() for f in sources) + " ".join(versions).encode()).hexdigest()[:16]


@cache
def _inputs(data: Path, name: str) -> str:
    """Hash of a network and of its data."""
    network = _network(name)
    files = [network.path(data), *(data / f for f in accuracy_data.FILES[network.data])]
    if network.data == "digits":
        files.append(table.ROOT / "models" / "digits.npz")
    missing = [f for f in files if not f.is_file()]
    if missing:
        sys.exit(f"accuracy: {missing[0]} is missing")
    return sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


if __name__ == "__main__":
    main()
