"""Products on integers without calibration, weights in branches and loops, and what ONNX Runtime makes of the nodes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporter.cli import main
from exporter.protos import all_nodes
from exporter.quantization.loops import free_constants
from exporter.quantization.processor import saturates
from runtime import comparison
from runtime.backends import SessionOptions, open_session
from tests.exporter.files import branch, choose, write
from tests.onnx_builder import build, ints, node, weights

WIDTH = 32
COARSER = 4 if saturates() else 1
"""Squared steps of weights of 7 bits, which processors without VNNI get."""
X = np.random.default_rng(0).standard_normal((6, 5, WIDTH)).astype(np.float32)


def calm(seed=0, **shapes):
    """Weights that keep the size of what they multiply: differences do not grow."""
    return {name: values / np.sqrt(np.float32(WIDTH)) for name, values in weights(seed, **shapes).items()}


def attention():
    """Three layers that read the same, and one whose bias is part of a Gemm, turned or not."""
    constants = calm(q=(WIDTH, WIDTH), k=(WIDTH, WIDTH), v=(WIDTH, WIDTH), o=(WIDTH, 48), b=(48,), p=(8, 48))
    nodes = [
        node("MatMul", "x q", "Q"), node("MatMul", "x k", "K"), node("MatMul", "x v", "V"),
        node("Transpose", "K", "T", perm=[0, 2, 1]), node("MatMul", "Q T", "A"), node("Softmax", "A", "S"),
        node("MatMul", "S V", "h"), node("Reshape", "h rows", "f"), node("Gemm", "f o b", "g"), node("Tanh", "g", "r"),
        node("Gemm", "r p", "y", transB=1),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 5, WIDTH]}, ["y"], constants | {"rows": ints(-1, WIDTH)})


def quantized(path, *options):
    out, told = path.with_name("out.onnx"), path.with_name("out.json")
    line = ["quantize", str(path), "-o", str(out), "--seconds", "0", "--json", str(told), "-q", *options]
    assert main(line) == 0
    return out, json.loads(told.read_text())


def operators(path):
    return Counter(n.op_type for n in all_nodes(onnx.load(path).graph))


def optimised(path, **options):
    """Operators after ONNX Runtime's optimisation."""
    file = path.with_name("optimised.onnx")
    open_session(path, options=SessionOptions(save=file, **options))
    return operators(file)


def error(path, out, feeds=None):
    want, got = (open_session(file).run(feeds or {"x": X})["y"] for file in (path, out))
    return np.square(got - want).mean() / want.var()


def test_products_compute_on_integers(tmp_path):
    path = write(attention(), tmp_path)
    out, told = quantized(path, "--precision", "int8-dynamic")
    assert 0 < error(path, out) < 1e-3 * COARSER
    assert all(layer["quantized"] for layer in told["layers"])
    found = operators(out)
    assert (found["MatMulInteger"], found["Gemm"]) == (5, 0)
    assert found["DynamicQuantizeLinear"] == 3  # one for the three layers that read x
    assert out.stat().st_size < 0.6 * path.stat().st_size
    fused = optimised(out)
    assert fused["MatMulInteger"] == 0
    assert fused["DynamicQuantizeMatMul"] + fused["MatMulIntegerToFloat"] == 5


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_weights_alone_are_never_made_floats_of(precision, tmp_path):
    """ONNX Runtime would make floats of a Gemm's weight in every run."""
    path = write(attention(), tmp_path)
    out, _ = quantized(path, "--precision", precision)
    assert optimised(out)["DequantizeLinear"] == 0
    assert 0 < error(path, out) < (5e-4 if precision == "int8-weight" else 0.1)


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weight"])
@pytest.mark.parametrize(
    "how", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}, {"alpha": 0.5, "beta": 2.0, "transB": 1}]
)
def test_gemms_that_are_more_than_a_product(precision, how, tmp_path):
    constants = weights(w=(16, WIDTH) if how.get("transB") else (WIDTH, 16), b=(16,), v=(16, 4))
    nodes = [node("Gemm", "x w b", "h", **how), node("MatMul", "h v", "y")]
    path = write(build(nodes, {"x": [WIDTH, WIDTH]}, ["y"], constants), tmp_path)
    out, _ = quantized(path, "--precision", precision)
    assert 0 < error(path, out, {"x": np.resize(X, (WIDTH, WIDTH))}) < 1e-3
    assert operators(out)["Gemm"] == 1


def test_a_weight_that_two_gemms_see_from_either_side(tmp_path):
    nodes = [node("Gemm", "x w", "h"), node("Gemm", "h w", "k", transB=1), node("MatMul", "k w", "y")]
    path = write(build(nodes, {"x": ["N", WIDTH]}, ["y"], weights(w=(WIDTH, WIDTH))), tmp_path)
    for precision in ("int8-dynamic", "int8-weight"):
        out, _ = quantized(path, "--precision", precision)
        assert 0 < error(path, out, {"x": X[0]}) < 2e-3


def test_convolutions_stay_in_float(tmp_path, capsys):
    nodes = [node("Conv", "x w", "h"), node("Flatten", "h", "f"), node("MatMul", "f v", "y")]
    path = write(build(nodes, {"x": ["N", 3, 5, 5]}, ["y"], weights(w=(8, 3, 3, 3), v=(72, 16))), tmp_path)
    out, told = quantized(path, "--precision", "int8-dynamic")
    assert [(layer["op"], layer["reason"]) for layer in told["layers"]] == [
        ("Conv", "int8-dynamic is for matrices"), ("MatMul", None)]  # fmt: skip
    assert operators(out)["Conv"] == 1
    alone = write(build(nodes[:1], {"x": ["N", 3, 5, 5]}, ["h"], weights(w=(8, 3, 3, 3))), tmp_path)
    assert main(["quantize", str(alone), "-o", str(out), "--precision", "int8-dynamic", "-q"]) == 3
    assert "no layer has a weight that is a matrix. Try int8, or int8-weight" in capsys.readouterr().err


def test_floats_may_be_made_once_as_the_model_is_loaded(tmp_path, monkeypatch):
    """What convolutions read would be made in every run; where that is slower, the report says what helps."""
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "y")]
    path = write(build(nodes, {"x": ["N", 3, 5, 5]}, ["y"], weights(w=(8, 3, 3, 3))), tmp_path)
    monkeypatch.setattr("runtime.comparison.verdict_of", lambda *_: "slower")
    whole, how = comparison.compare_models, []
    monkeypatch.setattr(comparison, "compare_models", lambda *a, **k: how.append(a[3:]) or whole(*a, **k))
    out, told = quantized(path, "--precision", "int8-weight", "--seconds", "0.2")
    assert [note for note in told["notes"] if "secateur bench --dequantize) it does so once, at load: " in note]
    assert [[other.options.dequantize for other in others] for others in how] == [[], [True]]
    assert optimised(out)["DequantizeLinear"] == 1
    assert optimised(out, dequantize=True)["DequantizeLinear"] == 0
    assert main(["bench", str(out), "--seconds", "0.1", "--dequantize", "-q"]) == 0


def test_seven_bits(tmp_path):
    path = write(attention(), tmp_path)
    for when, most in (("off", 127), ("on", 63)):
        out, _ = quantized(path, "--precision", "int8-dynamic", "--reduce-range", when)
        tensors = [t for t in onnx.load(out).graph.initializer if t.data_type == TensorProto.INT8]
        assert max(int(np.abs(onnx.numpy_helper.to_array(t)).max()) for t in tensors) == most


def test_data_judge_and_choose_the_layers(tmp_path):
    path = write(attention(), tmp_path)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).standard_normal((400, 5, WIDTH)).astype(np.float32))
    data = ["--calib", str(tmp_path / "d.npz"), "--metric", "cosine"]
    _, told = quantized(path, "--precision", "int8-dynamic", *data)
    assert 0 < told["output_error"] < 1e-3 * COARSER
    drop = told["accuracy"]["drop"]
    some, told = quantized(path, "--precision", "int8-dynamic", *data, "--max-drop", str(drop / 2))
    assert 0 < sum(not layer["quantized"] for layer in told["layers"]) < 5
    assert told["accuracy"]["drop"] <= drop / 2
    assert operators(some)["MatMulInteger"] == sum(layer["quantized"] for layer in told["layers"])


def test_zeros_stay(tmp_path):
    path = write(attention(), tmp_path)
    sparse = tmp_path / "sparse.onnx"
    assert main(["sparsify", str(path), "-o", str(sparse), "--pattern", "2:4", "-q"]) == 0
    for precision in ("int8-dynamic", "int8-weight"):
        _, told = quantized(sparse, "--precision", precision)
        assert told["layers_2_4"] == 5


def test_the_file_is_pruned_as_others_and_quantized_no_more(tmp_path, capsys):
    path = write(attention(), tmp_path)
    out, _ = quantized(path, "--precision", "int8-dynamic")
    again = ["quantize", str(out), "-o", str(tmp_path / "again.onnx"), "--precision", "int8-dynamic", "-q"]
    assert main(again) == 3
    assert "it holds DynamicQuantizeLinear" in capsys.readouterr().err
    small = tmp_path / "small.onnx"
    assert main(["prune", str(out), "-o", str(small), "--ratio", "0.5", "-q"]) == 0
    assert small.stat().st_size < 0.9 * out.stat().st_size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("int8-dynamic --profile tensorrt", "take int8"),
        ("int8-dynamic --method entropy", "leave out --method and --no-per-channel"),
        ("int8-weight --no-per-channel", "leave out --method and --no-per-channel"),
        ("int8", "or take int8-dynamic or int8-weight"),
    ],
)
def test_what_does_not_go_together(options, said, tmp_path, capsys):
    path = write(attention(), tmp_path)
    assert main(["quantize", str(path), "-o", str(tmp_path / "o.onnx"), "--precision", *options.split(), "-q"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


# -- branches and loops -----------------------------------------------------------------------------------------


def branches():
    """Two branches that share a weight of the main graph, one with a constant of its own, and a layer behind."""
    own = node("Constant", "", "own", value=onnx.numpy_helper.from_array(weights(7, o=(WIDTH, WIDTH))["o"]))
    then = branch("then", [node("MatMul", "x w", "p"), node("Relu", "p", "q"), node("MatMul", "q u", "r")], "r")
    other = branch(
        "other", [own, node("MatMul", "x own", "s"), node("Tanh", "s", "t"), node("MatMul", "t w", "z")], "z"
    )
    nodes = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum nought", "go"),
             choose("go", "k", then, other), node("MatMul", "k v", "y")]  # fmt: skip
    constants = calm(w=(WIDTH, WIDTH), u=(WIDTH, WIDTH), v=(WIDTH, 8))
    return build(nodes, {"x": ["N", 5, WIDTH]}, ["y"], constants | {"nought": np.float32(0)})


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weight", "int4-weight", "int8"])
def test_branches(precision, tmp_path):
    path = write(branches(), tmp_path)
    np.savez(tmp_path / "d.npz", x=np.concatenate([np.abs(X), -np.abs(X)] * 4))
    calib = ["--calib", str(tmp_path / "d.npz")] if precision == "int8" else []
    out, told = quantized(path, "--precision", precision, *calib)
    assert [layer["quantized"] for layer in told["layers"]] == [True] * 5
    floats = [t for t in onnx.load(out).graph.initializer if t.data_type == TensorProto.FLOAT]
    assert max(np.prod(t.dims) for t in floats) <= WIDTH * WIDTH / 8  # scales
    for x in (np.abs(X), -np.abs(X)):
        assert 0 < error(path, out, {"x": x}) < (0.2 if precision == "int4-weight" else 5e-3)


def test_a_weight_of_the_main_graph_and_a_branch_is_not_fitted_to_one_of_them(tmp_path):
    model = branches()
    model.graph.node.extend([node("MatMul", "x w", "again"), node("MatMul", "again o", "z")])
    model.graph.initializer.append(onnx.numpy_helper.from_array(calm(seed=3, o=(WIDTH, 8))["o"], "o"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 5, 8]))
    path = write(model, tmp_path)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 5, 4)) @ rng.standard_normal((4, WIDTH)) + 0.1 * rng.standard_normal((400, 5, WIDTH))
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32))
    _, told = quantized(path, "--precision", "int8-weight", "--calib", str(tmp_path / "d.npz"))
    assert {layer["weight"] for layer in told["layers"] if layer["fit"]} == {"v", "o"}


def test_what_a_loop_hands_on_at_another_place_stays_a_state():
    loop = node("Loop", "three - x w v", "y first last", body=_body([node("Identity", "a", "a2")], ("s", "a2", "a")))
    model = build([loop], {"x": [WIDTH]}, ["y"], calm(w=(WIDTH,), v=(WIDTH,)) | {"three": np.int64(3)})
    free_constants(model)
    assert list(model.graph.node[0].input) == ["three", "", "x", "w", "v"]


def _body(nodes, given):
    """The body of a loop with a state and two weights; what it gives, in their order."""
    body = branch("body", [node("Identity", "go", "on"), *nodes], "on")
    body.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    body.input.extend([helper.make_tensor_value_info("i", TensorProto.INT64, []),
                       helper.make_tensor_value_info("go", TensorProto.BOOL, [])])  # fmt: skip
    body.input.extend(helper.make_tensor_value_info(n, 1, None) for n in ("s", "a", "b"))
    body.output.extend(helper.make_tensor_value_info(n, 1, None) for n in given)
    return body


@pytest.mark.parametrize("through", ["", "Identity"])
def test_a_loop_that_hands_its_weights_round(through, tmp_path):
    """As tf2onnx writes recurrent layers; the last of the states is given as well."""
    nodes = [
        node("MatMul", "s a", "u"),
        node("Tanh", "u", "t"),
        node("MatMul", "t b", "n"),
        node("Identity", "a", "a2"),
    ]
    if through:
        nodes.append(node("Identity", "b", "b2"))
    body = _body(nodes, ("n", "a2", "b2" if through else "b"))
    nodes = [node("Loop", "three - x w v", "k first last", body=body), node("MatMul", "k last", "y")]
    constants = calm(w=(WIDTH, WIDTH), v=(WIDTH, WIDTH)) | {"three": np.int64(3)}
    path = write(build(nodes, {"x": ["N", 5, WIDTH]}, ["y"], constants), tmp_path)
    for precision in ("int8-dynamic", "int8-weight"):
        out, told = quantized(path, "--precision", precision)
        assert [layer["quantized"] for layer in told["layers"]] == [True] * 3
        assert 0 < error(path, out) < 2e-2
        assert out.stat().st_size < 0.6 * path.stat().st_size
