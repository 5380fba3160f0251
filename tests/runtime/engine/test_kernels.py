"""Which nodes of the file the layers of an engine stand for, by the ways TensorRT names them."""

from __future__ import annotations

import pytest

from runtime.engine.inspection import EngineLayer
from runtime.engine.kernels import kernels_of
from runtime.fusions import name_nodes
from tests.onnx_builder import build, node, weights

SHAPES = {
    "conv": [([(1, 3, 8, 8), (4, 3, 3, 3)], [(1, 4, 6, 6)])],
    "relu": [([(1, 4, 6, 6)], [(1, 4, 6, 6)])],
    "f": [([(1, 4, 6, 6)], [(1, 144)])],
    "product": [([(1, 144), (144, 5)], [(1, 5)])],
}
CONV, PRODUCT = 4 * 36 * 27, 144 * 5


def model():
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("MatMul", "f v", "y")]
    for each, name in zip(nodes, ("conv", "relu", "", "product"), strict=True):
        each.name = name
    made = build(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights(w=(4, 3, 3, 3), v=(144, 5)))
    name_nodes(made)
    return made


def layer(name, nodes=None, **more):
    own = tuple(p for p in name.split(" + ")) if nodes is None else tuple(nodes)
    return EngineLayer(name, nodes=own, **more)


@pytest.mark.parametrize(
    ("layers", "want"),
    [
        (
            [layer("conv + relu", precision="fp16"), layer("node_of_f"), layer("product")],
            [("conv", "Conv", ("c", "r"), CONV), ("f", "Flatten", ("f",), 0), ("product", "MatMul", ("y",), PRODUCT)],
        ),
        (
            [layer("fused", ["conv", "relu", "product"]), layer("again", ["conv"])],
            [("conv", "Conv+MatMul", ("c", "r", "y"), CONV + PRODUCT), ("again", "layer", (), 0)],
        ),
        (
            [layer("Reformatting CopyNode for Input Tensor 0 to conv", ["conv"]), layer("conv"),
             layer("{ForeignNode[relu...product]}", [])],
            [("Reformatting CopyNode for Input Tensor 0 to conv", "layer", (), 0), ("conv", "Conv", ("c",), CONV),
             ("product", "MatMul", ("r", "f", "y"), PRODUCT)],
        ),
        ([layer("{ForeignNode[odd...product]}", [])], [("{ForeignNode[odd...product]}", "layer", (), 0)]),
    ],
    ids=["names", "metadata", "range", "unknown range"],
)  # fmt: skip
def test_layers_by_name(layers, want):
    found = kernels_of([(e, 1e-3) for e in layers], model(), SHAPES, "tensorrt")
    assert [(n.name, n.op, n.keys, n.macs) for n in found] == want
    assert [n.reorder for n in found] == [e.name.startswith("Reformatting") for e in layers]


def test_bytes_are_those_at_the_border():
    """Between convolution and activation nothing is stored; the precision is the layer's."""
    (found,) = kernels_of([(layer("conv + relu", precision="fp16"), 1e-3)], model(), SHAPES, "tensorrt")
    assert found.bytes == 2 * (3 * 64 + 4 * 27 + 4 * 36)
    assert found.rate == pytest.approx(2 * CONV / 1e-3)


def test_without_the_file_only_times_are_known():
    (found,) = kernels_of([(layer("conv"), 1e-3)], None, {}, "tensorrt")
    assert (found.name, found.macs, found.bytes, found.keys, found.seconds) == ("conv", 0, 0, (), 1e-3)
