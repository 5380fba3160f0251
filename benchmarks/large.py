"""Time and memory of inspect, prune and sparsify on a large model, beside a copy of its files.

    python benchmarks/large_model.py /tmp/big/llama.onnx --layers 32 --hidden 4096 --inner 11008 --heads 32
    python benchmarks/large.py /tmp/big/llama.onnx

Peak memory is that of the process, mapped pages that were touched included. Each result is deleted once it is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import onnx

from exporter.tensors import nbytes

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
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default="cp,inspect,prune,prune-unproved,sparsify")
    options = parser.parse_args()
    out = options.model.parent / "large-out"
    shutil.rmtree(out, ignore_errors=True)
    model, result = str(options.model), str(out / "out.onnx")
    commands = {
        "cp": [shutil.which("cp"), "-r", str(options.model.parent), str(out / "copy")],
        "inspect": [*SECATEUR, "inspect", model],
        "prune-unproved": [*SECATEUR, "prune", model, "-o", result, "--ratio", "0.5", "--no-verify"],
        "prune": [*SECATEUR, "prune", model, "-o", result, "--ratio", "0.5"],
        "sparsify": [*SECATEUR, "sparsify", model, "-o", result],
    }
    largest = max(nbytes(t) for t in onnx.load(model, load_external_data=False).graph.initializer)
    print(f"largest tensor {largest / 1e9:.2f} GB")
    for name in options.only.split(","):
        out.mkdir()
        command = commands[name]
        if name == "cp":  # not into itself
            files = [str(f) for f in options.model.parent.iterdir() if f.is_file()]
            command = [command[0], *files, str(out)]
        log = Path(f"{options.model}.{name}.log")
        code, seconds, used, peak = measured(command, log)
        size = sum(f.stat().st_size for f in out.iterdir()) / 1e9
        print(
            f"{name:15} exit {code}  {seconds:6.1f} s  cpu {used:6.1f} s  peak {peak:5.2f} GB  wrote {size:5.2f} GB",
            flush=True,
        )
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
