"""Everything that needs an NVIDIA GPU, in one command: a model and its smaller variants, timed and compared.

Engines (``--backend tensorrt`` or ``tensorrt-rtx``), for each model: dense twice (the second build is the control: two
builds of one file differ, and no gain below that counts), pruned to half of the work, 2:4, both, each in fp32 and fp16;
dense and pruned in int8 (``secateur quantize`` with TensorRT's profile); the outputs against ONNX Runtime on the CPU;
whether sparse kernels were chosen; then the engines of a model in one precision in turn, so that ratios are of pairs.
ONNX Runtime's CUDA provider beside them where it is installed, and alone with ``--backend ort-cuda``: dense twice and
pruned, in fp32 and fp16, in turn in one session. With torch, its semi-structured matrix product: what 2:4 is worth to
the hardware itself.

``--prepare`` makes all files on a machine without a GPU; what is left is to build and to time. Each cell is measured on
its own and written at once, what matters most of all models first. The same command goes on where a run was ended, with
engines that are there already; what failed, or ended the process, comes last then.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import table
from gpu_cells import CUDA, Cell, Run, cells_of, gpu_answers, prepared
from gpu_files import Model, forget_failures, told
from gpu_record import Record

_MODELS = Path(__file__).parents[1] / "models"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch")
_TOLD = ("error", "text", "device_ms", "host_ms", "rate", "ratio", "ratios", "error_of_outputs", "build_seconds")
"""What of a row is shown as soon as it is there."""


def main() -> None:
    started = time.monotonic()
    options = _options()
    device = _device(options.backend) if not options.prepare else {}
    about = table.environment()
    folder = options.cache / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    sessions = options.prepare or options.backend == CUDA or not _lacks_cuda()
    cells = cells_of(_models(options, folder), options.backend != CUDA, sessions)
    chosen = [
        cell for cell in cells if not options.only or any(fnmatch.fnmatchcase(cell.name, glob) for glob in options.only)
    ]
    if not chosen:
        sys.exit(f"gpu.py: --only chooses none of: {'; '.join(cell.name for cell in cells)}")
    if options.prepare:
        _prepare(chosen, options.batch)
        return
    version = device.pop("version")
    setting = {
        "device": device,
        "versions": [version, *_versions()],
        "flags": {name: getattr(options, name) for name in ("seconds", "batch", "capture", "calib")},
    }
    record = Record(f"gpu-{options.backend}", options.results, setting, cells, chosen, about)
    kind = (device["name"], device["capability"])
    run = Run(options.backend, kind, folder, tuple(options.batch), options.seconds, options.capture)
    _measure(chosen, record, run, started + 60 * options.minutes)
    table.publish(record.name, record.page(), record.data, about, options.results)
    _end("; ".join(cell.name for cell in chosen if record.failed(cell)))


def _end(failed: str) -> None:
    """With exit code 1 and a line where something failed."""
    if failed:
        print(f"gpu.py: failed: {failed}", file=sys.stderr)
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="fp32 ONNX files (default, without --zoo: models/)")
    parser.add_argument("--zoo", default="", help="networks of zoo.py, separated by commas: resnet50,vit_b_16,bert")
    parser.add_argument("--backend", default="tensorrt", help="tensorrt (default), tensorrt-rtx or ort-cuda")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (1)")
    parser.add_argument(
        "--calib", default="synthetic", metavar="DATA", help="inputs that ranges for int8 are found on (synthetic)"
    )
    parser.add_argument(
        "--batch", type=_numbers, default=[1, 32], metavar="N,...", help="batches, where the file leaves it open (1,32)"
    )
    parser.add_argument("--capture", action="store_true", help="replay a recorded run (CUDA graph)")
    parser.add_argument(
        "--only", action="append", metavar="GLOB", help="cells of such names: 'resnet50, *', '*, pruned 2:4, fp16'"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--cache", type=Path, default=table.CACHE)
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    parser.add_argument("--prepare", action="store_true", help="only make the files, which needs no GPU")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _device(backend: str) -> dict[str, Any]:
    """The GPU and what runs models on it; without either the program ends with exit code 4 and the reason."""
    from runtime.backends import available
    from runtime.cuda import need_gpu
    from runtime.errors import BackendMissing, RunError

    if backend not in ("tensorrt", "tensorrt-rtx", CUDA):
        sys.exit(f"gpu.py: --backend {backend}: choose from tensorrt, tensorrt-rtx, {CUDA}")
    try:
        about = available()[backend]
        if about.missing:
            raise BackendMissing(about.missing)
        return {"version": about.version, **vars(need_gpu())}
    except RunError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _lacks_cuda() -> bool:
    """Whether ONNX Runtime's CUDA provider is missing, which is no failure beside engines."""
    from runtime.backends import available

    missing = available()[CUDA].missing
    if missing:
        table.say(f"without {CUDA}: {missing}")
    return bool(missing)


def _versions() -> list[str]:
    """Of the packages that measure besides TensorRT."""
    known = {d.name.lower(): d.version for d in metadata.distributions()}
    return [f"{name} {known[name]}" for name in _PACKAGES if name in known]


def _models(options: argparse.Namespace, folder: Path) -> list[Model]:
    names = [name for name in options.zoo.split(",") if name]
    sources = options.models or ([] if names else sorted(_MODELS.glob("*.onnx")))
    found = [Model(source.stem, source, folder, calib=options.calib) for source in sources]
    found += [Model(name, folder / f"{name}.onnx", folder, True, options.calib) for name in names]
    if len({model.name for model in found}) < len(found):
        sys.exit("gpu.py: two models have one name.")
    return found


def _prepare(cells: Sequence[Cell], batches: Sequence[int]) -> None:
    """Make the files of the cells."""
    failed: dict[str, None] = {}
    for model in {cell.model for cell in cells if cell.model is not None}:
        forget_failures(model)
    for cell in (c for c in cells if c.model is not None):
        began = time.monotonic()
        wrong = prepared(cell, batches)
        table.say(f"{cell.name}: {'; '.join(wrong) or f'{time.monotonic() - began:.1f} s'}")
        failed |= dict.fromkeys(wrong)
    _end("; ".join(failed))


def _measure(cells: Sequence[Cell], record: Record, run: Run, end: float) -> None:
    """Measure what is not measured yet, until the time is up or the GPU does not answer any more."""
    late = [cell for cell in cells if any(record.failed(c) for c in cells if c is cell or _takes(cell, c))]
    for cell in [*(c for c in cells if c not in late), *late]:
        if record.finished(cell):
            table.say(f"{cell.name}: measured before")
        elif time.monotonic() >= end:
            break
        else:
            record.begin(cell)
            try:
                rows = cell.work(run, record.done(cell))
            except Exception as error:  # whatever it is, the other cells are worth the GPU's time
                rows = {cell.label: {"error": told(error)}}
            gc.collect()  # an error holds what was open, and its memory on the GPU
            record.put(cell, rows)
            for label, row in rows.items():
                table.say(f"{cell.name}: {label}: { {key: row[key] for key in _TOLD if key in row} }")
            if record.failed(cell) and not gpu_answers():
                print("gpu.py: the GPU does not answer any more; run the same command again.", file=sys.stderr)
                break
    record.write()


def _takes(cell: Cell, other: Cell) -> bool:
    return cell.model is other.model and other.label in cell.of


if __name__ == "__main__":
    main()
