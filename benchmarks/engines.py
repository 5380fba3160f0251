"""Whether pruned models build into engines as reliably as their originals: TensorRT for RTX, which needs no GPU for it.

Each model is built as it is, pruned to half of its units, and pruned in fp16. A model that TensorRT refuses dense says
nothing about pruning; one that builds dense and not pruned is a failure, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import child
import table

_LIMIT = 300.0
_MODELS = Path(__file__).parents[1] / "models"


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
    parser.add_argument("--cache", type=Path, default=table.CACHE)
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    options = parser.parse_args()
    about = table.environment()
    folder = options.cache / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(_MODELS.glob("*.onnx")) + (sorted((options.data / "onnx").glob("*.onnx")) if options.data else [])
    sources += _zoo(folder, options.only) if options.zoo else []
    only = options.only.split(",") if options.only else None
    found = {}
    for source in sources:
        if only is None or source.stem in only:
            found[source.stem] = _model(source, folder)
            table.say(f"{source.stem}: { {k: v.get('failed') or v for k, v in found[source.stem].items()} }")
    dense = [n for n, row in found.items() if not row["dense"].get("failed")]
    lost = [n for n in dense if any(row.get("failed") for k, row in found[n].items() if k != "pruned")]
    cut = [n for n in dense if "pruned engine" in found[n]]
    text = f"# Engines\n\n{_page(found)}\n\n{len(found)} models, {len(dense)} build dense; "
    text += f"{len(cut)} of these can be cut, "
    text += f"{len(cut) - len([n for n in lost if n in cut])} of the results build"
    table.publish("engines", text + ".", {"models": found}, about, options.results if only is None else folder)
    sys.exit(1 if lost else 0)


def _zoo(folder: Path, only: str | None) -> list[Path]:
    import zoo

    made = []
    for name in zoo.NETWORKS:
        file = folder / f"{name}.onnx"
        if only is None or name in only.split(","):
            child.call("zoo:write", _LIMIT, name=name, kind="random", path=str(file))
            made += [file] if file.is_file() else []
    return made


def _model(source: Path, folder: Path) -> dict[str, dict[str, Any]]:
    row = {"dense": _called("engines:build", source=str(source), output=str(folder / "dense.engine"))}
    if row["dense"].get("failed"):
        return row
    pruned = folder / f"{source.stem}-half.onnx"
    pruned.unlink(missing_ok=True)
    row["pruned"] = _called("ours:prune", source=str(source), output=str(pruned))
    for what, precision in (("pruned engine", "fp32"), ("pruned fp16 engine", "fp16")):
        if not row["pruned"].get("failed"):
            target = str(folder / "pruned.engine")
            row[what] = _called("engines:build", source=str(pruned), output=target, precision=precision)
    return row


def _called(function: str, **arguments: Any) -> dict[str, Any]:
    started = time.perf_counter()
    outcome = child.call(function, _LIMIT, **arguments)
    if outcome.error:
        return {"failed": child.shorten(outcome.error)}
    return {**outcome.value, "wall": time.perf_counter() - started}


def _page(found: dict[str, dict[str, dict[str, Any]]]) -> str:
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
