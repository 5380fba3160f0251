"""Small nodes evaluated by numpy say what onnx's reference says."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from exporter import values
from exporter.protos import attributes_of
from tests.exporter.files import ints
from tests.onnx_builder import node

X = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
FAR = np.iinfo(np.int64).max
STEPS_ALONE = helper.make_node("Slice", ["x", "a", "b", "", "d"], ["y"])

CASES = {
    "slice": (node("Slice", "x a b", "y"), X, ints(0, 1), ints(2, FAR)),
    "slice: axes, steps": (node("Slice", "x a b c d", "y"), X, ints(1, -1), ints(FAR, -FAR), ints(1, -1), ints(1, -2)),
    "slice: from behind": (node("Slice", "x a b c", "y"), X, ints(-3), ints(-1), ints(2)),
    "slice: beyond": (node("Slice", "x a b c", "y"), X, ints(5), ints(9), ints(2)),
    "slice: backwards": (node("Slice", "x a b c d", "y"), X, ints(FAR), ints(-5), ints(2), ints(-1)),
    "slice: steps alone": (STEPS_ALONE, X, ints(0), ints(2), None, ints(2)),
    "range": (node("Range", "x a b", "y"), np.int64(2), np.int64(11), np.int64(4)),
    "range: down": (node("Range", "x a b", "y"), np.int32(3), np.int32(-4), np.int32(-2)),
    "range: none": (node("Range", "x a b", "y"), np.int64(3), np.int64(3), np.int64(1)),
    "range: fractions": (node("Range", "x a b", "y"), np.float32(0), np.float32(1), np.float32(0.3)),
    "expand": (node("Expand", "x a", "y"), X[:, :1], ints(2, 5, 1)),
    "expand: more axes": (node("Expand", "x a", "y"), X, ints(2, 1, 1, 1)),
    "gather elements": (node("GatherElements", "x a", "y", axis=2), X, np.tile(ints(3, 0, -1), (2, 3, 1))),
    "gather elements: first": (node("GatherElements", "x a", "y"), X, np.full((5, 3, 4), -1)),
    "reshape": (node("Reshape", "x a", "y"), X, ints(0, -1, 2)),
    "reshape: to nothing": (node("Reshape", "x a", "y", allowzero=1), X[:0], ints(3, 0)),
    "transpose": (node("Transpose", "x", "y"), X),
    "transpose: perm": (node("Transpose", "x", "y", perm=[1, 2, 0]), X),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_numpy_says_what_the_reference_says(name, monkeypatch):
    made, *inputs = CASES[name]
    known = [np.asarray(i) if i is not None else None for i in inputs]
    feeds = {n: v for n, v in zip(made.input, known, strict=True) if n}
    (expected,) = ReferenceEvaluator(made).run(None, feeds)
    monkeypatch.delattr(values, "_reference")
    (found,) = values.evaluate(made, attributes_of(made), known)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected)


def test_attributes_of_old_slices():
    made = node("Slice", "x", "y", starts=[1, 0], ends=[9, -1], axes=[2, 1])
    (found,) = values.evaluate(made, attributes_of(made), [X])
    assert np.array_equal(found, X[:, :-1, 1:])


@pytest.mark.parametrize(
    ("made", "inputs"),
    [
        (node("Range", "x a b", "y"), (np.int64(0), np.int64(1 << 40), np.int64(1))),
        (node("Range", "x a b", "y"), (np.int64(0), np.int64(1), np.int64(0))),
        (node("Expand", "x a", "y"), (X, ints(1 << 20, 1, 1, 1))),
        (node("Reshape", "x a", "y"), (X, ints(7, -1))),
        (node("Slice", "x a b d", "y"), (X, ints(0), ints(2), ints(7))),
    ],
)
def test_what_is_too_large_or_wrong_is_not_evaluated(made, inputs):
    assert values.evaluate(made, attributes_of(made), [np.asarray(i) for i in inputs]) is None
