"""Padding and aligning: outputs stay, widths are multiples, and what cannot be padded is found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter import aligning as module
from exporter import find_groups, load
from exporter.aligning import align_file
from exporter.errors import GoalError, UsageError
from exporter.model_file import from_model, save
from exporter.padding import may_pad, pad
from runtime import feeds
from runtime.backends import SessionOptions, open_session
from runtime.comparison import Comparison, Goal, Side, verdict_of
from runtime.robust import Ratio
from runtime.runners import Asked
from runtime.staircase import KINDS, WIDTHS, Staircase
from tests.onnx_builder import build, ints, node, weights

MODELS = Path(__file__).parents[2] / "models"


def plain():
    nodes = [node("Conv", "x a b", "c"), node("Sigmoid", "c", "s"), node("Conv", "s d", "y")]
    return build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], weights(a=(7, 3, 3, 3), b=(7,), d=(5, 7, 1, 1)))


def normalised():
    nodes = [
        node("Conv", "x a", "c"), node("BatchNormalization", "c g b m v", "n"), node("Relu", "n", "r"),
        node("Conv", "r d", "y"),
    ]  # fmt: skip
    constants = weights(a=(7, 3, 3, 3), g=(7,), b=(7,), m=(7,), d=(5, 7, 1, 1)) | {"v": np.linspace(1, 2, 7, dtype="f")}
    return build(nodes, {"x": [2, 3, 6, 6]}, ["y"], constants)


def depthwise():
    nodes = [
        node("Conv", "x a", "c"), node("Conv", "c w", "d", group=6, pads=[1, 1, 1, 1]), node("Relu", "d", "r"),
        node("Conv", "r p", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 3, 6, 6]}, ["y"], weights(a=(6, 3, 1, 1), w=(6, 1, 3, 3), p=(4, 6, 1, 1)))


def joined():
    """Two layers side by side: new channels lie in the middle of the joined axis."""
    nodes = [
        node("Conv", "x a", "c"), node("Conv", "x b", "d"), node("Concat", "c d", "j", axis=1),
        node("Conv", "j e", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 3, 5, 5]}, ["y"], weights(a=(5, 3, 1, 1), b=(6, 3, 1, 1), e=(4, 11, 1, 1)))


def flattened():
    """Each channel is sixteen positions of the flat axis."""
    nodes = [
        node("Conv", "x a", "c"), node("Relu", "c", "r"), node("Reshape", "r shape", "f"), node("MatMul", "f w", "y")
    ]  # fmt: skip
    constants = weights(a=(5, 3, 1, 1), w=(80, 4)) | {"shape": ints(2, 80)}
    return build(nodes, {"x": [2, 3, 4, 4]}, ["y"], constants)


def split():
    """One product whose halves go apart: the sizes of the Split follow."""
    nodes = [node("MatMul", "x w", "h"), node("Split", "h sizes", "p q", axis=1), node("MatMul", "p u", "a")]
    nodes += [node("MatMul", "q v", "b"), node("Add", "a b", "y")]
    constants = weights(w=(4, 14), u=(7, 3), v=(7, 3)) | {"sizes": ints(7, 7)}
    return build(nodes, {"x": [2, 4]}, ["y"], constants)


def attention():
    nodes = [
        node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k"), node("Transpose", "k", "t", perm=[0, 2, 1]),
        node("MatMul", "q t", "s"), node("Softmax", "s", "p"), node("MatMul", "x wv", "v"), node("MatMul", "p v", "o"),
        node("MatMul", "o wo", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": [2, 5, 6]}, ["y"], weights(wq=(6, 7), wk=(6, 7), wv=(6, 7), wo=(7, 4)))


def shared():
    """One vector is the bias of two layers of different widths to be."""
    nodes = [node("Conv", "x a b", "c"), node("Relu", "c", "r"), node("Conv", "r d b", "e"), node("Conv", "e f", "y")]
    return build(nodes, {"x": [1, 3, 5, 5]}, ["y"], weights(a=(7, 3, 1, 1), b=(7,), d=(7, 7, 1, 1), f=(3, 7, 1, 1)))


LOSSLESS = {
    "plain": plain, "normalised": normalised, "depthwise": depthwise, "joined": joined, "flattened": flattened,
    "split": split, "attention": attention, "shared": shared,
}  # fmt: skip


def outputs(model_bytes, seed=0):
    session = open_session(model_bytes, options=SessionOptions(optimize=False))
    shapes = {s.name: tuple(d if isinstance(d, int) else 2 for d in s.shape) for s in session.inputs}
    return session.run(feeds.seeded(session.inputs, shapes, seed))


def saved(graph, folder):
    save(graph, folder / "padded.onnx")
    return (folder / "padded.onnx").read_bytes()


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("extra", [1, 3])
def test_padding_is_lossless(name, extra, tmp_path):
    model = LOSSLESS[name]()
    groups = find_groups(from_model(model))
    assert len(groups)
    for chosen in ([g.name for g in groups], [groups.groups[0].name]):
        padded = pad(groups, dict.fromkeys(chosen, extra))
        assert {g.name: g.width for g in find_groups(padded)} == {
            g.name: g.width + extra * (g.name in chosen) for g in groups
        }
        data = saved(padded, tmp_path)
        before, after = outputs(model.SerializeToString()), outputs(data)
        for output, want in before.items():
            np.testing.assert_allclose(after[output], want, rtol=1e-5, atol=1e-5 * want.std())
        assert len(data) > len(model.SerializeToString())


def test_a_mean_over_the_units_is_found_out(tmp_path):
    """A layer normalisation sees the zeros."""
    nodes = [node("MatMul", "x w", "h"), node("LayerNormalization", "h g b", "n"), node("MatMul", "n v", "y")]
    constants = weights(w=(4, 7), g=(7,), b=(7,), v=(7, 3))
    onnx.save(build(nodes, {"x": [2, 4]}, ["y"], constants), tmp_path / "m.onnx")
    with pytest.raises(GoalError, match="no width can be padded without changing the outputs") as caught:
        align_file(tmp_path / "m.onnx", tmp_path / "out.onnx", Asked(), to=8)
    assert "zeros would change the outputs" in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("last", "kind"),
    [(node("ArgMax", "n", "y", axis=1), "i"), (node("Greater", "n zero", "y"), "b")],
    ids=["whole numbers", "booleans"],
)
def test_answers_are_judged_by_the_numbers_behind_them(last, kind, tmp_path):
    """Whatever comes out as whole numbers or booleans: a mean over the units changes what they come from."""
    nodes = [node("MatMul", "x w", "h"), node("LayerNormalization", "h g b", "l"), node("MatMul", "l v", "n"), last]
    constants = weights(w=(4, 7), g=(7,), b=(7,), v=(7, 3)) | {"zero": np.float32(0)}
    model = build(nodes, {"x": [2, 4]}, ["y"], constants, kinds={"y": kind})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(GoalError, match="zeros would change the outputs"):
        align_file(tmp_path / "m.onnx", tmp_path / "out.onnx", Asked(), to=8)


def test_whole_numbers_that_come_from_none_are_compared(tmp_path, device):
    nodes = [node("Conv", "x a", "c"), node("Relu", "c", "r"), node("Conv", "r d", "e"), node("Shape", "e", "y")]
    model = build(nodes, {"x": [1, 3, 6, 6]}, ["y"], weights(a=(7, 3, 1, 1), d=(4, 7, 1, 1)), kinds={"y": "i"})
    onnx.save(model, tmp_path / "m.onnx")
    assert align_file(tmp_path / "m.onnx", tmp_path / "out.onnx", Asked(), to=8).error == 0


def test_quantized_weights_are_left_alone():
    nodes = [
        node("DequantizeLinear", "w s z", "d", axis=0), node("MatMul", "x d", "h"), node("Relu", "h", "r"),
        node("MatMul", "r v", "y"),
    ]  # fmt: skip
    constants = weights(v=(6, 3)) | {
        "w": np.arange(24, dtype=np.uint8).reshape(4, 6), "s": np.float32(0.1), "z": np.uint8(7)
    }  # fmt: skip
    groups = find_groups(from_model(build(nodes, {"x": [2, 4]}, ["y"], constants)))
    assert len(groups)
    assert not any(may_pad(groups, g) for g in groups)


# -- align, with a measurement of our own ---------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """A device whose staircase and clock are set here. ``took`` gives the ratio for the widths of the padded model."""

    class Device:
        block, seen, took = 8, [], staticmethod(lambda widths: 0.5)

    def staircase(*_, **__):
        curve = {w: -(-w // Device.block) * 1e-5 for w in WIDTHS}
        return Staircase("ort-cpu", 1, dict.fromkeys(KINDS, curve))

    def compare(first, other, asked, **_):
        widths = tuple(g.width for g in find_groups(load(other)))
        Device.seen.append(widths)
        value = Device.took(widths)
        ratio = Ratio(value, value * 0.99, value * 1.01)
        side = Side("m", "ort-cpu", 1, {}, np.ones(1), np.ones(1), np.ones(1), np.zeros(1, bool))
        return Comparison(side, side, "cpu", ratio, ratio, verdict_of(ratio), 4, Goal(), None, ())

    Device.seen = []
    monkeypatch.setattr(module, "staircase", staircase)
    monkeypatch.setattr(module, "compare_models", compare)
    return Device


@pytest.fixture
def model(tmp_path):
    onnx.save(depthwise(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_what_is_faster_is_written(device, model, tmp_path):
    found = align_file(model, tmp_path / "out.onnx", Asked())
    assert [(p.before, p.after) for p in found.paddings] == [(6, 8)]
    assert found.error < 1e-6
    assert found.comparison.ratio.value == 0.5
    for name, want in outputs(model.read_bytes()).items():
        got = outputs((tmp_path / "out.onnx").read_bytes())[name]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_of_two_paddings_the_faster_is_kept(device, tmp_path):
    nodes = [node("Conv", "x a", "c"), node("Relu", "c", "r"), node("Conv", "r d", "y")]
    onnx.save(build(nodes, {"x": [1, 3, 6, 6]}, ["y"], weights(a=(33, 3, 1, 1), d=(4, 33, 1, 1))), tmp_path / "m.onnx")
    for slow, kept in ((40, 36), (36, 40)):
        device.took = lambda widths, slow=slow: 0.9 if widths == (slow,) else 0.6
        found = align_file(tmp_path / "m.onnx", tmp_path / "out.onnx", Asked())
        assert [p.after for p in found.paddings] == [kept]
    assert set(device.seen) == {(40,), (36,)}


@pytest.mark.parametrize(("ratio", "text"), [(1.02, "it takes 1.020"), (0.997, "it takes 0.997")])
def test_what_is_not_faster_is_not_written(ratio, text, device, model, tmp_path):
    device.took = lambda _: ratio
    with pytest.raises(GoalError, match=text):
        align_file(model, tmp_path / "out.onnx", Asked())
    assert not (tmp_path / "out.onnx").exists()


def test_an_aligned_model_has_nothing_to_pad(device, tmp_path):
    with pytest.raises(GoalError, match="every width that could be padded is aligned already"):
        align_file(MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", Asked())
    assert device.seen == []


@pytest.mark.parametrize(
    ("to", "output", "text"), [(1, "o.onnx", "--to 1"), (None, "no/o.onnx", "cannot be written"), (8, ".", "folder")]
)
def test_wrong_requests(to, output, text, model, tmp_path):
    with pytest.raises(UsageError, match=text):
        align_file(model, tmp_path / output, Asked(), to=to)
