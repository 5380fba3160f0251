"""Why layers behind a cut kept their weights."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import prune
from exporter.report import prune_text
from tests.exporter.files import branch, choose, write
from tests.exporter.trained import files
from tests.onnx_builder import build, ints, node, weights


def feeds(*shape):
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((4, *shape)).astype(np.float32)} for _ in range(24)]


def shared():
    nodes = [
        node("MatMul", "x w0", "h"), node("Relu", "h", "a"), node("MatMul", "a w", "b"), node("Relu", "b", "c"),
        node("MatMul", "c w", "d"), node("MatMul", "d w3", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 6]}, ["y"], weights(w0=(6, 16), w=(16, 16), w3=(16, 3)))


def quantised():
    codes = np.random.default_rng(0).integers(-90, 90, (16, 5)).astype(np.int8)
    nodes = [
        node("MatMul", "x w0", "h"), node("Relu", "h", "a"), node("DequantizeLinear", "q s z", "w"),
        node("MatMul", "a w", "b"), node("Relu", "b", "c"), node("MatMul", "c w3", "y"),
    ]  # fmt: skip
    constants = weights(w0=(6, 16), w3=(5, 3)) | {"q": codes, "s": np.float32(0.01), "z": np.int8(0)}
    return build(nodes, {"x": ["N", 6]}, ["y"], constants)


def inside():
    then = branch("then", [node("MatMul", "a w1", "t")], "t")
    other = branch("other", [node("MatMul", "a w2", "o")], "o")
    nodes = [
        node("MatMul", "x w0", "h"), node("Relu", "h", "a"), node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "c"), choose("c", "b", then, other), node("MatMul", "b w3", "y"),
    ]  # fmt: skip
    constants = weights(w0=(6, 16), w1=(16, 5), w2=(16, 5), w3=(5, 3)) | {"zero": np.float32(0)}
    return build(nodes, {"x": ["N", 6]}, ["y"], constants)


def from_the_left():
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "t w0", "h"),
        node("Transpose", "h", "a", perm=[0, 2, 1]), node("MatMul", "w1 a", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 6, 4]}, ["y"], weights(w0=(6, 16), w1=(3, 16)))


def recurrent():
    nodes = [node("MatMul", "x w0", "h"), node("LSTM", "h w r", "l", hidden_size=8), node("Squeeze", "l one", "s"),
             node("MatMul", "s w3", "y")]  # fmt: skip
    constants = weights(w0=(6, 16), w=(1, 32, 16), r=(1, 32, 8), w3=(8, 3)) | {"one": ints(1)}
    return build(nodes, {"x": ["S", "N", 6]}, ["y"], constants)


SHARED, INSIDE = "its weight is shared by 2 nodes", "inside a subgraph (If, Loop or Scan)"
CASES = [
    ("shared", shared, (6,), {"node_b": SHARED, "node_d": SHARED}),
    ("quantised", quantised, (6,), {"node_b": "its weight is quantized"}),
    ("inside", inside, (6,), {"node_t": INSIDE, "node_o": INSIDE}),
    ("left", from_the_left, (6, 4), {"node_y": "its weight multiplies from the left"}),
    ("recurrent", recurrent, (4, 6), {"node_l": "a recurrent layer"}),
]


@pytest.mark.parametrize(("make", "shape", "reasons"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_reasons(make, shape, reasons, tmp_path):
    result = prune(
        write(make(), tmp_path), tmp_path / "out.onnx", ratio=0.5, align=1, score="l2", scope="local", only=["w0"],
        calib=feeds(*shape),
    )  # fmt: skip
    found = {u.layer: u.reason for u in result.fidelity.unfitted}
    assert reasons.items() <= found.items()
    assert not {u.weight for u in result.fidelity.unfitted} & {r.weight for r in result.fidelity.refits if r.damping}
    text = prune_text(result)
    for layer, reason in reasons.items():
        assert layer in text
        assert reason in text
    assert f"{len(found)} layer{'' if len(found) == 1 else 's'} behind a cut kept" in text


def test_every_layer_is_accounted_for(tmp_path):
    model, data = files(tmp_path, count=80)
    options = {"macs": 0.5, "align": 1, "calib": data}
    result = prune(model, tmp_path / "out.onnx", **options)
    fitted = {r.weight for r in result.fidelity.refits if r.damping is not None}
    assert fitted | {u.weight for u in result.fidelity.unfitted} == {"w2", "w3"}
    plain = prune(model, tmp_path / "out.onnx", **options, compensate=False)
    assert {u.weight: u.reason for u in plain.fidelity.unfitted} == dict.fromkeys(
        ("w2", "w3"), "compensation was switched off"
    )
