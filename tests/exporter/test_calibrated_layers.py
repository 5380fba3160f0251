"""Residual blocks are ranked on calibration inputs: the one that these do not use goes."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import prune
from tests.exporter.files import write
from tests.onnx_builder import build, node, weights

SIZE, HIDDEN = 6, 12


def two_moods():
    """Two blocks: one answers where the first feature is above zero, the other where it is below."""
    constants = weights(w=(SIZE, 4)) | {"same": np.eye(SIZE, dtype=np.float32)}
    for sign, k in ((1, 1), (-1, 2)):
        up = np.zeros((SIZE, HIDDEN), np.float32)
        up[0] = sign
        constants[f"up{k}"] = up
        down = np.random.default_rng(k).standard_normal((HIDDEN, SIZE)).astype(np.float32)
        down[:, 0] = 0
        constants[f"down{k}"] = down
    nodes = [
        node("MatMul", "x same", "s0"),
        node("MatMul", "s0 up1", "h1"), node("Relu", "h1", "a1"), node("MatMul", "a1 down1", "f1"),
        node("Add", "s0 f1", "s1"),
        node("MatMul", "s1 up2", "h2"), node("Relu", "h2", "a2"), node("MatMul", "a2 down2", "f2"),
        node("Add", "s1 f2", "s2"), node("MatMul", "s2 w", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", SIZE]}, ["y"], constants)


def inputs(sign, count=96):
    x = np.random.default_rng(0).standard_normal((count, SIZE)).astype(np.float32)
    x[:, 0] = sign * (1 + np.abs(x[:, 0]))
    return x


@pytest.mark.parametrize(("sign", "gone"), [(1, "s2"), (-1, "s1")])
@pytest.mark.parametrize(
    "options", [{"layers": 1}, {"granularity": ["layers"], "macs": 0.7}, {"layers": 1, "macs": 0.4, "align": 1}],
    ids=["layers", "macs", "both"],
)  # fmt: skip
def test_the_block_that_the_inputs_do_not_use_goes(sign, gone, options, tmp_path):
    np.savez(tmp_path / "data.npz", x=inputs(sign))
    np.savez(tmp_path / "other.npz", x=inputs(-sign))
    model = write(two_moods(), tmp_path)
    result = prune(model, tmp_path / "out.onnx", calib=tmp_path / "data.npz", inputs=tmp_path / "other.npz", **options)
    assert [d.node for d in result.plan.drop] == [gone]
    assert result.fidelity is not None
    if "align" not in options:
        assert result.fidelity.plain < 1e-9


def test_magnitude_needs_no_inputs(tmp_path):
    np.savez(tmp_path / "data.npz", x=inputs(1))
    model = write(two_moods(), tmp_path)
    plans = [
        prune(model, tmp_path / "out.onnx", layers=1, layer_score="magnitude", calib=calib).plan.drop
        for calib in (None, tmp_path / "data.npz")
    ]
    assert plans[0] == plans[1]
