"""Pruned, made sparse, converted or quantized by others: the pattern holds in what comes out, and the outputs live."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exporter import load
from exporter.cli import main
from exporter.groups import find_groups
from exporter.sparsity.check import check_file
from exporter.sparsity.patterns import parse_pattern

MODELS = Path(__file__).parents[3] / "models"
DATA = f"{MODELS / 'digits.npz'}:train"
NETWORKS = {"digits_cnn": "conv", "digits_vit": "product"}


@pytest.fixture(scope="module", params=NETWORKS)
def sparse(request, tmp_path_factory):
    """A network pruned to half of its work, aligned for sparse kernels, and then made 2:4."""
    folder = tmp_path_factory.mktemp(request.param)
    pruned, sparse = folder / "pruned.onnx", folder / "sparse.onnx"
    calib = ["--calib", DATA, "--calib-samples", "64", "-q"]
    source = str(MODELS / f"{request.param}.onnx")
    assert (
        main(["prune", source, "-o", str(pruned), "--macs", "0.6", "--score", "l2", "--align", "sparse", *calib]) == 0
    )
    assert main(["sparsify", str(pruned), "-o", str(sparse), *calib]) == 0
    return sparse


def accuracy(path):
    data = np.load(MODELS / "digits.npz")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    inputs = data["x_test"].astype(np.float16 if "float16" in given.type else np.float32)
    (scores,) = session.run(["logits"], {given.name: inputs})
    return float((scores.argmax(-1) == data["y_test"]).mean())


def to_fp16(source, target):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source)), target)


class Reader:
    """Calibration inputs as onnxruntime.quantization wants them."""

    def __init__(self, name):
        self.rows = iter([{name: np.load(MODELS / "digits.npz")["x_train"][:64].astype(np.float32)}])

    def get_next(self):
        return next(self.rows, None)


def to_qdq(weight_type):
    def convert(source, target):
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        reader = Reader(onnx.load(source).graph.input[0].name)
        kind = {"QInt8": QuantType.QInt8, "QUInt8": QuantType.QUInt8}[weight_type]
        quantize_static(
            source, target, reader, quant_format=QuantFormat.QDQ, weight_type=kind, activation_type=kind,
            per_channel=weight_type == "QInt8",
        )  # fmt: skip

    return convert


def to_integers(source, target):
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # it transposes weights, and trips over what is said of them there
    quantize_dynamic(model, target)


CONVERSIONS = {"fp16": to_fp16, "qdq": to_qdq("QInt8"), "qdq-zero-point": to_qdq("QUInt8"), "integers": to_integers}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_the_pattern_survives_what_others_do(tmp_path, sparse, convert):
    target = tmp_path / "converted.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        convert(str(sparse), str(target))
    assert main(["verify", str(target), "--pattern", "2:4"]) == 0
    rows = [check_file(p, parse_pattern("2:4")) for p in (sparse, target)]
    looked = [sum(r.runs > 0 for r in each) for each in rows]
    assert looked[1] == looked[0] >= 4  # no layer was lost from sight
    assert accuracy(target) > accuracy(sparse) - 0.03
    assert accuracy(sparse) > 0.9


def test_widths_stay_aligned(sparse):
    """Every width that was a multiple of 16 or 4 still is."""
    name = sparse.parent.name.rstrip("0123456789")
    before, after = (load(p) for p in (MODELS / f"{name}.onnx", sparse))
    assert {g.width for g in find_groups(after)} != {g.width for g in find_groups(before)}
    for weight, tensor in before.constants.items():
        if len(tensor.dims) < 2 or weight not in after.constants:
            continue
        for old, new in zip(tensor.dims, after.constants[weight].dims, strict=True):
            for step in (4, 16):
                assert old % step or new % step == 0, (weight, list(tensor.dims), list(after.constants[weight].dims))
