"""What fewer bits cost trained networks: rounded to the nearest, fitted, and by onnxruntime's own tool for four bits.

    python benchmarks/quantization.py --data DIR [--networks resnet20,...] [--precisions int8,...]

Networks are calibrated with up to 128 inputs and judged on others. Of YOLOX-nano, DIR holds eight photos: five of them,
cut out and mirrored in 16 ways each, calibrate; the other three, in 16 ways each, judge.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accuracy_data
import numpy as np
import table
from language_model import _nats
from numpy.typing import NDArray
from tuning import command

Row = dict[str, Any]
Array = NDArray[Any]

NETWORKS = ("resnet20", "resnet56", "mobilenet_v2", "magika", "llama", "yolox")
YOLOX = "onnx/yolox_nano.onnx"
PRECISIONS = ("int8", "int8-dynamic", "fp8", "int8-weight", "int4-weight")
MATRICES = ("magika", "llama")
FOR_MATRICES = ("int8-dynamic", "int4-weight")
"""Precisions that convolutions do not have."""
HOW = {"to the nearest": ["--no-fit"], "**fitted**": []}
LIMIT = ["--max-drop", "5%"]
SAMPLES = 128
WAYS, TOGETHER = 16, 32
CALIBRATING = 5
"""Photos that calibrate; the others judge."""
DYNAMIC = "dynamic, a scale for each channel"
OTHERS = {"int8-dynamic": [DYNAMIC], "int4-weight": ["RTN, symmetric", "RTN, with zero points", "HQQ"]}

HEAD = """# Fewer bits

Accuracy on test inputs (Llama: nats per token; YOLOX: boxes and scores have no labels), error of the outputs there as a
share of their variance, size of the file and CPU seconds of the command. "To the nearest" is `--no-fit`: for int8 what
onnxruntime.quantization makes (minmax, QDQ, a scale for each channel), but ranges end where what reads a tensor is flat
(narrowing.py). int8-dynamic rounds what a product of matrices reads by its range in each run. fp8 is for TensorRT and
was judged in ONNX Runtime, which computes it in float. int4 has blocks of 32.
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of them")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="some of them")
    parser.add_argument("--results", type=Path, default=table.RESULTS, metavar="DIR")
    options = parser.parse_args()
    about = table.environment()
    with tempfile.TemporaryDirectory() as scratch:
        networks = options.networks.split(",")
        rows = table.told((row for name in networks for row in _measured(name, options, Path(scratch))), _cells)
    head = ["network", "precision", "how", "accuracy", "output error", "size", "CPU s"]
    page = HEAD + "\n" + table.markdown([head, *map(_cells, rows)], right=(3, 4, 5, 6))
    table.publish("quantization", page + "\n", {"rows": rows}, about, options.results)


def _cells(row: Row) -> list[str]:
    error = row["error"] if isinstance(row["error"], list) else [row["error"]]
    shown = "; ".join("-" if e is None else f"{e:.2g}" for e in error)
    spent = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
    return [row["network"], row["precision"], row["how"], row["accuracy"], shown, table.share(row["size"]), spent]


def _measured(name: str, options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Rows of one network."""
    if name == "yolox":
        title, model, calib, test = "YOLOX-nano: boxes; scores", options.data / YOLOX, *_photos(options.data)
    else:
        network = accuracy_data.NETWORKS[name]
        title, model = network.title, network.path(options.data)
        (calib,) = accuracy_data.calibration(name, options.data, SAMPLES, 0)
        test = accuracy_data.test(name, options.data)
    data, out = folder / f"{name}.npz", folder / f"{name}.out.onnx"
    np.savez(data, **{key: values[:, None] if name == "yolox" else values for key, values in calib.items()})
    dense = model.stat().st_size
    yield {
        "network": title,
        "precision": "float",
        "how": "",
        "size": None,
        "seconds": None,
        **_judged(model, model, test),
    }
    for precision in options.precisions.split(","):
        if precision in FOR_MATRICES and name not in MATRICES:
            continue
        kinds = dict(HOW)
        if (name, precision) == ("yolox", "int8"):
            kinds["fitted, " + " ".join(LIMIT)] = LIMIT
        for how, extra in kinds.items():
            profile = ["--profile", "tensorrt"] if precision == "fp8" else []
            seconds, report = _quantized(model, out, data, ["--precision", precision, *profile, *extra])
            layers = report["layers"]
            left = sum(not layer["quantized"] for layer in layers)
            how += f": {left} of {len(layers)} layers in float" if extra == LIMIT else ""
            yield {"network": title, "precision": precision, "how": how, "size": out.stat().st_size / dense,
                   "seconds": seconds, **_judged(out, model, test)}  # fmt: skip
        if precision in FOR_MATRICES and name == "llama":
            for how in OTHERS[precision]:
                _by_onnxruntime(model, out, how)
                yield {"network": title, "precision": precision, "how": "onnxruntime, " + how,
                       "size": out.stat().st_size / dense, "seconds": None, **_judged(out, model, test)}  # fmt: skip


def _quantized(model: Path, out: Path, data: Path, extra: list[str]) -> tuple[float, Row]:
    """CPU seconds, and the report."""
    told = out.with_suffix(".json")
    line = ["quantize", str(model), "-o", str(out), "--calib", str(data), "--seconds", "0", "--json", str(told)]
    return command(*line, *extra).cpu, json.loads(told.read_text())


def _judged(model: Path, original: Path, test: dict[str, Array]) -> Row:
    """Accuracy and output error on the test inputs."""
    labels = test.get(accuracy_data.LABELS)
    feeds = {key: values for key, values in test.items() if key != accuracy_data.LABELS}
    got, want = (_answers(path, feeds) for path in (model, original))
    if original.name == Path(YOLOX).name:
        parts = [slice(4), slice(4, None)]
        return {"accuracy": "-", "error": [_error(got[..., part], want[..., part]) for part in parts]}
    if labels is None:
        (tokens,) = feeds.values()
        return {"accuracy": f"{_nats(got[:, :-1], tokens[:, 1:]):.3f}", "error": _error(got, want)}
    right = 100 * float((got.reshape(len(labels), -1).argmax(-1) == labels).mean())
    return {"accuracy": f"{right:.1f}", "error": _error(got, want)}


def _answers(path: Path, feeds: dict[str, Array]) -> Array:
    """The first output for each sample."""
    from runtime.backends import open_session

    session = open_session(path)
    ((name, values),) = feeds.items()
    step = 1 if session.inputs[0].shape[0] == 1 else TOGETHER
    parts = [session.run({name: values[i : i + step]}) for i in range(0, len(values), step)]
    return np.concatenate([next(iter(part.values())) for part in parts])


def _error(got: Array, want: Array) -> float:
    return float(np.square(got.astype(np.float64) - want).mean() / want.astype(np.float64).var())


def _by_onnxruntime(model: Path, out: Path, how: str) -> None:
    """The same by onnxruntime's own tools; four bits by its MatMulNBits quantizer, in the same blocks."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    if how == DYNAMIC:
        quantize_dynamic(onnx.load(model), out, per_channel=True, weight_type=QuantType.QInt8)
        return
    kinds = {
        "RTN, symmetric": lambda: tool.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=4),
        "RTN, with zero points": lambda: tool.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=4),
        "HQQ": lambda: tool.HQQWeightOnlyQuantConfig(block_size=32, bits=4),
    }
    logging.disable(logging.INFO)  # it tells of every node
    made = tool.MatMulNBitsQuantizer(onnx.load(model), algo_config=kinds[how]())
    made.process()
    made.model.save_model_to_file(str(out))


def _photos(folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Parts of the photos for YOLOX, blown up and mirrored: those that calibrate, and those that judge."""
    photos = np.load(folder / "inputs/yolox_nano.npz")["images"][:, 0]
    rng = np.random.default_rng(0)

    def some(photo: Array) -> Iterator[Array]:
        for _ in range(WAYS):
            size = photo.shape[-1]
            side = int(rng.integers(size // 2, size + 1))
            top, left = rng.integers(0, size - side + 1, 2)
            at = np.arange(size) * side // size
            part = photo[:, top + at][:, :, left + at]
            yield part[:, :, ::-1] if rng.random() < 0.5 else part

    each = [np.stack(list(some(photo))).astype(np.float32) for photo in photos]
    return {"images": np.concatenate(each[:CALIBRATING])}, {"images": np.concatenate(each[CALIBRATING:])}


if __name__ == "__main__":
    main()
