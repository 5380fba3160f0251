"""Layers that share weights and names, and those that stay in float for what ONNX Runtime would make of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from exporter.errors import GoalError, ModelError
from exporter.quantization import damage
from exporter.quantization.quantizer import quantize
from tests.exporter.files import run
from tests.onnx_builder import build, node, weights

X = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)


def quantized(tmp_path, model, precision, **more):
    onnx.save(model, tmp_path / "m.onnx")
    return quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", precision=precision, **more)


def error(tmp_path, output="y"):
    """Largest difference of an output, as a share of its standard deviation."""
    want, got = (run(tmp_path / name, {"x": X})[output] for name in ("m.onnx", "q.onnx"))
    return float(np.abs(want - got).max() / want.std())


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(("precision", "most"), [("int8-weight", 0.05), ("int8-dynamic", 0.1), ("int4-weight", 0.5)])
@pytest.mark.parametrize("first", ["scaled", "plain"])
def test_a_weight_whose_rows_are_outputs_of_one_layer_and_inputs_of_another(tmp_path, precision, most, data, first):
    rows = np.exp(2 * np.random.default_rng(1).standard_normal((16, 1)))
    w = (np.random.default_rng(2).standard_normal((16, 16)) * rows).astype(np.float32)
    gemm = node("Gemm", "x w", "a", transB=1, **({"alpha": 0.5} if first == "scaled" else {}))
    model = build([gemm, node("MatMul", "x w", "b"), node("Add", "a b", "y")], {"x": ["N", 16]}, ["y"], {"w": w})
    np.savez(tmp_path / "c.npz", x=X)
    quantized(tmp_path, model, precision, **({"calib": tmp_path / "c.npz"} if data else {}))
    assert error(tmp_path) < most


def test_biases_that_are_spread_get_names_of_their_own(tmp_path):
    nodes = [node("Gemm", "x w1 b", "h"), node("Add", "h b_full", "r"), node("Gemm", "r w2 b", "y")]
    constants = weights(w1=(16, 8), w2=(8, 4)) | {"b": np.array([0.7], "f"), "b_full": np.arange(8, dtype="f") * 5}
    quantized(tmp_path, build(nodes, {"x": ["N", 16]}, ["y"], constants), "int8-weight")
    assert error(tmp_path) < 0.05


def squared():
    """Two branches: in one channels can be made alike, in the other what is read twice is squared."""
    rng = np.random.default_rng(3)
    wide, mild = (np.exp(rng.standard_normal(32) * s).astype("f") for s in (2.5, 0.35))
    nodes = [
        node("MatMul", "x w0", "h"), node("Relu", "h", "r"), node("MatMul", "r w1", "y"),
        node("MatMul", "x v0", "g"), node("Relu", "g", "s"), node("Mul", "s s", "q"), node("MatMul", "q v1", "z"),
    ]  # fmt: skip
    made = weights(w0=(16, 32), w1=(32, 24), v0=(16, 32), v1=(32, 24))
    scaled = {"w0": made["w0"] * wide, "w1": made["w1"] / wide[:, None], "v0": made["v0"] * mild}
    return build(nodes, {"x": ["N", 16]}, ["y", "z"], made | scaled)


def test_what_is_multiplied_by_itself_is_not_divided(tmp_path):
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(4).standard_normal((256, 16)).astype("f"))
    found = quantized(tmp_path, squared(), "int8-dynamic", calib=tmp_path / "c.npz")
    assert any("channels of 1 tensor were made alike" in note for note in found.notes)
    assert error(tmp_path, "z") < 0.3  # more than 3 where it was


def test_channels_stay_where_the_float_model_would_change(tmp_path, monkeypatch):
    from exporter.quantization import smoothing

    monkeypatch.setattr(smoothing._Search, "_alone", lambda self, name: True)
    monkeypatch.setattr(smoothing._Search, "_reads_rows", lambda self, n, name: self._is_product(n))
    monkeypatch.setattr(smoothing, "_WORTH", 100.0)
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(4).standard_normal((256, 16)).astype("f"))
    found = quantized(tmp_path, squared(), "int8-dynamic", calib=tmp_path / "c.npz")
    assert not any("made alike" in note for note in found.notes)


def test_channels_stay_where_there_is_no_error_to_save(tmp_path):
    nodes = [node("MatMul", "x w0", "h"), node("Relu", "h", "r"), node("MatMul", "r w1", "y")]
    model = build(nodes, {"x": ["N", 16]}, ["y"], weights(w0=(16, 32)) | {"w1": np.zeros((32, 8), "f")})
    np.savez(tmp_path / "c.npz", x=X)
    found = quantized(tmp_path, model, "int8-dynamic", calib=tmp_path / "c.npz")
    assert not any("made alike" in note for note in found.notes)


@pytest.mark.parametrize(("outputs", "added", "stays"), [
    (8, (8,), False), (8, (1, 8), False), (8, (1,), False), (8, (), False), (8, (64, 8), False), (8, (64, 1), False),
    (8, (1, 1, 8), True), (1, (32,), True),
])  # fmt: skip
def test_what_is_added_and_no_bias(tmp_path, outputs, added, stays):
    """ONNX Runtime takes a row for a bias whatever its shape: one of another size fails, axes in front get lost."""
    nodes = [node("MatMul", "x w", "h"), node("Add", "h g", "s"), node("MatMul", "x v", "t")]
    constants = weights(w=(16, outputs), v=(16, 4)) | {"g": np.ones(added, "f")}
    found = quantized(tmp_path, build(nodes, {"x": ["N", 16]}, ["s", "t"], constants), "int8-dynamic")
    assert found.quantized == (("node_t",) if stays else ("node_h", "node_t"))
    assert list(found.reasons) == (["node_h"] if stays else [])
    want, got = (onnxruntime.InferenceSession(str(tmp_path / f)).run(None, {"x": X})[0] for f in ("m.onnx", "q.onnx"))
    assert got.shape == want.shape
    assert np.abs(want - got).max() < 0.1 * want.std() + 1e-6


@pytest.mark.parametrize(("between", "constant"), [
    ([node("Identity", "h", "k")], "g"), ([node("Dropout", "h", "k")], "g"),
    ([node("Identity", "h", "k"), node("Reshape", "g whole", "g2")], "g2"),
])  # fmt: skip
def test_what_is_added_behind_what_does_nothing(tmp_path, between, constant):
    nodes = [node("MatMul", "x w", "h"), *between, node("Add", f"k {constant}", "s"), node("MatMul", "x v", "t")]
    constants = weights(w=(16, 1), v=(16, 4)) | {"g": np.ones(7, "f"), "whole": np.array([1, 1, 7])}
    found = quantized(tmp_path, build(nodes, {"x": ["N", 16]}, ["s", "t"], constants), "int8-dynamic")
    assert found.quantized == ("node_t",)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["int8-weight", "int8-dynamic", "int4-weight"])
def test_weights_that_are_no_numbers_stay(tmp_path, precision, bad):
    made = weights(w=(16, 8), v=(16, 4))
    made["w"][3, 2] = bad
    nodes = [node("MatMul", "x w", "y"), node("MatMul", "x v", "z")]
    found = quantized(tmp_path, build(nodes, {"x": ["N", 16]}, ["y", "z"], made), precision)
    assert found.quantized == ("node_z",)
    assert found.reasons == {"node_y": "not all of its weights are finite numbers"}
    with pytest.raises(ModelError, match="nothing to quantize: node_y: not all of its weights are finite"):
        quantized(tmp_path, build(nodes[:1], {"x": ["N", 16]}, ["y"], {"w": made["w"]}), precision)


def test_weights_without_elements_are_none(tmp_path):
    nodes = [node("MatMul", "x w", "y"), node("MatMul", "z v", "u")]
    constants = weights(v=(16, 4)) | {"w": np.zeros((0, 4), "f")}
    model = build(nodes, {"x": ["N", 0], "z": ["N", 16]}, ["y", "u"], constants)
    assert quantized(tmp_path, model, "int4-weight").quantized == ("node_u",)


@pytest.mark.parametrize("said", ["does not run", "has shape"])
def test_a_result_that_does_not_run_is_not_written(tmp_path, monkeypatch, said):
    """Whatever made it: here what is opened is changed."""
    nodes = [node("MatMul", "x w", "h"), node("Transpose", "h", "y0", perm=[0, 1])]
    model = build([*nodes, node("Identity", "y0", "y")], {"x": ["N", 16]}, ["y"], weights(w=(16, 8)))
    real = damage.open_session

    def opened(data, **options):
        changed = onnx.load_from_string(data)
        del changed.graph.node[-1]
        if said == "does not run":
            changed.graph.node[-1].output[0] = "y"
            changed.graph.node[-1].attribute[0].ints[:] = [1, 1]
        else:
            changed.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axes"))
            changed.graph.node.append(node("Unsqueeze", "y0 axes", "y"))
            del changed.graph.output[0].type.tensor_type.shape.dim[:]
            changed.graph.output[0].type.tensor_type.ClearField("shape")
        return real(changed.SerializeToString(), **options)

    monkeypatch.setattr(damage, "open_session", opened)
    with pytest.raises(GoalError, match=said):
        quantized(tmp_path, model, "int8-weight")
    assert not (tmp_path / "q.onnx").exists()
