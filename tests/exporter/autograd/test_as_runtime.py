"""Where the standard leaves room, or ONNX Runtime another way: torch computes what ONNX Runtime does."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from exporter.autograd import to_torch  # noqa: E402
from exporter.autograd.dtypes import to_array, to_tensor  # noqa: E402
from exporter.model_file import from_model  # noqa: E402
from runtime.backends import open_session  # noqa: E402
from tests.onnx_builder import build, ints, node, weights  # noqa: E402


def apart(model, feeds):
    """Largest difference of any output; infinite where a shape or type differs."""
    want = open_session(model.SerializeToString()).run(feeds)
    with torch.no_grad():
        got = to_torch(from_model(model)).run({n: to_tensor(v) for n, v in feeds.items()})
    found = {n: to_array(got[n]) for n in want}
    if any(found[n].shape != v.shape or found[n].dtype != v.dtype for n, v in want.items()):
        return np.inf
    return max(float(np.abs(found[n].astype(float) - v).max(initial=0)) for n, v in want.items())


def image(size, seed=0):
    return np.random.default_rng(seed).standard_normal((1, 2, size, size)).astype(np.float32)


def resized(size, opset=19, scale=None, sizes=None, **attributes):
    """How far a Resize of [1, 2, size, size] is from ONNX Runtime's."""
    constants = {"s": np.array([1, 1, *scale], np.float32)} if scale else {"n": ints(1, 2, *sizes)}
    given = ("x s" if opset == 10 else "x - s") if scale else "x - - n"
    nodes = [node("Resize", given, "y", **attributes)]
    # older ones have other places in the middle
    model = build(nodes, {"x": [1, 2, size, size]}, ["y"], constants, opset=opset, since="1.31")
    return apart(model, {"x": image(size)})


SCALES = (0.3, 0.6, 0.7, 0.75, 1.1, 1.3, 2.0)
WAYS = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("way", WAYS)
def test_nearest(way, rounding):
    """Places are computed in 32 bits, and what is about in the middle between two elements is in the middle."""
    how = {"coordinate_transformation_mode": way, "nearest_mode": rounding}
    cases = list(itertools.product(SCALES, (7, 10)))
    assert not [c for c in cases if resized(c[1], scale=(c[0], 1.5), **how)]
    assert not [c for c in cases if resized(c[1], sizes=(max(int(c[0] * c[1]), 1), c[1] + 3), **how)]


@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("way", WAYS)
def test_interpolation(way, mode, antialias):
    """Also where a size stays although its scale is not 1 (5 at 1.1)."""
    how = {"coordinate_transformation_mode": way, "mode": mode, "antialias": antialias}
    assert not [c for c in itertools.product(SCALES, (1.0, 1.1), (5, 10)) if resized(c[2], scale=c[:2], **how) > 1e-5]


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_operator_set_10(mode):
    """Down to the next element above, up to the one below; 10 at .7 is 7 in 32 bits, 6 in 64."""
    assert not [c for c in itertools.product(SCALES, (5, 7, 10)) if resized(c[1], 10, c[:1] * 2, mode=mode) > 1e-5]


def test_whole_numbers_are_cut_off():
    model = build([node("Resize", "x - s", "y", mode="linear")], {"x": [1, 1, 5, 5]}, ["y"],
                  {"s": np.array([1, 1, 2, 2], np.float32)}, kinds={"x": "u", "y": "u"})  # fmt: skip
    assert not apart(model, {"x": np.random.default_rng(0).integers(0, 255, (1, 1, 5, 5)).astype(np.uint8)})


@pytest.mark.parametrize("lengths", [None, (5, 2, 1), (5, 2, 0)])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers(op, clip, lengths):
    """The cell is not clipped before its activation; of no steps the last states are zero."""
    gates, states = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], "hc" if op == "LSTM" else "h"
    shapes = {"w": (2, 4 * gates, 3), "r": (2, 4 * gates, 4), "b": (2, 8 * gates)} | {
        f"{s}0": (2, 3, 4) for s in states
    }
    constants = weights(**shapes) | ({} if lengths is None else {"l": np.array(lengths, np.int32)})
    given = f"x w r b {'-' if lengths is None else 'l'} " + " ".join(f"{s}0" for s in states)
    outputs = ["y", *(f"y{s}" for s in states)]
    settings = {"hidden_size": 4, "direction": "bidirectional"} | ({} if clip is None else {"clip": clip})
    model = build([node(op, given, " ".join(outputs), **settings)], {"x": [5, 3, 3]}, outputs, constants)
    assert apart(model, weights(1, x=(5, 3, 3))) < 1e-5


@pytest.mark.parametrize("trips", [0, 2])
def test_slices_of_a_loop(trips):
    """Of a loop that is not entered they are none, of the type and rank they would have."""
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [node("MatMul", "h w", "after"), node("Identity", "go", "on"), node("Cast", "after", "slice", to=11)],
        "body",
        [value("i", 7, []), value("go", 9, []), value("h", 1, ["N", 4])],
        [value("on", 9, []), value("after", 1, ["N", 4]), value("slice", 11, ["N", 4])],
    )
    nodes = [node("Loop", "trips - x", "y slices", body=body)]
    constants = weights(w=(4, 4)) | {"trips": np.int64(trips)}
    model = build(nodes, {"x": ["N", 4]}, ["y", "slices"], constants, kinds={"slices": "d"})
    assert apart(model, weights(1, x=(2, 4))) < 1e-5
