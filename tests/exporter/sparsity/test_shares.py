"""A share of zeros with calibration inputs: it is met wherever the weights are, to the element."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.model_file import load
from exporter.sparsity.sparsifier import sparsify
from tests.onnx_builder import build, node, weights


def depthwise():
    """Nine weights in each group: no share of them is a whole number."""
    nodes = [node("Conv", "x w", "d", group=16, pads=[1] * 4), node("Relu", "d", "r"), node("Conv", "r v", "y")]
    return build(nodes, {"x": ["N", 16, 6, 6]}, ["y"], weights(w=(16, 1, 3, 3), v=(8, 16, 1, 1)))


def grouped():
    nodes = [node("Conv", "x w", "d", group=8), node("Relu", "d", "r"), node("ConvTranspose", "r v", "y", group=8)]
    return build(nodes, {"x": ["N", 16, 6, 6]}, ["y"], weights(w=(24, 2, 1, 3), v=(24, 1, 1, 3)))


def switched_off(group=1):
    """Channels that their BatchNormalization lets nothing of through."""
    constants = weights(w=(16, 16 // group, 3, 3), v=(4, 16, 1, 1), beta=(16,)) | {"gamma": np.ones(16, np.float32)}
    constants |= {"mean": np.zeros(16, np.float32), "var": np.full(16, 100, np.float32)}
    constants["gamma"][:5] = 0
    nodes = [
        node("Conv", "x w", "h", group=group, pads=[1] * 4), node("BatchNormalization", "h gamma beta mean var", "n"),
        node("Relu", "n", "r"), node("Conv", "r v", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 16, 6, 6]}, ["y"], constants)


MODELS = {
    "depthwise": depthwise,
    "grouped": grouped,
    "switched off": switched_off,
    "switched off, depthwise": lambda: switched_off(16),
}


@pytest.mark.parametrize("how", [{}, {"method": "wanda"}, {"refit": False}, {"schedule": "cubic"}], ids=str)
@pytest.mark.parametrize("share", ["0.1", "0.5", "0.9"])
@pytest.mark.parametrize("name", MODELS)
def test_the_share_is_met(name, share, how, tmp_path):
    onnx.save(MODELS[name](), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((64, 16, 6, 6)).astype(np.float32))
    result = sparsify(tmp_path / "m.onnx", tmp_path / "out.onnx", pattern=share, calib=tmp_path / "x.npz", **how)
    assert {layer.weight.name for layer in result.layers} == {"w", "v"}
    graph = load(tmp_path / "out.onnx")
    for constant in ("w", "v"):
        values = graph.array(constant)
        assert np.count_nonzero(values == 0) == round(float(share) * values.size), constant
    old = load(tmp_path / "m.onnx").array("w")
    if name.startswith("switched"):
        assert np.isin(graph.array("w")[:5], [0, *old[:5].ravel()]).all()
