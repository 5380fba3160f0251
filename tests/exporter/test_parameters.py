"""Which constants count as parameters: what training made, not what a mask hides or an index counts."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import find_groups
from exporter.cost import CostModel
from exporter.model_file import from_model
from exporter.report import prunable_parameters
from tests.onnx_builder import build, node, weights

CAUSAL = np.tril(np.ones((8, 8), np.float32)) == 0
CONSTANTS = {
    "mask of minus infinity": (np.where(CAUSAL, -np.inf, 0).astype(np.float32), False),
    "mask of the lowest number": (np.where(CAUSAL, np.finfo(np.float32).min, 0).astype(np.float32), False),
    "mask of a very negative number": (np.where(CAUSAL, np.float32(-1e9), np.float32(0)), False),
    "mask in halves": (np.where(CAUSAL, np.finfo(np.float16).min, 0).astype(np.float16), False),
    "mask with distances": (np.where(CAUSAL, -np.inf, np.arange(8, dtype=np.float32)), False),
    "zeros": (np.zeros((8, 8), np.float32), True),
    "zeros and one other number": (np.where(CAUSAL, np.float32(-3), np.float32(0)), True),
    "large weights": (weights(w=(8, 8))["w"] * 1e4, True),
}


@pytest.mark.parametrize(("values", "counts"), CONSTANTS.values(), ids=CONSTANTS)
def test_masks_do_not_count(values, counts):
    """They are added to the scores of an attention whose weights are 8 x 4 and 4 x 3."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Transpose", "h", "t", perm=[0, 2, 1]),
        node("MatMul", "h t", "s"),
        node("Cast", "added", "a", to=1),
        node("Add", "s a", "m"),
        node("Softmax", "m", "p"),
        node("MatMul", "p h", "o"),
        node("MatMul", "o w2", "y"),
    ]
    model = build(nodes, {"x": ["N", 8, 8]}, ["y"], {**weights(w1=(8, 4), w2=(4, 3)), "added": values})
    graph = from_model(model)
    groups = find_groups(graph)
    expected = 8 * 4 + 4 * 3 + 64 * counts
    assert graph.parameters == expected
    cost = CostModel(groups)
    assert cost.parameters(cost.widths) == expected
    assert prunable_parameters(groups) == 8 * 4 + 4 * 3
    assert any(f.tensor == "added" for f in groups.frozen) == counts


def test_indices_do_not_count():
    """Positions that are cut with the channels they select are no parameters either."""
    constants = weights(w1=(5, 8), w2=(8, 3)) | {"order": np.array([5, 3, 1, 0, 2, 4, 7, 6])}
    nodes = [node("MatMul", "x w1", "h"), node("Gather", "h order", "g", axis=1), node("MatMul", "g w2", "y")]
    groups = find_groups(from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants)))
    assert prunable_parameters(groups) == groups.graph.parameters == 5 * 8 + 8 * 3
