"""Readers: every linear layer is rows times a matrix, and the matrix is the weight."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from exporter.calibration.readers import (
    bias_constant,
    bias_of,
    columns,
    find_readers,
    inputs_at,
    matrix,
    outputs_at,
    places,
    weight_of,
)
from exporter.model_file import from_model
from runtime.backends import open_session
from tests.onnx_builder import build, ints, node, weights

ALL = 1 << 30


def conv(shape, x=(2, 4, 9, 8), *, op="Conv", bias=True, **attributes):
    """A convolution over x; the bias has the length of the output channels."""
    channels = shape[0] if op == "Conv" else shape[1] * attributes.get("group", 1)
    constants = weights(w=shape, **({"b": (channels,)} if bias else {}))
    return build([node(op, "x w b" if bias else "x w", "y", **attributes)], {"x": x}, ["y"], constants)


def up(shape, x=(2, 4, 5, 6), **attributes):
    return conv(shape, x, op="ConvTranspose", **attributes)


def gemm(bias=(6,), w=(5, 6), **attributes):
    constants = weights(w=w, **({"b": bias} if bias else {}))
    return build([node("Gemm", "x w b" if bias else "x w", "y", **attributes)], {"x": (7, 5)}, ["y"], constants)


def product(x, *, bias="h b"):
    nodes = [node("MatMul", "x w", "h" if bias else "y"), *([node("Add", bias, "y")] if bias else [])]
    return build(nodes, {"x": x}, ["y"], weights(w=(5, 6), b=(6,)))


def normalised(model, outputs):
    """The model with a BatchNormalization behind it, which brings a bias of its own."""
    rng = np.random.default_rng(7)
    model.graph.node[-1].output[0] = model.graph.node[-1].name = "raw"
    for made in model.graph.node:
        made.input[:] = ["t" if i == "b" else i for i in made.input]
    for tensor in model.graph.initializer:
        tensor.name = "t" if tensor.name == "b" else tensor.name
    for name in ("gain", "b", "mean", "variance"):
        values = rng.uniform(0.5, 2, outputs).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model.graph.node.append(node("BatchNormalization", "raw gain b mean variance", "y", epsilon=1e-3))
    return model


LINEAR = {
    "conv": conv((6, 4, 3, 3)),
    "conv-no-bias": conv((6, 4, 3, 3), bias=False),
    "conv-1x1": conv((6, 4, 1, 1)),
    "conv-strides": conv((6, 4, 3, 2), strides=[2, 3]),
    "conv-dilations": conv((6, 4, 3, 2), dilations=[2, 3]),
    "conv-asymmetric-pads": conv((6, 4, 3, 3), pads=[0, 2, 1, 1], strides=[2, 1]),
    "conv-pads-wider-than-the-kernel": conv((6, 4, 2, 2), pads=[3, 3, 3, 3]),
    "conv-same-upper": conv((6, 4, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv-same-lower": conv((6, 4, 4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv-valid": conv((6, 4, 3, 3), auto_pad="VALID", strides=[2, 2]),
    "conv-groups": conv((6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    "conv-depthwise": conv((4, 1, 3, 3), group=4, strides=[2, 2]),
    "conv-depthwise-multiplier": conv((8, 1, 3, 3), group=4, bias=False),
    "conv-1d": conv((6, 4, 5), (2, 4, 11), strides=[2], pads=[2, 1]),
    "conv-1d-same-lower": conv((6, 4, 4), (2, 4, 11), auto_pad="SAME_LOWER"),
    "conv-3d": conv((6, 2, 2, 3, 2), (2, 4, 5, 6, 4), group=2, dilations=[2, 1, 3], pads=[1, 0, 2, 0, 1, 1]),
    "conv-3d-same-upper": conv((6, 4, 2, 3, 2), (2, 4, 5, 6, 4), auto_pad="SAME_UPPER", strides=[2, 1, 2]),
    "transpose": up((4, 6, 3, 3)),
    "transpose-no-bias": up((4, 6, 2, 2), bias=False, strides=[2, 2]),
    "transpose-strides": up((4, 6, 3, 2), strides=[2, 3], pads=[1, 0, 0, 1]),
    "transpose-output-padding": up((4, 6, 3, 3), strides=[2, 3], output_padding=[1, 2], pads=[1, 1, 1, 1]),
    "transpose-dilations": up((4, 6, 3, 2), dilations=[2, 3], strides=[1, 2]),
    "transpose-groups": up((4, 3, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
    "transpose-depthwise": up((4, 1, 2, 2), group=4, strides=[2, 2]),
    "transpose-same-upper": up((4, 6, 3, 4), auto_pad="SAME_UPPER", strides=[2, 1]),
    "transpose-same-lower": up((4, 6, 3, 4), auto_pad="SAME_LOWER", strides=[2, 1]),
    "transpose-valid": up((4, 6, 3, 3), auto_pad="VALID", strides=[2, 2]),
    "transpose-output-shape": up((4, 6, 4, 3), strides=[2, 2], output_shape=[9, 12]),
    "transpose-output-shape-upper": up((4, 6, 4, 3), strides=[2, 2], output_shape=[9, 12], auto_pad="SAME_UPPER"),
    "transpose-output-shape-lower": up((4, 6, 4, 3), strides=[2, 2], output_shape=[9, 12], auto_pad="SAME_LOWER"),
    "transpose-1d": up((4, 6, 5), (2, 4, 7), strides=[3], pads=[2, 0]),
    "transpose-3d": up((4, 3, 2, 3, 2), (2, 4, 3, 4, 3), group=2, strides=[2, 1, 2], pads=[1, 0, 0, 0, 1, 1]),
    "gemm": gemm(),
    "gemm-no-bias": gemm(None),
    "gemm-transposed": gemm(w=(6, 5), transB=1),
    "gemm-scaled": gemm(w=(6, 5), transB=1, alpha=0.25),
    "gemm-bias-of-a-row": gemm((1, 6)),
    "matmul": product((7, 5), bias=""),
    "matmul-bias": product((7, 5)),
    "matmul-bias-first": product((7, 5), bias="b h"),
    "matmul-rank-3": product((2, 3, 5)),
    "matmul-rank-4": product((2, 3, 4, 5), bias=""),
    "normalised-conv": normalised(conv((6, 4, 3, 3), bias=False), 6),
    "normalised-conv-bias": normalised(conv((6, 2, 3, 3), group=2), 6),
    "normalised-transpose": normalised(up((4, 3, 3, 3), group=2), 6),
    "normalised-gemm": normalised(gemm(w=(6, 5), transB=1, alpha=0.25), 6),
    "normalised-matmul": normalised(product((7, 5)), 6),
}


@pytest.mark.parametrize("rows", [ALL, 13], ids=["all", "some"])
@pytest.mark.parametrize("name", LINEAR)
def test_the_result_is_rows_times_the_matrix(name, rows):
    graph = from_model(LINEAR[name])
    (reader,) = find_readers(graph)
    rng = np.random.default_rng(1)
    x = rng.standard_normal(graph.shape("x")).astype(np.float32)
    y = open_session(LINEAR[name].SerializeToString()).run({"x": x})["y"]
    weight = graph.array(reader.weight)
    at = places(reader, y.shape, rows, rng)
    seen = inputs_at(reader, x, at, weight.shape[2:] if reader.spatial else (), y.shape[2:])
    assert len(at[0]) == min(rows, y.size // y.shape[reader.channel_axis])
    assert len(set(zip(*(i.tolist() for i in at), strict=True))) == len(at[0])
    assert seen.shape == (reader.groups, len(at[0]), columns(reader, weight.shape))
    got = seen @ matrix(reader, weight)
    if reader.bias is not None:
        got += bias_of(reader, graph.array(reader.bias))[:, None]
    want = outputs_at(reader, y, at)
    assert np.abs(got.transpose(1, 0, 2).reshape(want.shape) - want).max() < 1e-5 * want.std()
    assert want.std() > 0.1


@pytest.mark.parametrize("name", LINEAR)
def test_the_matrix_is_the_weight(name):
    graph = from_model(LINEAR[name])
    (reader,) = find_readers(graph)
    weight = graph.array(reader.weight)
    for values in (weight, weight.astype(np.float16)):
        back = weight_of(reader, matrix(reader, values), values)
        assert back.dtype == values.dtype
        np.testing.assert_allclose(back, values, rtol=1e-6 if reader.norm else 0)


def test_the_constant_of_a_bias_is_what_it_was():
    for name in ("conv", "gemm-bias-of-a-row", "normalised-conv-bias", "normalised-matmul"):
        graph = from_model(LINEAR[name])
        (reader,) = find_readers(graph)
        values = graph.array(reader.bias)
        back = bias_constant(reader, bias_of(reader, values), values)
        assert back.shape == values.shape
        np.testing.assert_allclose(back, values, rtol=1e-5)


def test_a_weight_stays_where_a_batch_normalization_lets_nothing_through():
    model = normalised(conv((6, 4, 3, 3), bias=False), 6)
    gain = next(t for t in model.graph.initializer if t.name == "gain")
    gain.CopyFrom(onnx.numpy_helper.from_array(np.float32([1, 1, 0, 1, 1e-20, 1]), "gain"))
    graph = from_model(model)
    (reader,) = find_readers(graph)
    values = graph.array(reader.weight)
    moved = weight_of(reader, matrix(reader, values) + 1, values)
    assert np.isfinite(moved).all()
    assert [bool((a == b).all()) for a, b in zip(moved, values, strict=True)] == [i in (2, 4) for i in range(6)]


@pytest.mark.parametrize("name", [n for n in LINEAR if "no-bias" not in n])
def test_a_bias_is_found(name):
    graph = from_model(LINEAR[name])
    (reader,) = find_readers(graph)
    assert (reader.bias is not None) == ("b" in graph.users)


@pytest.mark.parametrize(
    ("nodes", "shapes"),
    [
        ([node("Conv", "x w", "h"), node("Conv", "x w", "i"), node("Add", "h i", "y")], {"w": (4, 4, 1, 1)}),
        ([node("Conv", "x w", "h"), node("ReduceMean", "w", "m"), node("Add", "h m", "y")], {"w": (4, 4, 1, 1)}),
        ([node("DequantizeLinear", "q s", "w"), node("Conv", "x w", "y")], {}),
        ([node("Flatten", "x", "f", axis=2), node("Gemm", "f w", "y", transA=1)], {"w": (8, 3)}),
        ([node("Flatten", "x", "f"), node("Gemm", "f w b", "y", beta=0.5)], {"w": (36, 3), "b": (3,)}),
        ([node("Flatten", "x", "f"), node("Gemm", "f w", "y", alpha=0.0)], {"w": (36, 3)}),
        ([node("Flatten", "x", "f"), node("Gemm", "f w b", "y")], {"w": (36, 3), "b": (2, 3)}),
        ([node("Flatten", "x", "f"), node("Gemm", "f w b", "y")], {"w": (36, 3), "b": ()}),
        ([node("Flatten", "x", "f"), node("Gemm", "f w b", "y")], {"w": (36, 3), "b": (1,)}),
        ([node("MatMul", "w x", "y")], {"w": (5, 3)}),
        ([node("MatMul", "x w", "y")], {"w": (4, 3, 5)}),
        ([node("MatMul", "x w", "y")], {"w": (3,)}),
        ([node("MatMul", "x x", "y")], {}),
        ([node("Reshape", "x flat", "v"), node("MatMul", "v w", "y")], {"w": (72, 3)}),
        ([node("Conv", "x w b", "h"), node("Conv", "h v b", "y")], {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1), "b": (4,)}),
    ],
    ids=["shared", "read-elsewhere", "dequantized", "transA", "beta", "alpha-0", "bias-of-a-matrix", "bias-scalar",
         "bias-of-one", "constant-left", "rank-3", "rank-1", "no-constant", "vector", "shared-bias"],
)  # fmt: skip
def test_what_is_no_reader(nodes, shapes):
    constants = weights(**shapes) | {"q": np.ones((4, 4, 1, 1), np.int8), "s": np.float32(0.1), "flat": ints(-1)}
    used = {n for made in nodes for n in made.input}
    held = {k: v for k, v in constants.items() if k in used}
    graph = from_model(build(nodes, {"x": (2, 4, 3, 3)}, ["y"], held))
    assert find_readers(graph) == []


def test_a_merged_zero_bias_stays_but_the_layer_is_a_reader():
    """Exporters merge equal constants; zeros change nothing."""
    nodes = [node("Conv", "x w b", "h"), node("Conv", "h v b", "y")]
    constants = weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1)) | {"b": np.zeros(4, np.float32)}
    readers = find_readers(from_model(build(nodes, {"x": (2, 4, 3, 3)}, ["y"], constants)))
    assert [(r.weight, r.bias) for r in readers] == [("w", None), ("v", None)]


def test_a_shared_or_wide_summand_is_no_bias_of_a_product():
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "i"), node("MatMul", "i v", "j"), node("Add", "j b", "k"),
             node("MatMul", "k u", "l"), node("Add", "l c", "y")]  # fmt: skip
    constants = weights(w=(5, 5), v=(5, 5), u=(5, 5), b=(5,), c=(3, 5))
    readers = find_readers(from_model(build(nodes, {"x": (3, 5)}, ["y"], constants)))
    assert [(r.weight, r.bias, r.result) for r in readers] == [("w", None, "h"), ("v", None, "j"), ("u", None, "l")]


@pytest.mark.parametrize("group", [0, -1, 3, 2], ids=str)
def test_a_group_that_does_not_fit_makes_no_reader(group):
    """Nor a crash: the file is untrusted."""
    model = conv((4, 4, 1, 1))
    model.graph.node[0].attribute.append(helper.make_attribute("group", group))
    assert find_readers(from_model(model)) == []


def test_a_weight_of_another_rank_makes_no_reader():
    model = conv((4, 4, 1, 1), bias=False)
    model.graph.initializer[0].dims[:] = [4, 4]
    assert find_readers(from_model(model)) == []


def test_many_rows_of_far_more():
    """They are read one by one then; NumPy's ``unravel_index`` is wrong beyond 8,192 of a column (its issue 31980)."""
    graph = from_model(conv((2, 3, 1, 1), x=(2, 3, 260, 260)))
    (reader,) = find_readers(graph)
    source = np.random.default_rng(0).standard_normal((2, 3, 260, 260)).astype(np.float32)
    at = places(reader, (2, 2, 260, 260), 12_000, np.random.default_rng(0))
    seen = inputs_at(reader, source, at, (1, 1), (260, 260))
    assert (seen[0] == source[at[0], :, at[1], at[2]]).all()
