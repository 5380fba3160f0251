"""Tables of embeddings in 8 bits: rows and their scales are gathered alike, and the file is a quarter of its size."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from exporter.cli import main
from exporter.quantization.layers import layers_of
from runtime.backends import open_session
from tests.exporter.files import write
from tests.onnx_builder import build, node, weights

ROWS, WIDTH = 300, 16
IDS = np.array([[0, 5, -1], [299, 7, -300]])


def recommender(**options):
    """Two look-ups in one table, one in another of its own, and a layer."""
    constants = weights(t=(ROWS, WIDTH), u=(ROWS, WIDTH), w=(3 * WIDTH, 4))
    constants["t"] *= np.geomspace(1e-3, 1e3, ROWS, dtype=np.float32)[:, None]  # each row needs a scale of its own
    constants |= {"k": np.array(3), "shape": np.array([0, 3, 1])}
    nodes = [
        node("Gather", "t ids", "a", **options), node("Gather", "u ids", "b"), node("Gather", "t k", "c"),
        node("Mul", "a c", "d"), node("Concat", "a b d", "e", axis=-1), node("MatMul", "e w", "y"),
    ]  # fmt: skip
    return build(nodes, {"ids": ["N", 3]}, ["y", "a", "b", "c"], constants, kinds={"ids": "i"})


def quantized(path, *options):
    out = path.with_name("out.onnx")
    assert main(["quantize", str(path), "-o", str(out), "--seconds", "0", "-q", *options]) == 0
    return out


def outputs(path):
    return open_session(path).run({"ids": IDS})


def kinds(path):
    """Element types of the constants of two axes and more, scales aside."""
    tensors = onnx.load(path).graph.initializer
    return {
        t.name.removesuffix("_quantized"): t.data_type for t in tensors if len(t.dims) > 1 and "scale" not in t.name
    }


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_each_row_has_a_scale(precision, tmp_path):
    """However large the others are; ids count from the end, or are one number."""
    path = write(recommender(), tmp_path)
    out = quantized(path, "--precision", precision)
    assert kinds(out)["t"] == kinds(out)["u"] == onnx.TensorProto.INT8
    want, got = outputs(path), outputs(out)
    for name in "abc":
        assert got[name].shape == want[name].shape
        step = np.abs(want[name]).max(-1, keepdims=True) / 127
        assert (np.abs(got[name] - want[name]) <= 0.501 * step).all()
        assert (got[name] != want[name]).any()
    assert out.stat().st_size < 0.45 * path.stat().st_size


@pytest.mark.parametrize("keep", ["t", "c", "u", "w"])
def test_what_is_kept_stays(keep, tmp_path):
    """One look-up of two: the table is there twice then."""
    path = write(recommender(), tmp_path)
    out = quantized(path, "--precision", "int8-weight", "--keep", keep)
    want, got = outputs(path), outputs(out)
    alike = {name for name in "abc" if (got[name] == want[name]).all()}
    assert alike == {"t": {"a", "c"}, "c": {"c"}, "u": {"b"}, "w": set()}[keep]


def calibrated(tmp_path, **arrays):
    np.savez(tmp_path / "ids.npz", **arrays)
    return ["--calib", str(tmp_path / "ids.npz")]


@pytest.mark.parametrize("precision", ["int8-weight", "int8"])
def test_tensorrt_does_not_gather_integers(precision, tmp_path):
    path = write(recommender(), tmp_path)
    calib = calibrated(tmp_path, ids=np.random.default_rng(0).integers(0, ROWS, (64, 3)))
    out = quantized(path, "--precision", precision, "--profile", "tensorrt", *(calib if precision == "int8" else []))
    assert kinds(out)["t"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("keep", ["", "t", "w"])
def test_between_integers_rows_have_scales_too(precision, keep, tmp_path):
    """Layers read what the rows stand for, rounded for them."""
    path = write(recommender(), tmp_path)
    calib = calibrated(tmp_path, ids=np.random.default_rng(0).integers(0, ROWS, (64, 3)))
    out = quantized(path, "--precision", precision, *calib, *(["--keep", keep] if keep else []))
    found = kinds(out)
    assert found["u"] == onnx.TensorProto.INT8
    assert found["t"] == (onnx.TensorProto.FLOAT if keep == "t" else onnx.TensorProto.INT8)
    assert (found["w"] == onnx.TensorProto.FLOAT) == (keep == "w")
    want, got = outputs(path), outputs(out)
    for name in "abc" if keep != "t" else "b":
        step = np.abs(want[name]).max(-1, keepdims=True) / 127
        assert (np.abs(got[name] - want[name]) <= 0.501 * step).all()
        assert (got[name] != want[name]).any()
    assert np.square(got["y"] - want["y"]).mean() < 1e-3 * want["y"].var()


def test_the_drop_is_kept(tmp_path, capsys):
    path = write(recommender(), tmp_path)
    np.savez(tmp_path / "ids.npz", ids=np.random.default_rng(0).integers(0, ROWS, (200, 3)))
    quantized(path, "--precision", "int4-weight", "--calib", str(tmp_path / "ids.npz"), "--max-drop", "0.001",
              "--json", "-")  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert {layer["weight"] for layer in told["layers"]} == {"t", "u", "w"}
    assert told["accuracy"]["drop"] <= 0.001


NOT = {
    "small": ({"t": (8, 4)}, [node("Gather", "t i", "y")]),
    "columns": ({"t": (16, 600)}, [node("Gather", "t i", "y", axis=1)]),
    "one column": ({"t": (5000, 1)}, [node("Gather", "t i", "y")]),
    "a layer's weight": ({"t": (80, 80)}, [node("Gather", "t i", "a"), node("MatMul", "a t", "y")]),
    "three axes": ({"t": (30, 16, 20)}, [node("Gather", "t i", "y")]),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT)
def test_what_is_no_table(name):
    shapes, nodes = NOT[name]
    model = build(nodes, {"i": ["N"]}, ["y"], weights(**shapes), kinds={"i": "i"})
    assert [layer for layer in layers_of(model, in_float=True) if layer.op == "Gather"] == []


@pytest.mark.parametrize("keep", [[], ["--keep", "a"]])
def test_a_tied_last_layer_has_the_same_numbers(keep, tmp_path):
    """Once in the file; but for a look-up that stays in float, which needs the floats too."""
    nodes = [node("Gather", "t i", "a"), node("Gather", "t j", "b"), node("Add", "a b", "c"), node("Relu", "c", "d"),
             node("Transpose", "t", "s"), node("MatMul", "d s", "y")]  # fmt: skip
    table = weights(t=(ROWS, WIDTH))
    model = build(nodes, {"i": ["N"], "j": ["N"]}, ["y", "s", "a", "b"], table, kinds={"i": "i", "j": "i"})
    path = write(model, tmp_path)
    out = quantized(path, "--precision", "int8-weight", *keep)
    feeds = {"i": np.arange(ROWS), "j": np.arange(ROWS)[::-1].copy()}
    want, got = (open_session(file).run(feeds) for file in (path, out))
    assert (got["b"] == got["s"].T[::-1]).all()
    assert (got["b"] != want["b"]).any()
    assert (got["a"] == want["a"]).all() == bool(keep)
    assert np.square(got["y"] - want["y"]).mean() < 1e-3 * want["y"].var()
    sizes = [sum(t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1 and t.dims[1] > 1
                 for t in onnx.load(file).graph.initializer) for file in (path, out)]  # fmt: skip
    assert sizes == [1, len(keep) // 2]


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_a_file_that_onnx_would_not_pass_is_quantized_all_the_same(precision, tmp_path):
    """ONNX Runtime GenAI puts operators of its own into the standard domain, of which onnx's checker knows nothing."""
    constants = weights(t=(ROWS, WIDTH), w=(WIDTH, 40)) | {"g": np.ones(WIDTH, np.float32)}
    nodes = [node("Gather", "t i", "a"), node("SimplifiedLayerNormalization", "a g", "n", axis=-1, epsilon=1e-6),
             node("MatMul", "n w", "y")]  # fmt: skip
    path = write(build(nodes, {"i": ["N"]}, ["y"], constants, kinds={"i": "i"}), tmp_path)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(str(path))
    out = quantized(path, "--precision", precision)
    want, got = (open_session(file).run({"i": np.arange(50)})["y"] for file in (path, out))
    assert 0 < np.square(got - want).mean() < 0.02 * want.var()
    assert out.stat().st_size < 0.5 * path.stat().st_size


def test_what_a_file_says_of_a_constants_shape_may_be_wrong(tmp_path):
    """GenAI's declare scalars that are lists of one."""
    constants = weights(w=(WIDTH, 40)) | {"last": np.array([-1])}
    nodes = [node("ReduceSum", "x last", "r", keepdims=0), node("Neg", "r", "z"), node("MatMul", "x w", "y")]
    model = build(nodes, {"x": ["N", WIDTH]}, ["y", "z"], constants)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("last", onnx.TensorProto.INT64, []))
    path = write(model, tmp_path)
    x = np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    out = quantized(path, "--precision", "int8", "--calib", str(tmp_path / "x.npz"))
    want, got = (open_session(file).run({"x": x})["y"] for file in (path, out))
    assert 0 < np.square(got - want).mean() < 0.02 * want.var()


def tied():
    """An embedding that the last layer reads from the other side."""
    nodes = [node("Gather", "t i", "a"), node("MatMul", "a w", "b"), node("Relu", "b", "c"),
             node("Transpose", "t", "s"), node("MatMul", "c s", "y")]  # fmt: skip
    return build(nodes, {"i": ["N"]}, ["y"], weights(t=(ROWS, WIDTH), w=(WIDTH, WIDTH)), kinds={"i": "i"})


@pytest.mark.parametrize("keep", ["", "c", "a"])
def test_a_tied_last_layer_computes_on_integers(keep, tmp_path):
    """With a weight of its own; where it stays in float, it reads what the table's integers stand for."""
    path = write(tied(), tmp_path)
    calib = calibrated(tmp_path, i=np.arange(ROWS))
    out = quantized(path, "--precision", "int8", *calib, *(["--keep", keep] if keep else []))
    made = onnx.load(out).graph
    large = [t.data_type == onnx.TensorProto.FLOAT for t in made.initializer if np.prod(t.dims) == ROWS * WIDTH]
    assert sorted(large) == {"": [False, False], "c": [False], "a": [False, True]}[keep]
    assert any(n.op_type == "Transpose" for n in made.node) == (keep == "c")
    feeds = {"i": np.arange(ROWS)}
    want, got = (open_session(file).run(feeds)["y"] for file in (path, out))
    assert 0 < np.square(got - want).mean() < 0.01 * want.var()


def test_what_is_tied_stays_tied_in_float(tmp_path):
    path = write(tied(), tmp_path)
    out = quantized(path, "--precision", "int8", *calibrated(tmp_path, i=np.arange(ROWS)), "--only", "w")
    made = onnx.load(out).graph
    assert [t.name for t in made.initializer if np.prod(t.dims) == ROWS * WIDTH] == ["t"]
    assert [n.input[0] for n in made.node if n.op_type == "Transpose"] == ["t"]
