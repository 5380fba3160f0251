"""Half precision: every model computes the same in it, what does not fit stays in fp32, the interface is as asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter.errors import ModelError, UsageError
from exporter.precision.converting import convert_precision
from exporter.precision.values import convert_values
from exporter.protos import graphs_of
from runtime.backends import open_session
from tests.onnx_builder import build, ints, node, weights

MODELS = Path(__file__).parents[3] / "models"
F16, F32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def written(tmp_path, model, precision="fp16", data=None, **more):
    onnx.save(model, tmp_path / "m.onnx")
    calib = None
    if data is not None:
        np.savez(tmp_path / "data.npz", **data)
        calib = str(tmp_path / "data.npz")
    found = convert_precision(tmp_path / "m.onnx", tmp_path / "half.onnx", precision, calib=calib, **more)
    return found, onnx.load(tmp_path / "half.onnx")


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit"])
@pytest.mark.parametrize("keep_io", [True, False])
def test_models_stay_what_they_are(tmp_path, name, keep_io):
    target = tmp_path / "half.onnx"
    data = f"{MODELS / 'digits.npz'}:train"
    found = convert_precision(MODELS / f"{name}.onnx", target, "fp16", calib=data, keep_io=keep_io, calib_samples=16)
    assert 0 < found.error < 0.01
    assert 0 < found.output_error < found.error**2  # the mean of squares is less than the largest
    assert not found.stay
    assert target.stat().st_size < 0.55 * (MODELS / f"{name}.onnx").stat().st_size
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {
        F32 if keep_io else F16
    }
    open_session(target)


def test_the_largest_difference_is_no_less_than_the_mean(tmp_path):
    """One number comes out of each run, and their deviation is that over all of them."""
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "y")]
    constants = weights(w=(16, 1)) | {"b": np.array([3.0], np.float32)}
    model = build(nodes, {"x": [1, 16]}, ["y"], constants)
    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    found, _ = written(tmp_path, model, data={"x": x})
    outputs = x @ constants["w"] + 3
    rounded = (x.astype(np.float16) @ constants["w"].astype(np.float16)).astype(np.float32) + 3
    assert 0 < found.output_error**0.5 <= found.error
    assert found.error == pytest.approx(np.abs(rounded - outputs).max() / outputs.std(), rel=0.5)


def test_bf16_is_compared_though_nothing_here_computes_it(tmp_path):
    model = build([node("MatMul", "x w", "y")], {"x": [2, 64]}, ["y"], weights(w=(64, 8)))
    found, half = written(tmp_path, model, "bf16")
    assert 1e-4 < found.error < 0.1
    assert half.graph.initializer[0].data_type == onnx.TensorProto.BFLOAT16


def test_what_overflows_stays(tmp_path):
    nodes = [node("Mul", "x big", "h"), node("Mul", "h small", "s"), node("MatMul", "s w", "y")]
    constants = {**weights(w=(4, 4)), "big": np.float32(1e4), "small": np.float32(1e-4)}
    model = build(nodes, {"x": [2, 4]}, ["y"], constants)
    data = {"x": np.full((2, 4), 9, np.float32)}
    found, _ = written(tmp_path, model, data=data)
    stay = {s.node: s.reason for s in found.stay}
    assert set(stay) == {"Mul 'node_h'", "Mul 'node_s'"}
    assert stay["Mul 'node_h'"] == "'h' reaches 9e+04, half precision ends at 6.55e+04"
    assert found.error < 0.01
    plain, _ = written(tmp_path, model, data={"x": np.full((2, 4), 0.1, np.float32)})
    assert not plain.stay  # smaller inputs leave room


def test_small_constants_and_squares(tmp_path):
    nodes = [node("Add", "x eps", "h"), node("ReduceL2", "h", "n", keepdims=1), node("MatMul", "n w", "y")]
    model = build(nodes, {"x": [2, 4]}, ["y"], {**weights(w=(1, 4)), "eps": np.float32(1e-12)}, opset=17)
    found, _ = written(tmp_path, model, data={"x": np.full((2, 4), 300, np.float32)})
    stay = {s.node: s.reason for s in found.stay}
    assert "1e-12 would become 0" in stay["Add 'node_h'"]
    assert "its square does not fit" in stay["ReduceL2 'node_n'"]


def test_two_sizes_of_one_name_do_not_hinder_the_measurement(tmp_path):
    nodes = [node("Relu", f"x{k}", f"a{k}") for k in range(2)]
    nodes += [node("Relu", f"a{k}", f"b{k}") for k in range(2)]
    nodes += [node("Add", f"b{k} b{k}", f"y{k}") for k in range(2)]
    model = build(nodes, {"x0": ["N", "S"], "x1": ["N", "T"]}, ["y0", "y1"])
    for name in ("a0", "a1", "b0", "b1"):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, F32, ["N", "S"]))
    data = {f"x{k}": np.ones((2, 4 * (k + 1)), np.float32) for k in range(2)}
    found, _ = written(tmp_path, model, data=data)
    assert found.nodes == len(nodes)


def test_masks_keep_their_meaning(tmp_path):
    lowest = float(np.finfo(np.float32).min)
    mask = np.array([[0, lowest, 0, lowest]], np.float32)
    nodes = [node("MatMul", "x w", "h"), node("Add", "h mask", "m"), node("Softmax", "m", "y")]
    model = build(nodes, {"x": [2, 4]}, ["y"], {**weights(w=(4, 4)), "mask": mask})
    found, half = written(tmp_path, model)
    assert not found.stay
    got = open_session(half.SerializeToString()).run({"x": np.ones((2, 4), np.float16)})["y"]
    assert np.all(got[:, [1, 3]] == 0)
    assert np.isfinite(got).all()


def test_operands_of_fixed_type_keep_it(tmp_path):
    nodes = [node("Resize", "x - s", "r", mode="nearest"), node("Shape", "r", "z"), node("Cast", "z", "c", to=F32), node("ReduceSum", "c", "n"), node("Add", "r n", "y")]  # fmt: skip
    model = build(nodes, {"x": [1, 1, 4, 4]}, ["y"], {"s": np.array([1, 1, 2, 2], np.float32)})
    found, half = written(tmp_path, model)
    assert found.nodes
    kinds = {t.name: t.data_type for t in half.graph.initializer}
    assert F32 in kinds.values()
    onnx.checker.check_model(half, full_check=True)


def graph_of(nodes, outputs, inputs=()):
    """A subgraph; ``inputs`` and ``outputs`` are names with a type and shape."""
    values = [[onnx.helper.make_tensor_value_info(*v) for v in side] for side in (inputs, outputs)]
    return onnx.helper.make_graph(nodes, "inner", *values)


def branches():
    """Both branches read an outer tensor; one squares numbers beyond what fp16 holds."""
    then = graph_of([node("Mul", "h big", "t0"), node("Mul", "t0 small", "t")], [("t", F32, [2, 4])])
    other = graph_of([node("MatMul", "h w", "e0"), node("Relu", "e0", "e")], [("e", F32, [2, 4])])
    nodes = [node("MatMul", "x w", "h"), node("If", "c", "i", then_branch=then, else_branch=other)]
    constants = {**weights(w=(4, 4)), "big": np.float32(1e5), "small": np.float32(1e-5)}
    return build([*nodes, node("Add", "i h", "y")], {"x": [2, 4], "c": []}, ["y"], constants, kinds={"c": "b"})


def loop(opset=21):
    """A state, a captured tensor, an If inside, and a scan output."""
    inner = [graph_of([node(op, "m", f"r{k}")], [(f"r{k}", F32, [2, 4])]) for k, op in enumerate(("Relu", "Tanh"))]
    body = graph_of(
        [
            node("Identity", "go", "on"), node("MatMul", "s w", "p"), node("Add", "p h", "m"),
            node("If", "c", "q", then_branch=inner[0], else_branch=inner[1]), node("Sigmoid", "q", "z"),
        ],
        [("on", onnx.TensorProto.BOOL, []), ("q", F32, [2, 4]), ("z", F32, [2, 4])],
        [("k", onnx.TensorProto.INT64, []), ("go", onnx.TensorProto.BOOL, []), ("s", F32, [2, 4])],
    )  # fmt: skip
    nodes = [node("MatMul", "x w", "h"), node("Loop", "n - h", "last all", body=body), node("Relu", "last", "y")]
    constants = weights(w=(4, 4))
    return build(nodes, {"x": [2, 4], "n": [], "c": []}, ["y", "all"], constants, kinds={"c": "b", "n": "i"}, opset=opset)  # fmt: skip


def scan():
    """Directions are listed for each scan output."""
    body = graph_of([node("Add", "s v", "t"), node("MatMul", "t w", "u")], [("t", F32, [4]), ("u", F32, [4])], [("s", F32, [4]), ("v", F32, [4])])  # fmt: skip
    made = node("Scan", "x0 x", "last y", body=body, num_scan_inputs=1, scan_output_directions=[1])
    return build([made], {"x0": [4], "x": [3, 4]}, ["last", "y"], weights(w=(4, 4)))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize(
    ("model", "inside", "stays", "feeds"),
    [
        (branches(), 2, {"Mul 'node_t0'", "Mul 'node_t'"}, [{"c": np.array(c)} for c in (True, False)]),
        (loop(), 5, set(), [{"c": np.array(c), "n": np.array(n)} for c in (True, False) for n in (0, 3)]),
        (scan(), 2, set(), [{}]),
    ],
    ids=["If", "Loop", "Scan"],
)
def test_what_subgraphs_compute(tmp_path, model, inside, stays, feeds, precision, keep_io):
    """Inner nodes are measured and converted like outer ones; what enters and leaves a subgraph is fp32."""
    found, half = written(tmp_path, model, precision, keep_io=keep_io)
    low = F16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    assert {s.node for s in found.stay if s.asked} == (stays if precision == "fp16" else set())
    assert not [s.reason for s in found.stay if not s.asked and "takes and gives fp32" not in s.reason]
    assert 0 < found.error < (0.01 if precision == "fp16" else 0.1)
    onnx.checker.check_model(half, full_check=True)
    inner = [n for g in graphs_of(half.graph) if g is not half.graph for n in g.node]
    working = [n for n in inner if n.op_type not in ("Cast", "If", "Identity")]
    assert len(working) >= inside
    assert {t.data_type for t in half.graph.initializer if t.name.startswith("w")} == {low}
    assert all(
        v.type.tensor_type.elem_type != low for g in graphs_of(half.graph) if g is not half.graph for v in g.output
    )
    if precision == "bf16":
        return
    pair = [open_session(m.SerializeToString()) for m in (model, half)]
    rng = np.random.default_rng(3)
    for given in feeds:
        drawn = {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in pair[0].inputs if s.name not in given}
        want = pair[0].run(drawn | given)
        got = pair[1].run({s.name: (drawn | given)[s.name].astype(s.dtype) for s in pair[1].inputs})
        for name, values in want.items():
            np.testing.assert_allclose(
                got[name].astype(np.float32), values, atol=0.02 * values.std() if values.size else 0
            )


def test_branches_the_data_do_not_reach_stay(tmp_path):
    data = {"x": np.ones((2, 4), np.float32), "c": np.array([True, True])}
    found, _ = written(tmp_path, branches_of_a_vector(), data=data)
    stay = {s.node: s.reason for s in found.stay if s.asked}
    assert stay == {"Tanh 'node_e'": "no input led to its branch: how large its numbers get is not known"}


def branches_of_a_vector():
    """The condition has the samples' axis, as data have."""
    inner = [graph_of([node(op, "h", name)], [(name, F32, [2, 4])]) for op, name in (("Relu", "t"), ("Tanh", "e"))]
    nodes = [node("MatMul", "x w", "h"), node("Gather", "c zero", "d"), node("If", "d", "y", then_branch=inner[0], else_branch=inner[1])]  # fmt: skip
    return build(nodes, {"x": [2, 4], "c": [2]}, ["y"], {**weights(w=(4, 4)), "zero": np.int64(0)}, kinds={"c": "b"})


@pytest.mark.parametrize(("ir", "opset"), [(3, 7), (3, 8), (3, 9), (8, 17)])
def test_constants_that_are_inputs_too(tmp_path, ir, opset):
    """Before IR version 4 all of them are, and in some files later on; those replaced are inputs no more."""
    nodes = [node("Mul", "x big", "h"), node("Mul", "h small", "k"), node("MatMul", "k w", "y")]
    constants = {**weights(w=(4, 4)), "big": np.full(4, 1e5, np.float32), "small": np.full(4, 1e-5, np.float32)}
    model = build(nodes, {"x": [2, 4]}, ["y"], constants, opset=opset, ir=max(ir, 4))
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = ir
    found, half = written(tmp_path, model, data={"x": np.ones((2, 4), np.float32)})
    assert {s.node for s in found.stay} == {"Mul 'node_h'", "Mul 'node_k'"}
    assert [s.name for s in open_session(half.SerializeToString()).inputs] == ["x"]
    assert found.error < 0.01
    onnx.checker.check_model(half, full_check=True)


def test_sizes_are_tried_until_the_model_runs(tmp_path):
    """A reflection needs more samples than sequences have at first."""
    nodes = [node("Pad", "x p", "h", mode="reflect"), node("Relu", "h", "y")]
    found, _ = written(tmp_path, build(nodes, {"x": ["batch", "samples"]}, ["y"], {"p": ints(0, 40, 0, 40)}))
    assert found.nodes
    contrary = [node("Reshape", "x s", "h"), node("Relu", "h", "y"), node("Reshape", "x t", "z")]
    fixed = build(contrary, {"x": ["batch", "samples"]}, ["y", "z"], {"s": ints(7, 100003), "t": ints(7, 100005)})
    with pytest.raises(ModelError, match=r"does not run on the calibration inputs[\s\S]*--shape"):
        written(tmp_path, fixed)


def test_quantized_layers_stay_together(tmp_path):
    constants = {**weights(w=(4, 4)), "s": np.float32(0.05), "z": np.int8(0), "q": np.ones((4, 4), np.int8)}
    nodes = [node("QuantizeLinear", "x s z", "a"), node("DequantizeLinear", "a s z", "b"), node("DequantizeLinear", "q s z", "c"), node("MatMul", "b c", "d"), node("MatMul", "d w", "y")]  # fmt: skip
    for opset, stays in ((17, True), (21, False)):
        found, half = written(tmp_path, build(nodes, {"x": [2, 4]}, ["y"], constants, opset=opset))
        assert ("MatMul 'node_d'" in {s.node for s in found.stay}) is stays
        onnx.checker.check_model(half, full_check=True)


def test_the_user_decides(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Softmax", "h", "y")]
    model = build(nodes, {"x": [2, 4]}, ["y"], weights(w=(4, 4)))
    found, _ = written(tmp_path, model, keep=["Soft*"])
    assert [(s.node, s.reason) for s in found.stay] == [("Softmax 'node_y'", "--keep-fp32 Soft*")]
    with pytest.raises(ModelError, match="no node can compute in fp16.*--keep-fp32"):
        written(tmp_path, model, keep=["*"])
    with pytest.raises(UsageError, match="choose from fp16, bf16"):
        written(tmp_path, model, "fp8")


@pytest.mark.parametrize(
    ("kind", "text"),
    [("d", "double precision .float64., and fp32 ones are converted"), ("h", "in fp16 already"), ("i", "holds no fl")],
)
def test_what_is_not_fp32_is_told(tmp_path, kind, text):
    model = build([node("Mul", "x x", "y")], {"x": [2, 4]}, ["y"], kinds={"x": kind, "y": kind})
    with pytest.raises(ModelError, match=f"no node can compute in fp16. It.*{text}"):
        written(tmp_path, model)


def test_infinities_are_refused(tmp_path):
    """What seeded inputs do not show is seen when the file is compared; nothing is written."""
    nodes = [node("Mul", "x x", "h"), node("Mul", "h h", "k"), node("ReduceMean", "k", "y")]
    model = build(nodes, {"x": [2, 4]}, ["y"], opset=17)
    found, _ = written(tmp_path, model, data={"x": np.full((2, 4), 100, np.float32)})
    assert {s.node for s in found.stay} >= {"Mul 'node_k'"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["m.onnx", "-o", "h.onnx"], "--precision fp16 or bf16"),
        (["m.onnx", "-o", "h.onnx", "--precision", "fp16", "--opset", "17"], "--opset is for PyTorch modules"),
        (["m.py:f", "-o", "h.onnx", "--precision", "fp16"], "--precision is for ONNX files"),
        (["m.onnx", "-o", "no/h.onnx", "--precision", "fp16"], "there is no folder"),
    ],
)
def test_options_that_do_not_fit(tmp_path, monkeypatch, capsys, arguments, text):
    from exporter.cli import main

    monkeypatch.chdir(tmp_path)
    onnx.save(build([node("Reshape", "x s", "y")], {"x": [2, 4]}, ["y"], {"s": ints(8)}), "m.onnx")
    assert main(["convert", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("opset", [17, 21])
def test_what_stands_for_infinity_stays_finite(tmp_path, opset):
    """The lowest fp32 number is no bf16 number; 0 * -inf would be NaN where nothing is masked."""
    lowest = np.finfo(np.float32).min
    nodes = [
        node("Sub", "one x", "off"), node("Mul", "off lowest", "m"), node("ConstantOfShape", "s", "c", value=onnx.numpy_helper.from_array(np.array([lowest]))),
        node("Trilu", "c", "t", upper=1), node("Mul", "t zero", "k"), node("Add", "m k", "n"), node("Softmax", "n", "y"),
    ]  # fmt: skip
    constants = {"one": np.float32(1), "zero": np.float32(0), "lowest": lowest, "s": np.array([4, 4], np.int64)}
    model = build(nodes, {"x": [4, 4]}, ["y"], constants, opset=opset)
    found, _ = written(tmp_path, model, "bf16", data={"x": np.ones((4, 4), np.float32)})
    assert found.error < 0.01
    assert np.isfinite(convert_values(np.array([lowest, -lowest]), onnx.TensorProto.BFLOAT16).astype(np.float32)).all()


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ([node("MeanVarianceNormalization", "a", "y", axes=[1])], {}, "fp32 constants"),
        ([node("ScatterND", "d i a", "y", reduction="add")], {"d": np.zeros((5, 4), np.float32), "i": np.array([[0], [2]])}, "adds up"),
        ([node("SplitToSequence", "a", "q", axis=0), node("ConcatFromSequence", "q", "y", axis=1)], {}, "sequence"),
        ([node("LogSoftmax", "a", "y")], {}, "rounded Softmax"),
        ([node("Sum", "a a a", "b"), node("Sub", "b c", "y")], {"c": np.float32(1)}, ""),
    ],
)  # fmt: skip
def test_operators_that_stay_in_fp32(tmp_path, nodes, constants, reason):
    model = build([node("Relu", "x", "a"), *nodes], {"x": [2, 4]}, ["y"], constants, opset=18)
    found, half = written(tmp_path, model)
    assert found.nodes >= 1
    assert any(reason in s.reason for s in found.stay) is bool(reason)
    onnx.checker.check_model(half, full_check=True)


def test_sums_that_do_not_fit_stay_in_fp32(tmp_path):
    """Each number fits, and so does the mean of them, but not what it is the mean of."""
    model = build([node("Mean", "x x x", "h"), node("Relu", "h", "y")], {"x": [2, 4]}, ["y"])
    found, _ = written(tmp_path, model, data={"x": np.full((2, 4), 3e4, np.float32)})
    assert [s.node for s in found.stay] == ["Mean 'node_h'"]
