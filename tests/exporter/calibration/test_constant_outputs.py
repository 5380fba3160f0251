"""Outputs that do not vary: what becomes of them counts all the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.calibration.sensitivity import Deviation
from exporter.sparsity.sparsifier import sparsify
from tests.onnx_builder import build, node, weights


def of(got, want, batches=4):
    found = Deviation({"y": 1.0})
    for _ in range(batches):
        found.add({"y": np.asarray(got, np.float32)}, {"y": np.asarray(want, np.float32)})
    return found.value


@pytest.mark.parametrize("want", [0.0, 3.7, 1e-8, -2e7])
def test_what_stays_is_no_error(want):
    assert of(np.full(1000, want), np.full(1000, want)) == 0


def test_the_error_is_relative_to_what_is_there():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000)
    assert of(values + 2, values) == pytest.approx(4 / values.var(), rel=1e-4)
    assert of(np.full(1000, 3.7 * 1.1), np.full(1000, 3.7)) == pytest.approx(0.01, rel=1e-4)
    assert of(np.full(1000, 0.3), np.zeros(1000)) == pytest.approx(0.09, rel=1e-4)


def test_a_limit_holds_for_an_output_that_is_silent_on_all_samples(tmp_path):
    """It is 0 for all of them, and would not be without the weights that hold it down."""
    constants = weights(a=(32, 64), b=(64,), c=(64, 4)) | {"d": np.full(4, 0.5, np.float32)}
    constants["c"] = -np.abs(constants["c"])
    nodes = [node("Gemm", "x a b", "h"), node("Relu", "h", "r"), node("Gemm", "r c d", "o"), node("Relu", "o", "y")]
    onnx.save(build(nodes, {"x": ["N", 32]}, ["y"], constants), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).standard_normal((128, 32)).astype(np.float32))
    result = sparsify(
        tmp_path / "m.onnx", tmp_path / "out.onnx", pattern="0.98", calib=str(tmp_path / "data.npz"), max_drop=1e-3,
        refit=False,
    )  # fmt: skip
    assert result.held.plain > 1e-3 >= result.held.error
    assert result.left
