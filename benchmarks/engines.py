"""Whether pruned models build into engines as reliably as their originals: TensorRT for RTX, which needs no GPU for it.

Each model is built as it is, pruned to half of its units, and pruned in fp16. A model that TensorRT refuses dense says
nothing about pruning; one that builds dense and not pruned is a failure, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import child
import kept
import table
import zoo

_LIMIT = 300.0
_MODELS = Path(__file__).parents[1] / "models"
_ENGINES = {"pruned engine": "fp32", "pruned fp16 engine": "fp16"}


def build(source: str, output: str, precision: str = "fp32") -> dict[str, Any]:
    """Build an engine, in a child; returns its bytes and seconds."""
    from exporter.engines.maker import make_engine

    made = make_engine(Path(source), Path(output), "tensorrt-rtx", precision)
    return {"bytes": len(made.built.engine), "seconds": made.built.seconds, "layers": len(made.built.layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="also every file in DIR/onnx")
    parser.add_argument("--zoo", action="store_true", help="also the networks of coverage.py (needs torchvision)")
    parser.add_argument("--only", help="names, separated by commas (all)")
    parser.add_argument("--limit", type=float, default=_LIMIT, help=f"seconds a build may take ({_LIMIT:g})")
    parser.add_argument("--cache", type=Path, default=table.CACHE)
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    options = parser.parse_args()
    about = table.environment()
    folder = options.cache / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(_MODELS.glob("*.onnx")) + (sorted((options.data / "onnx").glob("*.onnx")) if options.data else [])
    networks = list(zoo.NETWORKS) if options.zoo else []
    only = options.only.split(",") if options.only else [*(s.stem for s in sources), *networks]
    found: dict[str, dict[str, kept.Row]] = {}
    for source in (s for s in sources if s.stem in only):
        found[source.stem] = _said(source.stem, _model(source, folder, options.limit))
    for name in (n for n in networks if n in only):
        file = folder / f"{name}.onnx"
        written = child.call("zoo:write", options.limit, name=name, kind="random", path=str(file))
        failed = {"dense": {"failed": f"not exported: {child.shorten(written.error)}"}}
        found[name] = _said(name, failed if written.error else _model(file, folder, options.limit))
    dense = [n for n, row in found.items() if not row["dense"].get("failed")]
    cut = [n for n in dense if not found[n]["pruned"].get("failed")]
    lost = [n for n in cut if any(found[n][k].get("failed") for k in _ENGINES)]
    text = f"# Engines\n\n{_page(found)}\n\n{len(found)} models, {len(dense)} build dense; "
    text += f"{len(cut)} of these can be cut, {len(cut) - len(lost)} of the results build"
    data = {"models": found, "lost": lost}
    table.publish("engines", text + ".", data, about, options.results if options.only is None else folder)
    sys.exit(1 if lost else 0)


def _said(name: str, row: dict[str, kept.Row]) -> dict[str, kept.Row]:
    table.say(f"{name}: { {k: v.get('failed') or v for k, v in row.items()} }")
    return row


def _model(source: Path, folder: Path, limit: float) -> dict[str, kept.Row]:
    """What became of a model and of its halves. What was built before from the same bytes by the same code is kept."""
    row = {"dense": _engine(source, folder, limit, "fp32")}
    if row["dense"].get("failed"):
        return row
    pruned = folder / f"{source.stem}-half.onnx"

    def prune() -> kept.Row:
        pruned.unlink(missing_ok=True)
        return _called("ours:prune", limit, source=str(source), output=str(pruned))

    if not pruned.is_file():  # the row alone is of no use
        (folder / f"{source.stem}-half.json").unlink(missing_ok=True)
    key = kept.digest(source, kept.source())
    row["pruned"] = kept.once(folder, f"{source.stem}-half", key, prune)
    if not row["pruned"].get("failed"):
        for what, precision in _ENGINES.items():
            row[what] = _engine(pruned, folder, limit, precision)
    return row


def _engine(source: Path, folder: Path, limit: float, precision: str) -> kept.Row:
    target = folder / "built.engine"
    code = kept.source("exporter/engines", "exporter/precision", "runtime/engine")
    key = kept.digest(source, precision, metadata.version("tensorrt_rtx_cu13"), code)

    def build() -> kept.Row:
        found = _called("engines:build", limit, source=str(source), output=str(target), precision=precision)
        for file in folder.glob("built.*"):
            file.unlink()
        return found

    return kept.once(folder, f"{source.stem}-{precision}", key, build)


def _called(function: str, limit: float, **arguments: Any) -> kept.Row:
    started = time.perf_counter()
    outcome = child.call(function, limit, **arguments)
    if outcome.error:
        return {"failed": child.shorten(outcome.error), "retry": outcome.usage.timed_out}
    return {**outcome.value, "wall": time.perf_counter() - started}


def _page(found: dict[str, dict[str, kept.Row]]) -> str:
    rows = [["model", "dense", "pruned", "pruned engine", "pruned fp16 engine"]]
    for name, row in found.items():
        cells = [name]
        for what in rows[0][1:]:
            value = row.get(what)
            if value is None:
                cells.append("")
            elif value.get("failed"):
                cells.append(value["failed"].replace("|", "/").replace("\n", " ")[:90])
            else:
                cells.append(f"{value['bytes'] / 1e6:.2f} MB" if "bytes" in value else "yes")
        rows.append(cells)
    return table.markdown(rows)


if __name__ == "__main__":
    main()
