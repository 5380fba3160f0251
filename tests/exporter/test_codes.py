"""Scores of quantized models: magnitudes are of the numbers that codes stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import find_groups, load, score
from exporter.codes import numbers_of
from tests.exporter.test_quantised import KINDS, NETWORKS, quantized
from tests.onnx_builder import build, node, weights

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_the_float_model(name, kind, tmp_path):
    """Codes of a bias are thousands, those of a weight a hundred, an unsigned one is shifted by 128."""
    path = quantized(tmp_path, name, kind)
    wanted, found = (score(find_groups(load(p))) for p in (tmp_path / "float.onnx", path))
    assert list(wanted) == list(found)
    assert len(wanted) > 2
    for want, got in zip(wanted.values(), found.values(), strict=True):
        assert np.corrcoef(want, got)[0, 1] > 0.98 or want.std() < 0.02 * want.mean()
        assert abs(got.mean() / want.mean() - 1) < 0.05


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "scales", "trailing"),
    [
        ("MatMulNBits", {"K": 32, "N": 6, "bits": 4, "block_size": 16}, (6, 2, 8), (6, 2), 2),
        ("MatMulNBits", {"K": 32, "N": 6, "bits": 8, "block_size": 16}, (6, 2, 16), (6, 2), 1),
    ],
)
def test_packed_weights(op, attributes, shape, scales, trailing, tmp_path):
    """The numbers are those that the operator multiplies with."""
    constants = {
        "c": RNG.integers(0, 256, shape).astype(np.uint8),
        "s": RNG.uniform(0.1, 0.9, scales).astype(np.float32),
    }
    constants |= {"unit": np.eye(32, dtype=np.float32), **weights(w=(6, 3))}
    nodes = [
        node(f"com.microsoft::{op}", "unit c s", "h", **attributes),
        node("MatMul", "x h", "g"),
        node("MatMul", "g w", "y"),
    ]
    model = build(nodes, {"x": ["N", 32]}, ["y", "h"], constants)
    onnx.save(model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    numbers = numbers_of(graph, "c")
    assert numbers.shape == (*shape, trailing)
    want = run(model, {"x": np.zeros((1, 32), np.float32)})["h"]
    np.testing.assert_allclose(numbers.reshape(6, 32).T, want, atol=1e-4)


def test_blocks_and_zero_points(tmp_path):
    codes, zeros = RNG.integers(0, 99, (8, 6)).astype(np.uint8), RNG.integers(0, 99, (2, 6)).astype(np.uint8)
    scales = RNG.uniform(0.1, 0.9, (2, 6)).astype(np.float32)
    nodes = [
        node("DequantizeLinear", "c s z", "w", axis=0, block_size=4),
        node("MatMul", "x w", "h"),
        node("MatMul", "h v", "y"),
    ]
    model = build(nodes, {"x": ["N", 8]}, ["y", "w"], {"c": codes, "s": scales, "z": zeros, **weights(v=(6, 3))})
    onnx.save(model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    np.testing.assert_allclose(numbers_of(graph, "c"), run(model, {"x": np.zeros((1, 8), np.float32)})["w"], rtol=1e-5)
    assert numbers_of(graph, "s") is None
    assert numbers_of(graph, "z") is None
    assert numbers_of(graph, "v").shape == (6, 3)


def run(model, feed):
    from tests.exporter.files import run as run_file

    return run_file(model.SerializeToString(), feed)
