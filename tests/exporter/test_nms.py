"""Detectors that end in NonMaxSuppression: scores say how many boxes there are, so outputs of two models differ."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import load, prune
from exporter.calibration.outputs import compared
from exporter.cli import main
from tests.onnx_builder import build, ints, node, weights

ANCHORS = 36


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a detector, and inputs."""
    folder = tmp_path_factory.mktemp("nms")
    constants = weights(
        w=(24, 3, 3, 3), b=(24,), corners=(4, 24, 1, 1), classes=(3, 24, 1, 1),
    )  # fmt: skip
    rows, columns = (v.reshape(-1) for v in np.meshgrid(*2 * [np.arange(6, dtype=np.float32)], indexing="ij"))
    constants |= {
        "grid": np.stack([rows, columns, rows, columns])[None], "flat": ints(0, 0, -1), "lean": np.float32(0.1),
        "most": ints(30), "iou": np.array([0.5], np.float32), "least": np.array([0.6], np.float32),
        "two": ints(2), "three": ints(3), "one": ints(1),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w b", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "h"),
        node("Conv", "h corners", "c"), node("Reshape", "c flat", "r"), node("Mul", "r lean", "m"),
        node("Add", "m grid", "d"), node("Transpose", "d", "all", perm=[0, 2, 1]),
        node("Conv", "h classes", "s"), node("Reshape", "s flat", "q"), node("Sigmoid", "q", "scores"),
        node("NonMaxSuppression", "all scores most iou least", "kept", center_point_box=1),
        node("Slice", "kept two three one", "columns"), node("Squeeze", "columns one", "rows"),
        node("Gather", "all rows", "boxes", axis=1),
    ]  # fmt: skip
    model = build(nodes, {"x": [1, 3, 6, 6]}, ["boxes", "kept"], constants, kinds={"kept": "i"})
    onnx.save(model, folder / "m.onnx")
    images = np.random.default_rng(0).standard_normal((48, 1, 3, 6, 6)).astype(np.float32)
    np.savez(folder / "d.npz", x=images)
    return folder


def test_it_is_calibrated_by_its_boxes_and_scores(place, tmp_path):
    assert compared(load(place / "m.onnx")) == {"d": 0.5, "scores": 0.5}
    found = prune(place / "m.onnx", tmp_path / "o.onnx", macs=0.6, calib=place / "d.npz", align=1)
    assert found.fidelity is not None
    assert 0 < found.fidelity.error <= found.fidelity.plain < 10


def test_it_is_made_sparse_and_quantized(place, tmp_path, capsys):
    data = ["--calib", str(place / "d.npz")]
    assert main(["sparsify", str(place / "m.onnx"), "-o", str(tmp_path / "s.onnx"), "--also", "*", *data]) == 0
    assert "output error" in capsys.readouterr().out
    arguments = ["quantize", str(place / "m.onnx"), "-o", str(tmp_path / "q.onnx"), "--precision", "int8", *data]
    assert main([*arguments, "--seconds", "0.1"]) == 0
    told = "".join(capsys.readouterr())
    assert "what this costs is not known: the outputs differ in shape" in told
    assert main([*arguments, "--metric", "cosine"]) == 2
    assert "the outputs differ in shape" in capsys.readouterr().err
