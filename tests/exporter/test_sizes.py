"""A model at sizes of its dynamic axes, until it runs: the usual ones first, none twice, none that nobody can run."""

from __future__ import annotations

import onnx
import pytest

from exporter.sizes import at_sizes
from runtime.feeds import PROFILES
from tests.onnx_builder import build, node, weights


@pytest.fixture
def sizes(tmp_path):
    """The shapes of input ``x`` that are tried for a model whose input has a shape, and is multiplied by a weight."""

    def tried(shape, asked=None, columns=8, more=()):
        inputs = {"x": shape} | {name: ["M", 4] for name in more}
        nodes = [node("MatMul", "x w", "y"), *(node("Relu", name, f"{name}_out") for name in more)]
        outputs = ["y", *(f"{name}_out" for name in more)]
        onnx.save(build(nodes, inputs, outputs, weights(w=(4, columns))), tmp_path / "m.onnx")
        return [graph.binding.shapes["x"] for graph in at_sizes(tmp_path / "m.onnx", asked)]

    return tried


def test_the_usual_sizes_come_first_and_none_twice(sizes):
    found = sizes(["N", "T", 4])
    assert found[0] == (PROFILES[0].batch, PROFILES[0].other, 4)
    assert len(found) == len(set(found)) > 3


def test_what_has_one_size_is_loaded_once(sizes):
    assert sizes([2, 3, 4]) == [(2, 3, 4)]
    assert sizes(["N", "T", 4], {"x": (5, 6, 4)}) == [(5, 6, 4)]


def test_sizes_of_other_inputs_are_tried(sizes):
    """What was asked for stays."""
    assert sizes(["N", 3, 4], {"x": (5, 3, 4)}, more=("z",)) == [(5, 3, 4)] * 2


def test_what_would_be_too_large_is_passed_over(sizes):
    lengths = [length for _, length, _ in sizes(["N", "T", 4], columns=40_000)]
    assert lengths[0] == PROFILES[0].other
    assert max(p.other for p in PROFILES) not in lengths
