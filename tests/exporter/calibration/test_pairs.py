"""Layers that are fitted together: which ones, along which directions, and what it is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exporter.calibration import compensation
from exporter.calibration.joint import Batch, Joint
from exporter.calibration.joint_models import Build
from exporter.calibration.pairs import find_pairs
from exporter.calibration.readers import find_readers
from exporter.calibration.runner import Runner
from exporter.calibration.targets import WIDE
from exporter.model_file import from_model
from exporter.normalise import input_specs
from runtime.backends import open_session
from runtime.samples import samples_of
from tests.exporter.calibration.networks import scaled
from tests.exporter.calibration.test_compensation import BATCH, Cut
from tests.onnx_builder import build, ints, node

SILU = [node("Sigmoid", "g", "sg"), node("Mul", "g sg", "s"), node("Mul", "s u", "h")]


def plain():
    """Two layers without biases."""
    nodes = [node("MatMul", "x wu", "u"), node("Gelu", "u", "h"), node("MatMul", "h wd", "y")]
    return build(nodes, {"x": ["N", 20, 6]}, ["y"], scaled(wu=(6, 32), wd=(32, 5)))


def gated(users=(), outputs=("y",), second="MatMul h wd"):
    """The gate and the values come from two layers."""
    op, _, reads = second.partition(" ")
    nodes = [node("MatMul", "x wg", "g"), node("MatMul", "x wu", "m"), node("Add", "m bu", "u"), *SILU,
             node(op, reads, "y"), *users]  # fmt: skip
    constants = scaled(wg=(6, 32), wu=(6, 32), bu=(32,), wd=(32, 5), bd=(5,))
    return build(nodes, {"x": ["N", 20, 6]}, list(outputs), constants)


def packed(use=SILU):
    """They come from one."""
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "gu"), node("Split", "gu half", "g u", axis=-1), *use,
             node("MatMul", "h wd", "y")]  # fmt: skip
    constants = scaled(w=(6, 64), b=(64,), wd=(32, 5)) | {"half": ints(32, 32)}
    return build(nodes, {"x": ["N", 20, 6]}, ["y"], constants)


def packed_channels():
    """Of a convolution, whose kernel and stride the gradient goes back through."""
    nodes = [
        node("Conv", "x w b", "gu", pads=[1, 1, 1, 1]), node("Split", "gu", "g u", axis=1, num_outputs=2), *SILU,
        node("Conv", "h wd bd", "y", strides=[2, 2]),
    ]  # fmt: skip
    constants = scaled(w=(32, 3, 3, 3), b=(32,), wd=(5, 16, 3, 3), bd=(5,))
    return build(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants)


def summed():
    """Two branches whose sum a Softplus follows."""
    nodes = [node("Gemm", "x w0 b0", "p"), node("MatMul", "x w1", "q"), node("Add", "p q", "s"),
             node("Softplus", "s", "h"), node("Gemm", "h wd bd", "y", transB=1, alpha=0.5)]  # fmt: skip
    constants = scaled(w0=(6, 32), b0=(32,), w1=(6, 32), wd=(5, 32), bd=(5,))
    return build(nodes, {"x": ["N", 6]}, ["y"], constants)


FOUND = {
    "plain": (plain, ["wu"], "wd"),
    "gated": (gated, ["wg", "wu"], "wd"),
    "packed": (packed, ["w"], "wd"),
    "packed channels": (packed_channels, ["w"], "wd"),
    "summed": (summed, ["w0", "w1"], "wd"),
}


def pairs_of(model):
    graph = from_model(model)
    return graph, find_pairs(graph, find_readers(graph))


@pytest.mark.parametrize("name", FOUND)
def test_pairs_are_found(name):
    make, firsts, second = FOUND[name]
    _, pairs = pairs_of(make())
    assert {k: [f.weight for f in p.firsts] for k, p in pairs.items()} == {second: firsts}


@pytest.mark.parametrize(
    "model",
    [
        gated([node("Neg", "g", "z")], ["y", "z"]),  # the gate is read elsewhere too
        gated(outputs=["y", "h"]),
        gated([node("ReduceMax", "u", "z", keepdims=0)], ["y", "z"]),
        packed([node("Sigmoid", "g", "h")]),  # nothing reads the other half
        packed([node("Softmax", "g", "s"), node("Mul", "s u", "h")]),
        gated(second="Softmax h"),
    ],
)
def test_what_is_no_pair(model):
    assert pairs_of(model)[1] == {}


@pytest.mark.parametrize("name", FOUND)
def test_directions_are_those_of_the_error(name):
    """What the models say of a change is what the change does, and what goes back is what goes forward, transposed."""
    graph, pairs = pairs_of(FOUND[name][0]())
    (pair,) = pairs.values()
    rng = np.random.default_rng(0)
    names = [n for r in pair.readers for n in ([r.weight, r.bias] if r.bias else [r.weight])]
    weights = {n: np.array(graph.array(n)) for n in names}
    keys = [f"{kind}{k}" for k, r in enumerate(pair.readers) for kind in ("wb" if r.bias else "w")]
    shape = [4, *(graph.shape("x") or ())[1:]]
    x = rng.standard_normal(shape).astype(np.float32)
    target = rng.standard_normal([4, *(graph.shape("y") or ())[1:]]).astype(np.float32)
    build_ = Build(pair, graph, WIDE, added=False)
    residual, response = (open_session(made) for made in (build_.residual(), build_.response()))
    feed = {f"x{k}": x for k in range(len(pair.firsts))} | {"target": target}
    feed |= dict(zip(keys, weights.values(), strict=True))
    changes = {f"d{key}": rng.standard_normal(feed[key].shape).astype(np.float32) for key in keys}
    told = response.run(feed | changes)
    back = residual.run(feed)
    for k in range(len(pair.readers)):
        ends = []
        for way in (1e-2, -1e-2):
            moved = {n: feed[n] + np.float32(way) * changes[f"d{n}"] for n in keys if n.endswith(str(k))}
            ends.append(float(residual.run(feed | moved, ["loss"])["loss"]))
        assert 2 * float(told[f"r{k}"]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02)
    for k, first in enumerate(pair.firsts):
        moved = {first.weight: changes[f"dw{k}"]} | ({first.bias: changes[f"db{k}"]} if first.bias else {})
        (change,) = Runner(graph, samples_of([{"x": x}], input_specs(graph.model)), 4).branch([first.result], moved)
        assert float((back[f"slope{k}"] * change[first.result]).sum()) == pytest.approx(float(told[f"r{k}"]), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "count"), [*((name, 512) for name in FOUND), ("plain", BATCH - 4), ("packed", BATCH - 4)]
)
def test_together_they_lose_less(name, count, monkeypatch):
    """Whether the samples are many batches or a single one."""
    make = FOUND[name][0]
    together = Cut(make(), count=count)
    monkeypatch.setattr(compensation, "find_pairs", lambda *_: {})
    alone = Cut(make(), count=count)
    assert together.changed() > alone.changed()
    assert together.error(together.fixed) < 0.97 * alone.error(alone.fixed)


def test_a_batch_is_parted_by_samples():
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    parts = Batch((rows, rows), rows, None).parts(4)
    assert [len(p.target) for p in parts] == [3, 3, 2, 2]
    assert np.concatenate([p.sources[1] for p in parts]).tolist() == rows.tolist()
    assert len(Batch((rows,), rows, rows).parts(64)) == 10
    tokens = Batch((rows.reshape(20, 1),), rows, None)  # one axis of samples and positions: no telling them apart
    assert tokens.parts(4) == [tokens]


def test_held_out_samples_decide():
    """Where every round makes it worse for them, nothing changes."""
    graph, pairs = pairs_of(plain())
    (pair,) = pairs.values()
    layers = [(np.array(graph.array(r.weight)), None) for r in pair.readers]
    joint = Joint(pair, graph, layers, WIDE, added=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 20, 6)).astype(np.float32)
    (y,) = open_session(graph.model.SerializeToString()).run({"x": x}).values()
    good, bad = Batch((x,), y, None), Batch((x,), -y, None)
    assert joint.fit([bad] * 8, (None, None)) is not None
    assert joint.fit([bad] * 7 + [good], (None, None)) is None
    assert math.isclose(joint._error([good], layers), 0, abs_tol=1e-6)
