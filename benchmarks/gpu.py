"""Everything that needs an NVIDIA GPU, in one command: a model and its smaller variants, timed and compared.

Engines (``--backend tensorrt`` or ``tensorrt-rtx``), for each model: dense twice (the second build is the control: two
builds of one file differ, and no gain below that counts), pruned to half of the work, 2:4, both, each in fp32 and fp16;
dense and pruned in int8 (``secateur quantize`` with TensorRT's profile); the outputs against ONNX Runtime on the CPU;
whether sparse kernels were chosen. ONNX Runtime's CUDA provider beside them where it is installed, and alone with
``--backend ort-cuda``: dense twice and pruned, in fp32 and fp16, for each of ``--batch``, in turn in one session. With
torch, its semi-structured matrix product: what 2:4 is worth to the hardware itself.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import table

from runtime.runners import Asked

_MODELS = Path(__file__).parents[1] / "models"
CUDA = "ort-cuda"
_LENGTHS = {"bert": {"input_ids": (1, 128), "attention_mask": (1, 128)}}
"""Input shapes of networks whose default sizes would be too small to mean anything."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="fp32 ONNX files (default: those of models/)")
    parser.add_argument("--zoo", help="networks of zoo.py, separated by commas: resnet50,vit_b_16,bert")
    parser.add_argument("--backend", default="tensorrt", help="tensorrt (default), tensorrt-rtx or ort-cuda")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (3)")
    parser.add_argument(
        "--calib", default="synthetic", metavar="DATA", help="inputs that ranges for int8 are found on (synthetic)"
    )
    parser.add_argument("--batch", default="1,32", metavar="N,...", help="batches of ONNX Runtime's runs (1,32)")
    parser.add_argument("--capture", action="store_true", help="replay a recorded run (CUDA graph)")
    parser.add_argument("--cache", type=Path, default=table.CACHE)
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    parser.add_argument("--prepare", action="store_true", help="only make the files, which needs no GPU")
    options = parser.parse_args()
    device = _device(options.backend) if not options.prepare else {}
    about = table.environment()
    folder = options.cache / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    sources = options.models or sorted(_MODELS.glob("*.onnx"))
    if options.zoo:
        import child

        for name in options.zoo.split(","):
            file = folder / f"{name}.onnx"
            outcome = child.call("zoo:write", 900.0, name=name, kind="random", path=str(file))
            if outcome.error:
                sys.exit(f"gpu.py: {name} cannot be exported: {outcome.error}")
            sources = [*sources, file]
    found = {source.stem: _model(source, folder, options) for source in sources}
    if options.prepare:
        return
    limit = _hardware_limit()
    table.say(limit["text"])
    text = f"# On a GPU\n\n{device['name']}, {options.backend} {device['version']}\n\n{_page(found)}\n\n{limit['text']}"
    data = {"device": device, "models": found, "semi_structured": limit, "state": _state()}
    table.publish(f"gpu-{options.backend}", text, data, about, options.results)


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


def _state() -> dict[str, Any]:
    """Clocks, power and temperature of the moment, or why they are not known."""
    from runtime.gpu_state import read_state

    state, missing = read_state()
    return vars(state) if state is not None else {"missing": missing}


def variants(source: Path, folder: Path, engines: bool) -> dict[str, Path]:
    """The smaller files of a model, made where they are not there yet; no GPU is needed.

    Args:
        source: the fp32 file.
        folder: where to write; files are named after the source's content.
        engines: those that engines are built from too, else what ONNX Runtime is to run.
    """
    from exporter import prune, sparsify
    from exporter.precision.converting import convert_precision

    stem = f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}"

    def made(what: str, make: Callable[[Path], object]) -> Path:
        target = folder / f"{stem}-{what}.onnx"
        if not target.is_file():
            make(target)
        return target

    files = {"dense": source, "dense again": source}
    files["pruned"] = made("pruned", lambda to: prune(source, to, macs=0.5, align=16))
    for what in ("dense", "pruned"):
        file = files[what]
        if engines:
            files[f"{what} 2:4"] = made(f"{what}-24", lambda to, file=file: sparsify(file, to, pattern="2:4"))
        files[f"{what} fp16"] = made(
            f"{what}-fp16", lambda to, file=file: convert_precision(file, to, "fp16", keep_io=True)
        )
    return files


def _model(source: Path, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    engines = options.backend != CUDA
    files = variants(source, folder, engines)
    if options.prepare:
        return {}
    rows = _engines(files, folder, options) if engines else {}
    for batch in map(int, options.batch.split(",")):
        found = _sessions(files, batch, options)
        for what, row in found.items():
            table.say(f"{source.stem}, {what}: {row}")
        rows |= found
    return rows


def _engines(files: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every variant as an engine."""
    rows: dict[str, dict[str, Any]] = {}
    single = {what: file for what, file in files.items() if "fp16" not in what}
    for precision in ("fp32", "fp16"):
        for what, file in single.items():
            rows[f"{what}, {precision}"] = _timed(file, folder, precision, "2:4" in what, options)
            table.say(f"{file.stem}, {what}, {precision}: {rows[f'{what}, {precision}']}")
    for what in ("dense", "pruned"):
        rows[f"{what}, int8"] = _int8(files[what], folder, options)
        table.say(f"{files[what].stem}, {what}, int8: {rows[f'{what}, int8']}")
    return rows


def quantized(file: Path, folder: Path, calib: str) -> Path:
    """The file in int8 as TensorRT takes it: symmetric, QuantizeLinear and DequantizeLinear around every layer.

    Args:
        file: an fp32 ONNX file.
        folder: where to write.
        calib: inputs as ``exporter.prune`` takes them; ``synthetic`` makes some up, which is enough for times.
    """
    from exporter.quantization.quantizer import quantize

    target = folder / f"{file.stem}-int8.onnx"
    quantize(file, target, precision="int8", profile="tensorrt", calib=calib, calib_samples=64)
    return target


def _int8(file: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from exporter.errors import SecateurError

    try:
        made = quantized(file, folder, options.calib)
    except SecateurError as error:
        return {"error": f"not quantized: {error}"}
    return _timed(made, folder, "int8", False, options, against=file)


def _timed(
    file: Path, folder: Path, precision: str, sparse: bool, options: argparse.Namespace, against: Path | None = None
) -> dict[str, Any]:
    from exporter.engines.maker import make_engine
    from exporter.errors import SecateurError
    from runtime.backends import SessionOptions, open_session
    from runtime.engine.options import BuildOptions
    from runtime.engine.timing import time_engine
    from runtime.errors import RunError
    from runtime.runners import prepare

    target = folder / f"{file.stem}-{precision}.engine"
    before = _state()
    try:
        made = make_engine(file, target, options.backend, precision, BuildOptions(sparse=sparse))
        asked = Asked(options.backend, SessionOptions(capture=options.capture), batch=None)
        runner = prepare(target, asked)
        want = open_session(against or file).run(runner.feeds[0])
        got = runner.session.run(runner.feeds[0])
        timing = time_engine(runner.session, runner.feeds[0], options.seconds)
    except (RunError, SecateurError) as error:
        return {"error": str(error)}
    layers = made.layers or ()
    fallbacks = [f"{f.operator} '{f.node}': {f.reason}" for f in made.built.fallbacks]
    return {
        "device_ms": 1e3 * float(np.median(timing.device)),
        "host_ms": 1e3 * float(np.median(timing.host)),
        "rate": timing.rate,
        "shapes": {n: list(s) for n, s in runner.shapes.items()},
        "error_of_outputs": max(float(np.abs(got[n] - w).max() / (w.std() or 1)) for n, w in want.items()),
        "sparse_layers": sum(layer.sparse for layer in layers),
        "sparsity": vars(made.built.sparsity) if made.built.sparsity else None,
        "float_layers": fallbacks,
        "bytes": len(made.built.engine),
        "build_seconds": made.built.seconds,
        "before": before,
        "after": _state(),
    }


def _sessions(files: dict[str, Path], batch: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Dense twice and pruned, in fp32 and fp16, with ONNX Runtime's CUDA provider: in turn in one session, so that the
    ratios are of pairs."""
    from runtime.backends import SessionOptions
    from runtime.errors import RunError
    from runtime.latency import bench
    from runtime.robust import ratio_of

    named = {what: file for what, file in files.items() if "2:4" not in what}
    shapes = _LENGTHS.get(files["dense"].stem)
    asked = Asked(CUDA, SessionOptions(capture=options.capture), shapes, batch)
    suffix = f"{CUDA}, batch {batch}{', captured' if options.capture else ''}"
    try:
        found = bench(
            list(named.values()), CUDA, seconds=options.seconds, shapes=shapes, batch=batch, options=asked.options
        )
    except RunError as error:
        return {suffix: {"error": str(error)}}
    rows = {}
    for (what, file), latency in zip(named.items(), found, strict=True):
        ratio = ratio_of([np.log(latency.samples / found[0].samples)])
        rows[f"{what}, {suffix}"] = {
            "host_ms": 1e3 * latency.median,
            "rate": latency.throughput,
            "ratio": [ratio.value, ratio.low, ratio.high],
            "shapes": {n: list(s) for n, s in latency.shapes.items()},
            "error_of_outputs": _apart(file, files[what.partition(" ")[0]], asked),
            "after": vars(latency.gpu.after) if latency.gpu and latency.gpu.after else None,
        }
    return rows


def _apart(file: Path, reference: Path, asked: Asked) -> float:
    """Largest difference of an output on the GPU from the reference on the CPU, in standard deviations of it."""
    from runtime.backends import open_session
    from runtime.runners import prepare

    runner = prepare(file, asked)
    want = open_session(reference).run(runner.feeds[0])
    got = runner.session.run(runner.feeds[0])
    return max(float(np.abs(got[n] - w).max() / (w.std() or 1)) for n, w in want.items())


def _hardware_limit() -> dict[str, Any]:
    """A dense and a 2:4 matrix product of torch, fp16, 4096 x 4096, by both libraries it has for that and with the
    right side stored either way: milliseconds by CUDA events."""
    try:
        import torch
        from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
    except ImportError:
        return {"text": "torch is not installed: its semi-structured product was not measured."}
    if not torch.cuda.is_available():
        return {"text": "torch sees no GPU: its semi-structured product was not measured."}
    torch.manual_seed(0)
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    weight.view(-1, 4)[:, 2:] = 0
    right = {"by rows": torch.randn(4096, 4096, device="cuda", dtype=torch.float16)}
    right["by columns"] = right["by rows"].t().contiguous().t()
    kinds = {
        "dense": lambda: weight,
        "2:4 by cuSPARSELt": lambda: SparseSemiStructuredTensorCUSPARSELT.from_dense(weight),
        "2:4 by CUTLASS": lambda: SparseSemiStructuredTensorCUTLASS.from_dense(weight),
    }
    found: dict[str, Any] = {}
    for name, make in kinds.items():
        for stored, x in right.items():
            try:
                found[f"{name}, {stored}"] = _product_ms(make(), x)
            except RuntimeError as error:  # a library that is not in this torch, or not for this GPU
                found[f"{name}, {stored}"] = str(error).splitlines()[0][:80]
    shown = ", ".join(f"{k}: {v:.3f} ms" if isinstance(v, float) else f"{k}: {v}" for k, v in found.items())
    return {**found, "text": f"torch {torch.__version__}, 4096 x 4096 in fp16, {shown}."}


def _product_ms(matrix: Any, x: Any) -> float:
    import torch

    taken = []
    for k in range(60):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        torch.mm(matrix, x)
        last.record()
        torch.cuda.synchronize()
        taken += [first.elapsed_time(last)] if k >= 10 else []
    return float(np.median(taken))


_NUMBERS = ("device_ms", "host_ms", "rate", "sparse_layers", "error_of_outputs")
_COLUMNS = ("device_ms", "host_ms", "rate", "ratio", "sparse_layers", "error_of_outputs")


def _page(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    head = ["device ms", "host ms", "per second", "of dense", "sparse layers", "outputs differ by", "MHz, W, C"]
    rows = [["model", "variant", *head]]
    for name, variants in found.items():
        for what, row in variants.items():
            if "error" in row:
                rows.append([name, what, row["error"].splitlines()[0][:80].replace("|", "/"), *[""] * 6])
                continue
            shown = {k: "" if row.get(k) is None else f"{row[k]:.3g}" for k in _NUMBERS}
            shown["ratio"] = "{:.3f} ({:.3f} .. {:.3f})".format(*row["ratio"]) if "ratio" in row else ""
            rows.append([name, what, *(shown[k] for k in _COLUMNS), _shown(row.get("after"))])
    return table.markdown(rows, right=(2, 3, 4, 5, 6, 7))


def _shown(state: dict[str, Any] | None) -> str:
    """Clock, power and temperature after a measurement."""
    if state is None or "missing" in state:
        return ""
    return ", ".join("?" if state[k] is None else f"{state[k]:.0f}" for k in ("clock", "power", "temperature"))


if __name__ == "__main__":
    main()
