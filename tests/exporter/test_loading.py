"""Loading: whatever an exporter writes is read as the same function, in every version of ONNX, with dynamic axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import UsageError, find_groups, load, prune, save
from exporter.autograd.module import to_torch
from exporter.pruner import totals
from runtime.backends import open_session
from runtime.errors import RunError
from tests.exporter.files import Case, check, cut, declared_as_inputs, ints, mlp, reordered, versioned, write
from tests.onnx_builder import build, node, weights

# -- versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", range(7, 27))
def test_operator_sets(opset, tmp_path):
    model = versioned(opset)
    # the two channels in front of the slice and the two behind it are read by nobody
    case = Case(f"opset {opset}", model, (4, 4, 6), ({"x": (1, 3, 7, 7)}, {"x": (3, 3, 7, 7)}))
    check(write(model, tmp_path), case, tmp_path / "out.onnx")


def assert_declared(model):
    """Before IR 4 every initializer is an input too."""
    assert {t.name for t in model.graph.initializer} < {v.name for v in model.graph.input}


@pytest.mark.parametrize("ir", range(3, 11))
def test_ir_versions(ir, tmp_path):
    model = versioned(13)
    model.ir_version = ir
    if ir == 3:
        declared_as_inputs(model)
    case = Case(f"ir {ir}", model, (4, 4, 6), ({"x": (1, 3, 7, 7)},))
    check(write(model, tmp_path), case, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert written.ir_version == ir
    if ir == 3:
        assert_declared(written)


def test_an_initializer_made_by_the_cut_is_declared_too(tmp_path):
    """Two layers whose equal biases were merged part again: one of them gets a bias of its own."""
    nodes = [
        node("Conv", "x w1 b", "h"),
        node("Relu", "h", "a"),
        node("Conv", "a w2 b", "k"),
        node("Relu", "k", "c"),
        node("Conv", "c w3", "y"),
    ]
    constants = weights(w1=(8, 3, 1, 1), w2=(8, 8, 1, 1), w3=(2, 8, 1, 1), b=(8,))
    model = declared_as_inputs(build(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants, opset=13, ir=3))
    check(write(model, tmp_path), Case("ir 3, a merged bias", model, (8, 8)), tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert {t.name for t in written.graph.initializer} - constants.keys() == {"b.clone1"}
    assert_declared(written)


# -- what exporters write ---------------------------------------------------------------------------------------


def constant(name, **attribute):
    return node("Constant", "", name, **attribute)


def _constant_nodes():
    """Every number of the network in a Constant node, in each form the attribute may have."""
    w = weights(w1=(8, 5), w2=(8, 6))
    nodes = [
        constant("w1", value=numpy_helper.from_array(w["w1"])),
        constant("b1", value_floats=[0.1 * k for k in range(8)]),
        constant("scale", value_float=0.5),
        constant("w2", value=numpy_helper.from_array(w["w2"])),
        constant("apart", value_ints=[0, 2, 3]),
        constant("last", value_int=1),
        node("Gemm", "x w1 b1", "h", transB=1),
        node("Mul", "h scale", "a"),
        node("MatMul", "a w2", "k"),
        node("Reshape", "k apart", "r"),
        node("Gather", "r last", "y", axis=1),
    ]
    return Case("constant nodes", build(nodes, {"x": ["N", 5]}, ["y"]), (3, 8), ({"x": (1, 5)}, {"x": (4, 5)}))


def _sparse_constant():
    """A sparse constant is read as the dense one it stands for."""
    values = numpy_helper.from_array(np.array([1.5, -2.0, 0.5], np.float32), "values")
    places = numpy_helper.from_array(ints(1, 7, 13), "places")
    sparse = helper.make_sparse_tensor(values, places, [8, 6])
    nodes = [
        node("MatMul", "x w1", "h"),
        constant("w2", sparse_value=sparse),
        node("MatMul", "h w2", "k"),
        node("MatMul", "k w3", "l"),
        node("Relu", "l", "m"),
        node("MatMul", "m w4", "y"),
    ]
    constants = weights(w1=(5, 8), w3=(6, 7), w4=(7, 3))
    return Case("sparse constant", build(nodes, {"x": ["N", 5]}, ["y"], constants), (6, 7, 8))


def _identities():
    """One initializer behind two Identity nodes, as torch writes shared parameters."""
    nodes = [
        node("Identity", "b", "b1"),
        node("Identity", "b1", "b2"),
        node("Conv", "x w1 b1", "h"),
        node("Conv", "h w2 b2", "k"),
        node("Identity", "w3", "w3i"),
        node("Conv", "k w3i", "y"),
    ]
    model = build(
        nodes, {"x": ["N", 3, 4, 4]}, ["y"], weights(w1=(8, 3, 1, 1), w2=(8, 8, 1, 1), w3=(2, 8, 1, 1), b=(8,))
    )
    return Case("identity-wrapped weights", model, (8,))


def _transposes():
    nodes = [
        node("Transpose", "w1", "w1t", perm=[1, 0]),
        node("Identity", "w1t", "w1i"),
        node("MatMul", "x w1i", "h"),
        node("Transpose", "w2", "w2t"),
        node("Gemm", "h w2t b2", "y", transB=1),
    ]
    model = build(nodes, {"x": ["N", 5]}, ["y"], weights(w1=(8, 5), w2=(8, 3), b2=(3,)))
    return Case("transposed weights", model, (8,))


def _casts():
    """Weights stored in half precision."""
    nodes = [
        node("Cast", "w1", "w1f", to=1),
        node("MatMul", "x w1f", "h"),
        node("Cast", "w2", "w2f", to=1),
        node("MatMul", "h w2f", "y"),
    ]
    halves = {k: v.astype(np.float16) for k, v in weights(w1=(5, 8), w2=(8, 3)).items()}
    return Case("half-precision storage", build(nodes, {"x": ["N", 5]}, ["y"], halves), (8,))


def _defaults():
    """Initializers that are also inputs: a caller may replace them."""
    return Case("inputs with defaults", declared_as_inputs(mlp()), (8,))


def _unsorted():
    model = versioned(13)
    return Case("unsorted nodes", reordered(model, reversed(model.graph.node)), (4, 4, 6))


def _omitted():
    """An omitted input in the middle of a node."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Clip", "h - six", "k"),
        node("MatMul", "k w2", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3)) | {"six": np.float32(6)}
    return Case("omitted inputs", build(nodes, {"x": ["N", 5]}, ["y"], constants), (8,))


def _deviation():
    """A LayerNormalization whose third output is used."""
    nodes = [
        node("MatMul", "x w1", "h"),
        node("LayerNormalization", "h scale", "n - deviation"),
        node("MatMul", "n w2", "y"),
    ]
    model = build(nodes, {"x": ["N", 5]}, ["y", "deviation"], weights(w1=(5, 8), w2=(8, 3), scale=(8,)))
    return Case("statistics as outputs", model, None)


LOADING = [
    _constant_nodes(), _sparse_constant(), _identities(), _transposes(), _casts(), _defaults(), _unsorted(),
    _omitted(), _deviation(),
]  # fmt: skip


@pytest.mark.parametrize("case", LOADING, ids=lambda c: c.name)
def test_what_exporters_write(case, tmp_path):
    check(write(case.model, tmp_path), case, tmp_path / "out.onnx")


def test_inputs_left_out_at_the_end_need_no_name(tmp_path):
    """ONNX Runtime's optimiser ends the process at this one, so nobody may hand it on."""
    nodes = [node("Gemm", "x w", "h"), node("Gemm", "h v", "m"), node("Add", "m x", "a")]
    nodes.append(node("LayerNormalization", "a s -", "y"))
    values = weights(w=(8, 16), v=(16, 8), s=(8,))
    path = write(build(nodes, {"x": ["N", 8]}, ["y"], values), tmp_path)
    pruned = prune(path, tmp_path / "out.onnx", ratio=0.5)
    assert pruned.proof.error < 1e-3
    assert list(onnx.load(tmp_path / "out.onnx").graph.node[-1].input) == ["a", "s"]


def test_a_default_is_resized_where_it_is_declared(tmp_path):
    graph = load(write(_defaults().model, tmp_path))
    assert graph.inputs == ["x"]
    save(cut(graph), tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in written.graph.input}
    assert {t.name: list(t.dims) for t in written.graph.initializer}.items() <= declared.items()
    assert declared["w1"] == [4, 5]


def test_written_nodes_are_sorted(tmp_path):
    """ONNX wants topological order; the checker run by ``save`` refuses a file without it."""
    graph = load(write(_unsorted().model, tmp_path))
    seen = {"x"} | {t.name for t in graph.model.graph.initializer}
    for found in graph.model.graph.node:
        assert set(found.input) <= seen
        seen |= set(found.output)


# -- dynamic axes -----------------------------------------------------------------------------------------------


def cache(mask_axis="past + seq"):
    """A decoder step: a cache of ``past`` tokens, ``seq`` new ones, a mask over both."""
    nodes = [
        node("MatMul", "x wk", "k"),
        node("Concat", "past k", "keys", axis=1),
        node("Transpose", "keys", "kt", perm=[0, 2, 1]),
        node("MatMul", "x wq", "q"),
        node("MatMul", "q kt", "s"),
        node("Unsqueeze", "mask one", "m"),
        node("Add", "s m", "a"),
        node("Softmax", "a", "p"),
        node("MatMul", "p keys", "o"),
        node("MatMul", "o w1", "h"),
        node("Relu", "h", "g"),
        node("MatMul", "g w2", "y"),
    ]
    inputs = {"x": ["batch", "seq", 5], "past": ["batch", "past", 6], "mask": ["batch", mask_axis]}
    constants = weights(wk=(5, 6), wq=(5, 6), w1=(6, 9), w2=(9, 3)) | {"one": ints(1)}
    return build(nodes, inputs, ["y", "keys"], constants)


def test_a_sum_of_symbols_is_bound_to_the_sum(tmp_path):
    graph = load(write(cache(), tmp_path))
    shapes = graph.binding.shapes
    assert shapes["mask"][1] == shapes["past"][1] + shapes["x"][1]
    sizes = tuple({"x": (n, s, 5), "past": (n, p, 6), "mask": (n, p + s)} for n, s, p in ((1, 2, 7), (3, 1, 1)))
    check(tmp_path / "model.onnx", Case("cache", cache(), (9,), sizes), tmp_path / "out.onnx")


def test_requested_shapes_are_used(tmp_path):
    path = write(cache(), tmp_path)
    graph = load(path, {"x": (3, 4, 5), "past": (3, 7, 6)})
    assert graph.binding.shapes == {"x": (3, 4, 5), "past": (3, 7, 6), "mask": (3, 11)}
    assert graph.binding.symbols == {"batch": 3, "seq": 4, "past": 7, "past + seq": 11}
    assert graph.batch == 3
    with pytest.raises(RunError, match="--shape x: axis 2 is fixed to 5"):
        load(path, {"x": (3, 4, 6)})


@pytest.mark.parametrize(("axes", "batch"), [(["N", 6], 2), ([None, 6], 2), ([8, 6], 8)])
def test_work_is_that_of_a_sample(tmp_path, axes, batch):
    """Two inputs with axes of their own, and a file that fixes how many samples it takes."""
    nodes = [node("Add", "x z", "s"), node("MatMul", "s w", "y")]
    graph = load(write(build(nodes, {"x": axes, "z": axes}, ["y"], weights(w=(6, 4))), tmp_path))
    assert graph.batch == batch
    found = totals(graph, find_groups(graph))
    assert (found.parameters, found.macs) == (24, 24)


def test_rows_of_an_image_and_steps_of_a_layer_are_no_samples(tmp_path):
    nodes = [node("Flatten", "x", "f", axis=0), node("MatMul", "f w", "y")]
    assert load(write(build(nodes, {"x": [3, 6]}, ["y"], weights(w=(18, 4))), tmp_path)).batch == 1
    nodes = [node("GRU", "x w r", "y", hidden_size=2)]
    assert load(write(build(nodes, {"x": [5, 1, 6]}, ["y"], weights(w=(1, 6, 6), r=(1, 6, 2))), tmp_path)).batch == 1


def test_an_input_that_declares_no_axes_gets_those_asked_for(tmp_path):
    model = mlp()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path, out = write(model, tmp_path), tmp_path / "out.onnx"
    assert not len(find_groups(load(path)))
    result = prune(path, out, ratio=0.5, align=1, shapes={"x": (4, 5)})
    assert result.proof.error < 1e-5
    feed = {"x": np.ones((7, 5), np.float32)}
    assert open_session(out).run(feed)["y"].shape == open_session(path).run(feed)["y"].shape


@pytest.mark.parametrize("symbol", ["", "?", "None", "-1"])
def test_nameless_axes_are_told_apart(symbol, tmp_path):
    """Exporters give every unnamed axis one name; equal names do not make equal sizes."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("MatMul", "z v", "g"),
        node("ReduceMean", "h axis", "i", keepdims=0),
        node("ReduceMean", "g axis", "j", keepdims=0),
        node("Mul", "i j", "k"),
        node("MatMul", "k u", "y"),
    ]
    constants = weights(w=(5, 8), v=(4, 8), u=(8, 3)) | {"axis": ints(1)}
    model = build(nodes, {"x": ["N", "S", 5], "z": ["N", "T", 4]}, ["y"], constants)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
                if symbol:
                    dim.dim_param = symbol
    graph = load(write(model, tmp_path))
    assert set(graph.binding.symbols) == {"x:0", "x:1", "z:0", "z:1"}
    case = Case("nameless", model, (8,), ({"x": (2, 3, 5), "z": (2, 7, 4)}, {"x": (1, 1, 5), "z": (1, 4, 4)}))
    check(tmp_path / "model.onnx", case, tmp_path / "out.onnx")


def test_the_written_file_stays_dynamic(tmp_path):
    save(cut(load(write(cache(), tmp_path))), tmp_path / "out.onnx")
    before, after = (onnx.load(tmp_path / n).graph for n in ("model.onnx", "out.onnx"))
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_sizes_at_which_a_model_runs_win_over_those_at_which_a_branch_is_empty(tmp_path):
    """The branch taken needs a hundred samples; the other, which nobody takes, fits shorter ones alone."""
    long = [node("Slice", "x from to one", "a"), node("ReduceMax", "a one", "t")]
    short = [node("MatMul", "x w", "c"), node("ReduceMax", "c one", "u")]
    branches = [
        helper.make_graph(inner, "branch", [], [helper.make_tensor_value_info(result, 1, None)])
        for inner, result in ((long, "t"), (short, "u"))
    ]
    nodes = [node("If", "flag", "y", then_branch=branches[0], else_branch=branches[1])]
    constants = weights(w=(16, 3)) | {"from": ints(100), "to": ints(400), "one": ints(1)}
    made = build(nodes, {"x": ["N", "T"], "flag": []}, ["y"], constants, kinds={"flag": "b"})
    graph = load(write(made, tmp_path))
    assert graph.binding.shapes["x"] == (2, 512)


def test_the_standard_domain_may_go_by_its_long_name(tmp_path):
    """Some write ``ai.onnx``; operators are then looked up in version 1 by those who know the short name alone."""
    made = mlp(opset=10, ir=5)
    made.opset_import[0].domain = "ai.onnx"
    result = prune(write(made, tmp_path), tmp_path / "out.onnx", ratio=0.5, align=1)
    assert result.proof is not None
    assert [o.domain for o in onnx.load(tmp_path / "out.onnx").opset_import] == ["ai.onnx"]


def test_a_model_in_memory(tmp_path):
    """It is loaded as its file is, and stays as it is; what was not loaded is refused with the way to do it."""
    model = build([node("MatMul", "x w", "h"), node("MatMul", "h v", "y")], {"x": ["N", 4]}, ["y"],
                  weights(w=(4, 6), v=(6, 2)))  # fmt: skip
    before = model.SerializeToString()
    graph = load(model)
    onnx.save(model, tmp_path / "m.onnx")
    assert [g.name for g in find_groups(graph)] == [g.name for g in find_groups(load(tmp_path / "m.onnx"))]
    assert model.SerializeToString() == before
    for value in (model, tmp_path / "m.onnx"):
        for function in (find_groups, to_torch):
            with pytest.raises(UsageError, match=r"exporter\.load"):
                function(value)


def test_an_output_that_declares_too_few_axes_gets_those_it_has(tmp_path):
    """The file passes onnx's check as long as a shape is computed by nodes, which a cut makes a constant."""
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "g"), node("Shape", "x", "s"),
             node("Gather", "s zero", "n"), node("Unsqueeze", "n", "m", axes=[0]),
             node("Concat", "m rest", "t", axis=0), node("Reshape", "g t", "y")]  # fmt: skip
    constants = weights(w=(5, 8), v=(8, 4)) | {"zero": np.array(0), "rest": ints(1, -1)}
    model = build(nodes, {"x": ["N", 5]}, ["y"], constants, opset=12, ir=6)
    shape = model.graph.output[0].type.tensor_type.shape
    shape.Clear()
    shape.dim.add(dim_param="N")
    shape.dim.add(dim_value=4)
    onnx.checker.check_model(model, full_check=True)
    path, out = write(model, tmp_path), tmp_path / "out.onnx"
    prune(path, out, ratio=0.5, align=1)
    declared = onnx.load(out).graph.output[0].type.tensor_type.shape
    assert [d.dim_value for d in declared.dim] == [0, 1, 4]
    onnx.checker.check_model(str(out), full_check=True)
