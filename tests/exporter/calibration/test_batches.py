"""How many samples go into a run: as many as memory holds of the tensors that they become."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.calibration.data import batch_of, calibration_of
from exporter.model_file import from_model
from tests.onnx_builder import build, node, weights


def images(layers=8, channels=16):
    """Layers of 4 * 16 bytes for each pixel, on images of any size."""
    nodes = [node("Conv", f"{f'h{i}' if i else 'x'} w{min(i, 1)}", f"h{i + 1}", pads=[1] * 4) for i in range(layers)]
    nodes.append(node("GlobalAveragePool", f"h{layers}", "y"))
    shapes = {"w0": (channels, 1, 3, 3), "w1": (channels, channels, 3, 3)}
    return from_model(build(nodes, {"x": ["N", 1, "H", "W"]}, ["y"], weights(**shapes)))


@pytest.mark.parametrize("size", [32, 512, 2048])
def test_samples_count_by_their_own_size(size):
    """And not by the one that the graph is described at, which is small."""
    graph = images()
    found = calibration_of([{"x": np.zeros((16, 1, size, size), np.float32)}], graph)
    tensor = 4 * 16 * size * size
    assert graph.binding.shapes["x"][2:] == (224, 224)
    assert found.batch == np.clip(2**26 // tensor, 1, 64)
    assert found.batch_of_all == np.clip(2**30 // (8 * tensor + 64), 1, found.batch)
    assert batch_of(graph) == 2**26 // (4 * 16 * 224 * 224)


def test_where_all_tensors_are_kept_there_are_fewer():
    found = calibration_of([{"x": np.zeros((16, 1, 224, 224), np.float32)}], images(layers=40))
    assert found.batch == 20
    assert found.batch_of_all == 2**30 // (40 * 4 * 16 * 224 * 224)
