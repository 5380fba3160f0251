"""Time and memory of inspect, prune, sparsify and convert on a large model, beside a copy of its files.

    python benchmarks/large_model.py /tmp/big/llama.onnx --layers 32 --hidden 4096 --inner 11008 --heads 32
    python benchmarks/large.py /tmp/big/llama.onnx

Peak memory is that of the process, mapped pages that were touched included. Each result is deleted once it is measured.
A model in fp32 (``large_model.py --dtype float32``) is converted to fp16 as well; the page is then ``large-fp32``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import table

from exporter.tensors import nbytes

_COPIES = 3
SECATEUR = (sys.executable, "-m", "exporter")


def measured(command: list[str], log: Path) -> tuple[int, float, float, float]:
    """Exit code, seconds, processor seconds and peak gigabytes of a command."""
    started = time.perf_counter()
    with log.open("w") as stream:
        child = os.posix_spawn(
            command[0], command, dict(os.environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 1), (os.POSIX_SPAWN_DUP2, stream.fileno(), 2)],
        )  # fmt: skip
        _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    return os.waitstatus_to_exitcode(status), seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main() -> None:
    """Measure and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default="cp,inspect,prune,prune-unproved,sparsify,convert")
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    options = parser.parse_args()
    about = table.environment()
    out = options.model.parent / "large-out"
    shutil.rmtree(out, ignore_errors=True)
    model, result = str(options.model), str(out / "out.onnx")
    files = [f for f in options.model.parent.iterdir() if f.is_file()]
    commands = {
        "cp": [shutil.which("cp"), *map(str, files), str(out)],
        "inspect": [*SECATEUR, "inspect", model],
        "prune": [*SECATEUR, "prune", model, "-o", result, "--ratio", "0.5"],
        "prune-unproved": [*SECATEUR, "prune", model, "-o", result, "--ratio", "0.5", "--no-verify"],
        "sparsify": [*SECATEUR, "sparsify", model, "-o", result],
        "convert": [*SECATEUR, "convert", model, "-o", result, "--precision", "fp16"],
    }
    tensors = onnx.load(model, load_external_data=False).graph.initializer
    if all(t.data_type == onnx.TensorProto.FLOAT16 for t in tensors if nbytes(t) > 1 << 20):
        del commands["convert"]
    largest, size = max(nbytes(t) for t in tensors), sum(f.stat().st_size for f in files)
    rows = []
    asked = [n for n in options.only.split(",") if n in commands]
    for name in [n for n in asked for _ in range(_COPIES if n == "cp" else 1)]:
        out.mkdir()
        log = options.model.parent.parent / f"{options.model.stem}.{name}.log"
        code, seconds, used, peak = measured(commands[name], log)
        wrote = sum(f.stat().st_size for f in out.iterdir())
        rows.append(
            {"command": name, "exit": code, "seconds": seconds, "cpu": used, "peak": peak * 1e9, "wrote": wrote}
        )
        table.say(f"{name}: exit {code}, {seconds:.1f} s, {used:.1f} CPU s, {peak:.2f} GB")
        shutil.rmtree(out)
    data = {"bytes": size, "largest": largest, "rows": rows}
    table.publish("large-fp32" if "convert" in commands else "large", page(data), data, about, options.results)


def page(data: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    copies = [row["seconds"] for row in data["rows"] if row["command"] == "cp"]
    copied = statistics.median(copies) if copies else None
    lines = [["command", "exit", "seconds", "of cp", "CPU s", "peak memory, GB", "wrote, GB"]]
    lines += [
        [
            row["command"], str(row["exit"]), f"{row['seconds']:.0f}",
            f"{row['seconds'] / copied:.2f}" if copied else "-", f"{row['cpu']:.0f}", f"{row['peak'] / 1e9:.2f}",
            f"{row['wrote'] / 1e9:.2f}",
        ]
        for row in data["rows"]
    ]  # fmt: skip
    return (
        f"# A large model\n\nA Llama-like model of {data['bytes'] / 1e9:.1f} GB; its largest tensor has "
        f"{data['largest'] / 1e9:.2f} GB. The copy is made {_COPIES} times, of which the median counts: it takes "
        f"longer where the system's cache is made of memory nobody has used yet.\n\n"
        f"{table.markdown(lines, right=(1, 2, 3, 4, 5, 6))}"
    )


if __name__ == "__main__":
    main()
