"""Synthetic inputs: like photographs, like text, like signals, and fitted to what a BatchNormalization remembers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter import load
from exporter.calibration.data import calibration_of
from exporter.sessions import with_outputs
from exporter.synthetic import first_layer, synthetic_samples
from runtime.backends import open_session
from runtime.errors import BadRequest
from tests.onnx_builder import build, node, weights


def graph_of(nodes, inputs, constants, tmp_path, kinds=None):
    path = tmp_path / "plain.onnx"
    onnx.save(build(nodes, inputs, [nodes[-1].output[0]], constants, kinds=kinds), path)
    return load(path)


def values(samples, name):
    return np.concatenate([feeds[name] for feeds in samples.batches(16)])


def network(tmp_path, *, scale=1.0, shift=0.0, last=False, bias=False):
    """A convolution and a BatchNormalization that has seen textured images of this scale and shift."""
    w = weights(3, w=(8, 3, 3, 3), b=(8,), g=(8,), o=(8,))
    constants = {**w, "m": np.zeros(8, np.float32), "v": np.ones(8, np.float32)}
    moved = [node("Transpose", "image", "first", perm=[0, 3, 1, 2])] if last else []
    conv = node("Conv", f"{'first' if last else 'image'} w" + (" b" if bias else ""), "c", pads=[1, 1, 1, 1])
    nodes = [*moved, conv, node("BatchNormalization", "c g o m v", "n"), node("Relu", "n", "y")]
    inputs = {"image": ("N", 32, 32, 3) if last else ("N", 3, 32, 32)}
    path = tmp_path / "model.onnx"
    onnx.save(build(nodes, inputs, ["y"], constants), path)
    seen = values(synthetic_samples(graph_without(tmp_path), 64, 9), "image") * scale + shift
    session = open_session(with_outputs(onnx.load(path), ["c"]))
    found = session.run({"image": seen.transpose(0, 2, 3, 1).copy() if last else seen}, ["c"])["c"]
    constants["m"], constants["v"] = found.mean((0, 2, 3)), found.var((0, 2, 3))
    onnx.save(build(nodes, inputs, ["y"], constants), path)
    return load(path)


def graph_without(tmp_path):
    """A convolution without statistics."""
    return graph_of([node("Conv", "image w", "y")], {"image": ("N", 3, 32, 32)}, weights(w=(2, 3, 3, 3)), tmp_path)


# -- images -----------------------------------------------------------------------------------------------------


def test_a_sequence_is_told_from_a_tensor(tmp_path):
    model = build([node("Relu", "x", "y")], {"x": (3,)}, ["y"], {"at": np.array(0)})
    model.graph.node.insert(0, node("SequenceAt", "s at", "x"))
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BadRequest, match="a sequence or an optional value cannot be fed"):
        synthetic_samples(load(tmp_path / "model.onnx"), 4)


def test_a_model_that_takes_no_samples(tmp_path):
    graph = graph_of([node("Relu", "x", "y")], {"x": (0, 16)}, {}, tmp_path)
    with pytest.raises(BadRequest, match=r"input x\[0, 16\] takes no samples"):
        synthetic_samples(graph, 16)


def test_enough_are_made_up_where_each_is_a_run(tmp_path):
    graph = graph_of(
        [node("Add", "x flag", "y")], {"x": ("N", 16), "flag": (1,)}, {}, tmp_path
    )  # an input without samples, as merged decoders have
    assert graph.batch == 2
    found = calibration_of("synthetic", graph, limit=16)
    assert found.used == 16


def test_images_are_like_photographs(tmp_path):
    pixels = values(synthetic_samples(graph_without(tmp_path), 100, 0), "image").astype(np.float64)
    assert pixels.shape == (100, 3, 32, 32)
    assert abs(pixels.mean()) < 0.25
    assert 0.6 < pixels.std() < 1.2
    beside = np.corrcoef(pixels[..., :-1].ravel(), pixels[..., 1:].ravel())[0, 1]
    assert beside > 0.8, "neighbours are alike"
    colours = np.corrcoef(pixels.transpose(1, 0, 2, 3).reshape(3, -1))
    assert colours[np.triu_indices(3, 1)].min() > 0.7
    power = (np.abs(np.fft.fft2(pixels)) ** 2).mean((0, 1))
    assert 8 < power[0, 1] / power[0, 4] < 64, "about 1 / f^2: 16 at four times the frequency"
    assert pixels.mean((1, 2, 3)).std() > 0.2, "brightness differs"
    assert pixels.std((1, 2, 3)).std() > 0.1, "contrast differs"


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_statistics_are_matched(last, bias, tmp_path):
    """A model that takes pixels from 0 to 255: noise of zero mean and unit variance would be nothing to it."""
    graph = network(tmp_path, scale=60.0, shift=120.0, last=last, bias=bias)
    samples = synthetic_samples(graph, 64, 1)
    assert "fitted to the statistics" in samples.notes[-1]
    session = open_session(with_outputs(onnx.load(tmp_path / "model.onnx"), ["c"]))
    found = np.concatenate([session.run(f, ["c"])["c"] for f in samples.batches(16)])
    mean, variance = graph.array("m"), graph.array("v")
    assert np.corrcoef(found.mean((0, 2, 3)), mean)[0, 1] > 0.95
    ratio = found.var((0, 2, 3)) / variance
    assert np.exp(np.abs(np.log(ratio)).mean()) < 1.6, ratio
    white = np.random.default_rng(0).standard_normal((16, *samples.inputs[0].shape[1:]))
    plain = session.run({"image": white.astype(np.float32)}, ["c"])["c"]
    assert (plain.var((0, 2, 3)) / variance).max() < 0.05


SPOILT = {
    "a kernel as large as the image": lambda m: (
        replace(m, "w", np.ones((8, 3, 33, 33), np.float32)),
        m.graph.node[0].attribute[0].ints.__setitem__(slice(None), [16] * 4),
    ),
    "statistics that come from elsewhere": lambda m: m.graph.initializer.remove(
        next(t for t in m.graph.initializer if t.name == "v")
    ),
    "a negative variance": lambda m: replace(m, "v", np.full(8, -1, np.float32)),
    "not a number": lambda m: replace(m, "m", np.full(8, np.nan, np.float32)),
    "a convolution in groups": lambda m: (
        replace(m, "w", weights(0, w=(9, 1, 3, 3))["w"]),
        m.graph.node[0].attribute.append(onnx.helper.make_attribute("group", 3)),
        [replace(m, n, np.ones(9, np.float32)) for n in "gomv"],
    ),
}


def replace(model, name, array):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


@pytest.mark.parametrize("case", SPOILT)
def test_statistics_that_cannot_be_used(case, tmp_path):
    assert first_layer(network(tmp_path), "image", 3) is not None
    model = onnx.load(tmp_path / "model.onnx")
    SPOILT[case](model)
    if "elsewhere" in case:
        model.graph.input.append(onnx.helper.make_tensor_value_info("v", 1, [8]))
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    assert first_layer(graph, "image", 3) is None
    samples = synthetic_samples(graph, 4, 0)
    assert samples.notes[0].startswith("inputs are synthetic: accuracy is unmeasured")
    assert not [n for n in samples.notes if "fitted" in n]
    assert all(np.isfinite(f["image"]).all() for f in samples.batches(2))


# -- other inputs -----------------------------------------------------------------------------------------------


def test_ids_follow_zipf(tmp_path):
    graph = graph_of([node("Gather", "t ids", "y")], {"ids": ("N", "S")}, weights(t=(500, 4)), tmp_path, {"ids": "i"})
    ids = values(synthetic_samples(graph, 200, 0), "ids")
    assert ids.dtype == np.int64
    assert 0 <= ids.min() <= ids.max() < 500
    counts = np.sort(np.bincount(ids.ravel(), minlength=500))[::-1]
    assert counts[0] > 20 * ids.size / 500 / 2, "one id is frequent"
    assert counts.argmax() == 0 != np.bincount(ids.ravel()).argmax(), "which one, nothing tells"


def test_few_ids_are_uniform_and_flags_are_set(tmp_path):
    nodes = [node("Gather", "t ids", "a"), node("Unsqueeze", "mask one", "u"), node("Cast", "u", "m", to=1),
             node("Mul", "a m", "y")]  # fmt: skip
    constants = {**weights(t=(4, 3)), "one": np.array([2])}
    graph = graph_of(nodes, {"ids": ("N", "S"), "mask": ("N", "S")}, constants, tmp_path, {"ids": "i", "mask": "i"})
    samples = synthetic_samples(graph, 100, 0)
    counts = np.bincount(values(samples, "ids").ravel(), minlength=4)
    assert counts.min() > 0.8 * counts.mean()
    assert (values(samples, "mask") == 1).all()


def test_signals_are_correlated_along_the_longest_axis(tmp_path):
    graph = graph_of([node("MatMul", "x w", "y")], {"x": ("N", 64, 5)}, weights(w=(5, 2)), tmp_path)
    found = values(synthetic_samples(graph, 200, 0), "x")
    assert 0.85 < np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1] < 0.95
    assert abs(np.corrcoef(found[..., 0].ravel(), found[..., 1].ravel())[0, 1]) < 0.1
    assert 0.9 < found.std() < 1.1


def test_inputs_without_a_batch_axis(tmp_path):
    nodes = [node("Mul", "x rate", "z"), node("ReduceSum", "h", "s", keepdims=0), node("Add", "z s", "y")]
    graph = graph_of(nodes, {"x": ("N", 8), "rate": (), "h": (2, "N", 3)}, {}, tmp_path)
    samples = synthetic_samples(graph, 8, 0)
    feeds = list(samples.batches(4))
    assert len(feeds) == len(samples) == 4, "runs of two"
    assert [feeds[0][n].shape for n in ("x", "rate", "h")] == [(2, 8), (), (2, 2, 3)]
    open_session((tmp_path / "plain.onnx").read_bytes()).run(feeds[0])


def test_a_fixed_batch_is_filled(tmp_path):
    graph = graph_of([node("MatMul", "x w", "y")], {"x": (4, 5)}, weights(w=(5, 2)), tmp_path)
    assert [f["x"].shape for f in synthetic_samples(graph, 6, 0).batches(1)] == [(4, 5), (4, 5)]


def test_seeds(tmp_path):
    graph = graph_without(tmp_path)
    one, again, other = (synthetic_samples(graph, 6, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(values(one, "image"), values(again, "image"))
    assert not np.array_equal(values(one, "image"), values(other, "image"))
    assert one.digest == again.digest
    assert len({one.digest, other.digest, one.part(0, 3).digest, one.part(3, 6).digest}) == 4
    images = values(one, "image")
    assert len({i.tobytes() for i in images}) == 6
    np.testing.assert_array_equal(values(one.part(2, 4), "image"), images[2:4])


def test_refused(tmp_path):
    with pytest.raises(BadRequest, match="at least 1"):
        synthetic_samples(graph_without(tmp_path), 0, 0)


def test_an_input_of_unknown_shape_is_told_from_one_of_no_numbers(tmp_path):
    model = build([node("Relu", "x", "y")], {"x": ("N", 3)}, ["y"], {})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BadRequest, match=r"'x' declares no shape.*--shape x:"):
        synthetic_samples(load(tmp_path / "model.onnx"), 4, 0)
    assert values(synthetic_samples(load(tmp_path / "model.onnx", {"x": (2, 3)}), 4, 0), "x").shape == (4, 3)
