"""Ranges end where what reads a tensor is flat, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.quantization.activations import Ranges
from exporter.quantization.narrowing import narrowed
from tests.onnx_builder import build, node, weights

SILU = [node("Sigmoid", "t", "s"), node("Mul", "t s", "u")]
GELU = [
    node("Div", "t root", "d"), node("Erf", "d", "e"), node("Add", "e one", "f"), node("Mul", "t f", "g"),
    node("Mul", "g half", "u"),
]  # fmt: skip
SCALARS = {"root": np.float32(2**0.5), "one": np.ones((1, 1), np.float32), "half": np.full((1,), 0.5, np.float32)}

BEHIND = {
    # nodes behind t, its range, where that may end
    "silu": (SILU, (-84.0, 90.0), (-7.0, 90.0)),
    "gelu": (GELU, (-40.0, 6.0), (-3.3, 6.0)),
    "hard-swish": ([node("HardSwish", "t", "u")], (-20.0, 5.0), (-3.0, 5.0)),
    "relu": ([node("Relu", "t", "u")], (-9.0, 3.0), (0.0, 3.0)),
    "relu6": ([node("Clip", "t zero six", "u")], (-9.0, 30.0), (0.0, 6.0)),
    "sigmoid": ([node("Sigmoid", "t", "u")], (-30.0, 50.0), (-9.5, 9.5)),
    "two readers": ([node("Relu", "t", "u"), node("Clip", "t five six", "v")], (-9.0, 9.0), (0.0, 9.0)),
    "nothing flat": ([node("LeakyRelu", "t", "u", alpha=0.5)], (-9.0, 9.0), None),
    "a layer reads it": ([node("Relu", "t", "v"), node("MatMul", "t b", "u")], (-9.0, 9.0), None),
    "a sum with another": ([node("Relu", "t", "v"), node("Add", "t x", "u")], (-9.0, 9.0), None),
    "a slope for each channel": ([node("PRelu", "t slopes", "u")], (-9.0, 9.0), None),
    "not finite": ([node("Log", "t", "u")], (-1.0, 9.0), None),
    "one number": ([node("Relu", "t", "u")], (2.0, 2.0), None),
    "nothing but flat": ([node("Clip", "t five five", "u")], (-9.0, 2.0), None),
}


def ranges(behind, low, high, outputs=("y",)):
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    constants = weights(a=(8, 8), b=(8, 8), c=(8, 8)) | SCALARS
    constants |= {"zero": np.float32(0), "five": np.float32(5), "six": np.float32(6), "slopes": np.zeros(8, np.float32)}
    made = {o for n in behind for o in n.output}
    sums = [node("Add", "u v", "w")] if "v" in made else [node("Identity", "u", "w")]
    nodes = [node("MatMul", "x a", "t"), *behind, node("MatMul", "u c", "y0"), *sums, node("MatMul", "w c", "y1")]
    nodes.append(node("Add", "y0 y1", "y"))
    model = build(nodes, {"x": ["N", 8]}, list(outputs), constants)
    ends = (np.array([low], np.float32), np.array([high], np.float32))
    return Ranges(model, TensorsData(CalibrationMethod.MinMax, {"t": ends, "y": ends}), "minmax")


@pytest.mark.parametrize("name", BEHIND)
def test_where_a_range_may_end(name):
    behind, (low, high), wanted = BEHIND[name]
    before = ranges(behind, low, high)
    after = narrowed(before, symmetric=False)
    ends = [float(end[0]) for end in after.found["t"].range_value]
    assert [float(end[0]) for end in before.found["t"].range_value] == [low, high]
    assert [float(end[0]) for end in after.found["y"].range_value] == [low, high]
    if wanted is None:
        assert ends == [low, high]
    else:
        assert ends != [low, high]
        assert ends == pytest.approx(wanted, abs=0.4)


def test_what_is_cut_off_moves_results_by_less_than_a_step():
    after = narrowed(ranges(SILU, -84, 90), symmetric=False)
    low, high = (end[0] for end in after.found["t"].range_value)
    values = np.linspace(-84, 90, 1001)
    moved = np.clip(values, low, high) / (1 + np.exp(-np.clip(values, low, high))) - values / (1 + np.exp(-values))
    assert 0 < np.abs(moved).max() < 0.05 * 90 / 255


def test_ranges_about_zero_stay_about_zero():
    after = narrowed(ranges(SILU, -84, 84), symmetric=True)
    assert [end[0] for end in after.found["t"].range_value] == [-84, 84]
    after = narrowed(ranges([node("Sigmoid", "t", "u")], -84, 84), symmetric=True)
    low, high = (end[0] for end in after.found["t"].range_value)
    assert low == -high
    assert 5 < high < 12


def test_outputs_of_the_model_keep_their_ranges():
    after = narrowed(ranges(SILU, -84, 90, ("y", "t")), symmetric=False)
    assert [end[0] for end in after.found["t"].range_value] == [-84, 90]
