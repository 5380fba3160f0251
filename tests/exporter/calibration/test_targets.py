"""What a layer is fitted to, and what of it matters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exporter.calibration import compensation, targets
from exporter.calibration.readers import find_readers
from exporter.calibration.targets import WIDE, find_target
from exporter.model_file import from_model
from tests.exporter.calibration import networks
from tests.exporter.calibration.test_compensation import Cut
from tests.onnx_builder import build, node

ENDS = {"low": np.float32(-0.5), "high": np.float32(0.5)}


def limited(*nodes, opset=21, ir=10, constants=None, between="Tanh"):
    """A hidden layer, and one behind it whose result ``o`` goes through some nodes."""
    held = networks.scaled(w1=(8, 40), b1=(40,), w2=(40, 6), b2=(6,)) | (constants or {})
    layers = [node("Gemm", "x w1 b1", "h"), node(between, "h", "a"), node("Gemm", "a w2 b2", "o")]
    outputs = [o for n in nodes for o in n.output]
    return build([*layers, *nodes], {"x": ["N", 8]}, [o for o in outputs if o[0] == "y"], held, opset=opset, ir=ir)


@pytest.mark.parametrize(
    ("nodes", "options", "limits"),
    [
        ([node("Relu", "o", "y")], {}, (0, math.inf)),
        ([node("Clip", "o low high", "y")], {"constants": ENDS}, (-0.5, 0.5)),
        ([node("Clip", "o - high", "y")], {"constants": {"high": ENDS["high"]}}, (-math.inf, 0.5)),
        ([node("Clip", "o", "y", min=0.0, max=6.0)], {"opset": 10, "ir": 5}, (0, 6)),
        ([node("Relu", "o", "y0"), node("Relu", "o", "y1")], {}, (0, math.inf)),
        ([node("Relu", "o", "y0"), node("Neg", "o", "y1")], {}, WIDE),
        ([node("ReduceMax", "o", "top", keepdims=0), node("Clip", "o - top", "y")], {}, WIDE),
        ([node("Sigmoid", "o", "y")], {}, WIDE),
    ],
)
def test_limits_are_those_of_all_who_read_the_result(nodes, options, limits):
    graph = from_model(limited(*nodes, **options))
    last = find_readers(graph)[-1]
    assert find_target(graph, graph, last, set()).limits == pytest.approx(limits)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize(("last", "constants"), [("Relu o", {}), ("Clip o low high", ENDS)])
def test_what_is_let_through_is_nearer_when_only_that_is_fitted(last, constants, pairs, monkeypatch):
    op, _, inputs = last.partition(" ")
    model = limited(node(op, inputs, "y"), constants=constants, between="Gelu")
    if not pairs:
        monkeypatch.setattr(compensation, "find_pairs", lambda *_: {})
    limited_fit = Cut(model, count=512, ratio=0.7)
    monkeypatch.setattr(targets, "_limits", lambda *_: WIDE)
    plain_fit = Cut(model, count=512, ratio=0.7)
    assert limited_fit.error(limited_fit.fixed) < 0.99 * plain_fit.error(plain_fit.fixed)
