"""Branches that fixed inputs would decide: by sizes and switches, not by data."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from exporter.fixing import Undecided, undecided
from exporter.model_file import from_model
from tests.exporter.files import branch, choose
from tests.onnx_builder import build, node


def chosen(before, inputs, kinds=None, constants=None):
    """A model that goes by ``c``, which ``before`` makes."""
    then, other = branch("a", [node("Relu", "x", "p")], "p"), branch("b", [node("Neg", "x", "q")], "q")
    nodes = [*before, choose("c", "y", then, other)]
    return build(nodes, {"x": ["N", 4], **inputs}, ["y"], constants, kinds=kinds)


def looped():
    """A Loop of so many rounds as an input says makes the condition."""
    body = helper.make_graph(
        [node("Identity", "go", "go2"), node("Not", "h", "h2")], "body",
        [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("go", 9, []),
         helper.make_tensor_value_info("h", 9, [])],
        [helper.make_tensor_value_info("go2", 9, []), helper.make_tensor_value_info("h2", 9, [])],
    )  # fmt: skip
    return chosen([node("Loop", "rounds - flag", "c", body=body)], {"rounds": [], "flag": []},
                  {"rounds": "i", "flag": "b"})  # fmt: skip


MADE = {
    "size": (
        chosen([node("Size", "x", "s"), node("Greater", "s ten", "c")], {}, None, {"ten": np.int64(10)}),
        Undecided(1, ("x",), ()),
    ),
    "switch": (chosen([], {"c": []}, {"c": "b"}), Undecided(1, (), ("c",))),
    "both": (
        chosen(
            [node("Size", "x", "s"), node("Add", "s k", "t"), node("Greater", "t ten", "c")], {"k": []}, {"k": "i"},
            {"ten": np.int64(10)},
        ),
        Undecided(1, ("x",), ("k",)),
    ),
    "number": (
        chosen([node("Greater", "f half", "c")], {"f": []}, None, {"half": np.float32(0.5)}),
        Undecided(0, (), ()),
    ),
    "ids": (
        chosen(
            [node("ReduceMax", "i", "m", keepdims=0), node("Greater", "m ten", "c")], {"i": [2, 50]}, {"i": "i"},
            {"ten": np.int64(10)},
        ),
        Undecided(0, (), ()),
    ),
    "out of a loop": (looped(), Undecided(0, (), ())),
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
def test_what_decides(case):
    model, want = MADE[case]
    assert undecided(from_model(model)) == want
