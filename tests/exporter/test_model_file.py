"""Model files: whatever an exporter writes is read as the same function, cut, proved, and written back whole."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from exporter import ModelError, SecateurError, UsageError, find_groups, load, make_plan, rewrite, save, score, verify
from exporter.graph import Graph
from exporter.model_file import from_model
from exporter.normalise import serialize_with_data
from runtime.errors import RunError
from tests.onnx_builder import build, node, weights

OPSET, IR = 21, 10


@dataclass(frozen=True)
class Case:
    """A model, the width of every group that must be found (None: any), and input shapes that must all work."""

    name: str
    model: onnx.ModelProto = field(repr=False)
    widths: tuple[int, ...] | None
    sizes: tuple[dict[str, tuple[int, ...]], ...] = ()
    frozen: str = ""
    defect: str = ""


def params(cases):
    """Parameters of a test, one per case; a known defect must fail."""
    marks = {True: lambda c: pytest.mark.xfail(strict=True, reason=c.defect), False: lambda _: ()}
    return [pytest.param(c, id=c.name, marks=marks[bool(c.defect)](c)) for c in cases]


def ints(*values):
    return np.array(values, np.int64)


def run(model, feeds):
    """Outputs by name, from a path or bytes, with ONNX Runtime's own optimisation off."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def feeds_for(model, shapes, seed=0):
    """Standard normal floating-point inputs, ones for the rest."""
    rng = np.random.default_rng(seed)
    defaults = {t.name for t in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in defaults:
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = shapes.get(value.name) or tuple(d.dim_value or 2 for d in value.type.tensor_type.shape.dim)
            floating = np.dtype(dtype).kind == "f"
            feeds[value.name] = rng.standard_normal(shape).astype(dtype) if floating else np.ones(shape, dtype)
    return feeds


def assert_same_function(one, other, feeds):
    for name, want in run(one, feeds).items():
        np.testing.assert_allclose(run(other, feeds)[name], want, rtol=1e-4, atol=1e-5)


def half(graph: Graph):
    groups = find_groups(graph)
    return make_plan(groups, score(groups), ratio=0.5, align=1)


def cut(graph: Graph) -> Graph:
    return rewrite(graph, half(graph))


def write(model, folder: Path, name="model.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def assert_valid(out, original):
    """The file passes onnx's full check, unless the original does not."""
    try:
        onnx.checker.check_model(str(original), full_check=True)
    except onnx.checker.ValidationError as error:
        if "topologically sorted" not in str(error):  # that much is put right
            return
    onnx.checker.check_model(str(out), full_check=True)


def check(path: Path, case: Case, out: Path) -> Graph:
    """The promise: the normalised graph is the file's function, its cut is proved, and the written file is valid."""
    graph = load(path)
    groups = find_groups(graph)
    feeds = [feeds_for(case.model, sizes) for sizes in case.sizes or ({},)]
    for feed in feeds:
        assert_same_function(path, serialize_with_data(graph.model, graph.folder), feed)
    if case.widths is not None:
        assert sorted(g.width for g in groups) == sorted(case.widths), [(g.name, g.width) for g in groups]
    if case.frozen:
        assert any(case.frozen in f.reason.text for f in groups.frozen), {f.reason.text for f in groups.frozen}
    if len(groups):
        plan = half(graph)
        pruned = rewrite(graph, plan)
        proof = verify(pruned, graph, plan)
        assert proof.change > 1e-2
        assert pruned.parameters < graph.parameters
    else:
        pruned = graph
    written = save(pruned, out)
    assert_valid(out, path)
    assert written == sum(f.stat().st_size for f in out.parent.glob("out*"))
    again = load(out)
    assert again.parameters == pruned.parameters
    for feed in feeds:
        assert_same_function(out, serialize_with_data(pruned.model, pruned.folder), feed)
    return graph


# -- loading ----------------------------------------------------------------------------------------------------


def mlp(**options):
    """``x[N, 5]``, a hidden layer of 8, ``y[N, 3]``."""
    nodes = [node("Gemm", "x w1 b1", "h", transB=1), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    return build(nodes, {"x": ["N", 5]}, ["y"], weights(w1=(8, 5), b1=(8,), w2=(8, 3), b2=(3,)), **options)


def versioned(opset):
    """A network of operators whose attributes became inputs over the years."""
    constants = weights(w1=(8, 3, 3, 3), b1=(8,), s=(8,), b=(8,), m=(8,), w2=(6, 4, 1, 1), w3=(6, 2))
    constants["v"] = np.linspace(0.5, 2, 8).astype(np.float32)
    nodes = [node("Conv", "x w1 b1", "c"), node("BatchNormalization", "c s b m v", "n")]
    if opset < 10:
        nodes.append(node("Slice", "n", "t", starts=[2], ends=[6], axes=[1]))
    else:
        constants |= {"two": ints(2), "six": ints(6), "one": ints(1)}
        nodes.append(node("Slice", "n two six one", "t"))
    if opset < 11:
        nodes.append(node("Clip", "t", "r", min=0.0, max=6.0))
    else:
        constants |= {"low": np.float32(0), "high": np.float32(6)}
        nodes.append(node("Clip", "t low high", "r"))
    nodes += [node("Conv", "r w2", "d"), node("GlobalAveragePool", "d", "p")]
    if opset < 13:
        nodes.append(node("Squeeze", "p", "f", axes=[2, 3]))
    else:
        constants["axes"] = ints(2, 3)
        nodes.append(node("Squeeze", "p axes", "f"))
    nodes += [node("Dropout", "f", "g"), node("MatMul", "g w3", "y")]
    return build(nodes, {"x": ["N", 3, 7, 7]}, ["y"], constants, opset=opset)


@pytest.mark.parametrize("opset", range(7, 27))
def test_operator_sets(opset, tmp_path):
    model = versioned(opset)
    # the two channels in front of the slice and the two behind it are read by nobody
    case = Case(f"opset {opset}", model, (4, 4, 6), ({"x": (1, 3, 7, 7)}, {"x": (3, 3, 7, 7)}))
    check(write(model, tmp_path), case, tmp_path / "out.onnx")


@pytest.mark.parametrize("ir", range(3, 11))
def test_ir_versions(ir, tmp_path):
    model = versioned(13)
    model.ir_version = ir
    if ir == 3:  # before IR 4 every initializer is an input too
        declared_as_inputs(model)
    case = Case(f"ir {ir}", model, (4, 4, 6), ({"x": (1, 3, 7, 7)},))
    check(write(model, tmp_path), case, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert written.ir_version == ir
    if ir == 3:  # also those made by the cut: the new bounds of the slice
        made = {t.name for t in written.graph.initializer}
        assert made - {t.name for t in model.graph.initializer}
        assert made < {v.name for v in written.graph.input}


def declared_as_inputs(model):
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


def reordered(model, nodes):
    """A copy of the model with its nodes in another order."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def wide(**options):
    """As ``mlp``, with weights large enough to lie outside, also when cut."""
    nodes = [node("Gemm", "x w1 b1", "h", transB=1), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    return build(nodes, {"x": ["N", 40]}, ["y"], weights(w1=(64, 40), b1=(64,), w2=(64, 30), b2=(30,)), **options)


def write_outside(model, folder, *, location="weights.bin", threshold=0):
    """Write a model with external data: in one file, or in one per tensor where ``location`` is None."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save_model(
        copy, folder / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=location is not None,
        location=location, size_threshold=threshold,
    )  # fmt: skip
    return folder / "model.onnx"


@pytest.mark.parametrize("location", ["weights.bin", None], ids=["one file", "several files"])
@pytest.mark.parametrize("threshold", [0, 1000], ids=["all tensors", "large tensors"])
def test_external_data(location, threshold, tmp_path):
    path = write_outside(wide(), tmp_path, location=location, threshold=threshold)
    files = set(tmp_path.iterdir())
    assert len(files) == 1 + (1 if location else 4 if threshold == 0 else 2)
    graph = check(path, Case("external", wide(), (64,)), tmp_path / "out.onnx")
    assert graph.source.size == sum(f.stat().st_size for f in files)


def made_beside(out, before):
    return set(out.parent.iterdir()) - before - {out}


@pytest.mark.parametrize(
    "threshold",
    [
        0,
        pytest.param(
            1000,
            marks=pytest.mark.xfail(
                strict=True,
                reason="save looks for external tensors in the pruned graph; those that were cut are inline there",
            ),
        ),
    ],
    ids=["one tensor is not cut", "all external tensors are cut"],
)
def test_external_data_stays_external(threshold, tmp_path):
    path = write_outside(wide(), tmp_path, threshold=threshold)
    files = set(tmp_path.iterdir())
    save(cut(load(path)), tmp_path / "out.onnx")
    made = made_beside(tmp_path / "out.onnx", files)
    assert len(made) == 1
    assert made.pop().name.startswith("out-")


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
    """A sparse constant is left alone; the rest of the network is not."""
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
    return Case(
        "sparse constant", build(nodes, {"x": ["N", 5]}, ["y"], constants), (7,), frozen="no rule for Constant",
        defect="masked_original: KeyError where an operand's shape is unknown, and graphsurgeon drops sparse_value",
    )  # fmt: skip


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
    return Case(
        "statistics as outputs", model, None,
        defect="the rule lets the axis be cut, but the masked original does not make the Mean and InvStdDev outputs",
    )  # fmt: skip


LOADING = [
    _constant_nodes(), _sparse_constant(), _identities(), _transposes(), _casts(), _defaults(), _unsorted(),
    _omitted(), _deviation(),
]  # fmt: skip


@pytest.mark.parametrize("case", params(LOADING))
def test_what_exporters_write(case, tmp_path):
    check(write(case.model, tmp_path), case, tmp_path / "out.onnx")


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
    assert graph.binding.batch == 3
    with pytest.raises(RunError, match="--shape x: axis 2 is fixed to 5"):
        load(path, {"x": (3, 4, 6)})


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


# -- shape arithmetic -------------------------------------------------------------------------------------------


def size_of(tensor, axis, name):
    """The legacy exporter's three nodes that read the size of one axis."""
    return [
        node("Shape", tensor, f"{name}_shape"),
        node("Gather", f"{name}_shape i{axis}", f"{name}_size", axis=0),
        node("Unsqueeze", f"{name}_size zero", name),
    ]


TWO_SIZES = ({"x": (1, 3, 5)}, {"x": (3, 7, 5)})
INDICES = {f"i{k}": np.int64(k) for k in range(4)} | {"zero": ints(0)}


def heads(target=(), back=(), constants=(), to="to", flat="flat", opset=OPSET):
    """``x[N, S, 5]``, 24 columns apart into 4 x 6 by a target named ``to``, together by one named ``flat``."""
    nodes = [
        node("MatMul", "x w1", "h"),
        *target,
        node("Reshape", f"h {to}", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
        node("Softmax", "t", "p", axis=2),
        node("Transpose", "p", "u", perm=[0, 2, 1, 3]),
        *back,
        node("Reshape", f"u {flat}", "f"),
        node("MatMul", "f w2", "y"),
    ]
    present = {"to": ints(0, 0, 4, 6), "flat": ints(0, 0, 24)} | INDICES | dict(constants)
    made = {name for n in (*target, *back) for name in n.output}
    present = {k: v for k, v in present.items() if k not in made}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], weights(w1=(5, 24), w2=(24, 3)) | present, opset=opset)


def _expanded_token():
    """A class token repeated over the batch, by the legacy exporter's ``expand(b, -1, -1)``."""
    nodes = [
        node("MatMul", "x w0", "e"),
        *size_of("x", 0, "b"),
        node("Concat", "b minus minus", "asked", axis=0),
        node("Shape", "asked", "rank"),
        node("ConstantOfShape", "rank", "ones", value=numpy_helper.from_array(ints(1))),
        node("Mul", "ones minus", "negative"),
        node("Equal", "asked negative", "same"),
        node("Where", "same ones asked", "to"),
        node("Expand", "token to", "tokens"),
        node("Concat", "tokens e", "c", axis=1),
        node("Relu", "c", "r"),
        node("MatMul", "r w1", "y"),
    ]
    constants = weights(w0=(5, 8), w1=(8, 3), token=(1, 1, 8)) | INDICES | {"minus": ints(-1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _scale_from_a_shape():
    """Attention whose scale is the square root of a shape: it must stay what it was when head dimensions go."""
    target = [
        node("Shape", "h", "hs"),
        node("Gather", "hs i2", "width"),
        node("Cast", "width", "wide", to=1),
        node("Div", "wide four", "dim"),
        node("Sqrt", "dim", "root"),
        node("Div", "h root", "q"),
        node("Cast", "dim", "inner", to=7),
        node("Unsqueeze", "inner zero", "last"),
        node("Concat", "lead heads last", "to", axis=0),
    ]
    nodes = [
        node("MatMul", "x w1", "h"),
        *target,
        node("Reshape", "q to", "r"),
        node("Softmax", "r", "p", axis=1),
        node("Reshape", "p flat", "f"),
        node("MatMul", "f w2", "y"),
    ]
    constants = weights(w1=(5, 24), w2=(24, 3)) | INDICES
    constants |= {"four": np.float32(4), "lead": ints(0, 0), "heads": ints(4), "flat": ints(0, 0, 24)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _resize_to_another():
    """A U-Net's upsampling: batch and channels of one tensor, height and width of another."""
    nodes = [
        node("Conv", "x w1", "a", pads=[1, 1, 1, 1]),
        node("MaxPool", "a", "b", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "b w2", "c"),
        node("Shape", "c", "cs"),
        node("Slice", "cs zero two", "front"),
        node("Shape", "a", "as"),
        node("Slice", "as two four", "back"),
        node("Concat", "front back", "sizes", axis=0),
        node("Resize", "c - - sizes", "d", mode="nearest"),
        node("Concat", "a d", "e", axis=1),
        node("Conv", "e w3", "y"),
    ]
    constants = weights(w1=(6, 3, 3, 3), w2=(8, 6, 1, 1), w3=(2, 14, 1, 1)) | INDICES
    constants |= {"two": ints(2), "four": ints(4)}
    return build(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], constants)


def _chunk():
    """``chunk(2, dim=1)`` as the legacy exporter writes it: half of the size, then two slices."""
    nodes = [
        node("Conv", "x w1", "h"),
        node("Shape", "h", "hs"),
        node("Gather", "hs i1", "whole", axis=0),
        node("Unsqueeze", "whole zero", "width"),
        node("Add", "width one", "more"),
        node("Div", "more two", "half"),
        node("Mul", "half one", "stop"),
        node("Slice", "h zero stop one", "a"),
        node("Mul", "half two", "end"),
        node("Slice", "h stop end one", "b"),
        node("Sigmoid", "b", "g"),
        node("Mul", "a g", "m"),
        node("Conv", "m w2", "y"),
    ]
    constants = weights(w1=(16, 3, 1, 1), w2=(2, 8, 1, 1)) | INDICES | {"one": ints(1), "two": ints(2)}
    return build(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants)


def _flattened_batch():
    """Batch and sequence joined by a product of their sizes, and taken apart again."""
    nodes = [
        *size_of("x", 0, "b"),
        *size_of("x", 1, "s"),
        node("Mul", "b s", "rows"),
        node("Concat", "rows minus", "joined", axis=0),
        node("Reshape", "x joined", "j"),
        node("MatMul", "j w1", "h"),
        node("Relu", "h", "g"),
        node("Concat", "b s minus", "apart", axis=0),
        node("Reshape", "g apart", "k"),
        node("MatMul", "k w2", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3)) | INDICES | {"minus": ints(-1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _positions(opset=OPSET):
    """A table of positions, cut to the length of the input, and one looked up by a range."""
    nodes = [
        node("MatMul", "x w0", "e"),
        *size_of("x", 1, "s"),
        node("Slice", "table zero s one", "cut"),
        node("Add", "e cut", "a"),
        node("Range", "i0 s_size i1", "r"),
        node("Gather", "other r", "o"),
        node("Add", "a o", "c"),
        node("Relu", "c", "d"),
        node("MatMul", "d w1", "y"),
    ]
    constants = weights(w0=(5, 8), table=(1, 32, 8), other=(32, 8), w1=(8, 3)) | INDICES | {"one": ints(1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants, opset=opset)


def _zeros_like():
    """A zero state made for the batch, as recurrent cells start with."""
    nodes = [
        *size_of("x", 0, "b"),
        node("Concat", "b eight", "to", axis=0),
        node("ConstantOfShape", "to", "state"),
        node("MatMul", "x w1", "h"),
        node("Add", "h state", "g"),
        node("Tanh", "g", "k"),
        node("MatMul", "k w2", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3)) | INDICES | {"eight": ints(8)}
    return build(nodes, {"x": ["N", 5]}, ["y"], constants)


def _tiled():
    """A row of weights repeated as often as the input is long."""
    nodes = [
        *size_of("x", 1, "s"),
        node("Concat", "one s one", "times", axis=0),
        node("Tile", "row times", "rows"),
        node("MatMul", "x w1", "h"),
        node("Mul", "h rows", "g"),
        node("MatMul", "g w2", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 3), row=(1, 1, 8)) | INDICES | {"one": ints(1)}
    return build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)


def _both_ends(*nodes):
    return [*size_of("x", 0, "b"), *size_of("h", 1, "s"), *nodes]


def _apart(*nodes):
    return [*size_of("u", 0, "b2"), *size_of("u", 1, "s2"), *nodes]


LENGTHS = {"four": ints(4), "six": ints(6), "all": ints(24), "minus": ints(-1), "4i": np.int64(4), "fours": ints(4, 6)}

SHAPES = {
    "constant zeros": heads(),
    "zero and minus one": heads(constants={"to": ints(0, -1, 4, 6), "flat": ints(0, 0, -1)}),
    "the cut axis is minus one": heads(constants={"to": ints(0, 0, 4, -1), "flat": ints(0, 0, -1)}),
    "heads are minus one": heads(constants={"to": ints(0, 0, -1, 6)}),
    "legacy chain": heads(
        _both_ends(node("Concat", "b s four six", "to", axis=0)),
        _apart(node("Concat", "b2 s2 all", "flat", axis=0)), LENGTHS,
    ),
    "legacy chain with minus one": heads(
        _both_ends(node("Concat", "b s four minus", "to", axis=0)),
        _apart(node("Concat", "b2 minus all", "flat", axis=0)), LENGTHS,
    ),
    "legacy chain, batch minus one": heads(
        _both_ends(node("Concat", "minus s four six", "to", axis=0)),
        _apart(node("Concat", "b2 s2 minus", "flat", axis=0)), LENGTHS,
    ),
    "head dimension from a division": heads(
        _both_ends(
            node("Gather", "s_shape i2", "w", axis=0), node("Div", "w 4i", "d0"), node("Unsqueeze", "d0 zero", "d"),
            node("Concat", "b s four d", "to", axis=0),
        ), (), LENGTHS,
    ),
    "width from a product": heads(
        (),
        [
            *_apart(), *size_of("u", 2, "n2"), *size_of("u", 3, "d2"),
            node("Mul", "n2 d2", "nd"), node("Concat", "b2 s2 nd", "flat", axis=0),
        ], LENGTHS,
    ),
    "shape with start and end": heads(
        [node("Shape", "x", "bs", start=0, end=2), node("Concat", "bs fours", "to", axis=0)], (), LENGTHS
    ),
    "through int32": heads(
        [
            node("Shape", "x", "xs"), node("Cast", "xs", "xi", to=6), node("Slice", "xi z32 two32", "bs32"),
            node("Concat", "bs32 fours32", "to32", axis=0), node("Cast", "to32", "to", to=7),
        ], (), {f"{k}32": np.array(v, np.int32) for k, v in (("z", [0]), ("two", [2]), ("fours", [4, 6]))},
    ),
    "allowzero": heads(
        [*size_of("x", 0, "b"), node("Concat", "b minus four six", "to", axis=0)], (), LENGTHS
    ),
}  # fmt: skip
for _node in SHAPES["allowzero"].graph.node:
    if _node.op_type == "Reshape" and _node.input[1] == "to":
        _node.attribute.append(helper.make_attribute("allowzero", 1))

SHAPE_CASES = [
    *(Case(name, model, (4, 6), TWO_SIZES) for name, model in SHAPES.items()),
    Case("scale from a shape", _scale_from_a_shape(), (4, 6), TWO_SIZES),
    Case("expanded token", _expanded_token(), (8,), TWO_SIZES),
    Case("flattened batch", _flattened_batch(), (8,), TWO_SIZES),
    Case("positions", _positions(), (8,), TWO_SIZES),
    Case("zero state", _zeros_like(), (8,), ({"x": (1, 5)}, {"x": (4, 5)})),
    Case("tiled row", _tiled(), (8,), TWO_SIZES),
    Case("resize to another's size", _resize_to_another(), (6, 8), ({"x": (1, 3, 8, 8)}, {"x": (2, 3, 12, 6)})),
    Case("chunk", _chunk(), (8,)),
]


@pytest.mark.parametrize("case", params(SHAPE_CASES))
def test_shape_arithmetic(case, tmp_path):
    check(write(case.model, tmp_path), case, tmp_path / "out.onnx")


def test_a_scale_stays_the_number_it_was(tmp_path):
    """sqrt(6), however many of the 6 dimensions are left."""
    graph = load(write(_scale_from_a_shape(), tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1, granularity=["head_dims", "neurons", "hidden"])
    pruned = rewrite(graph, plan)
    for found in (graph, pruned):
        division = next(n for n in found.nodes if n.op == "Div")
        assert found.array(division.inputs[1]) == pytest.approx(np.sqrt(6))
    verify(pruned, graph, plan)


def test_folded_arithmetic_is_gone(tmp_path):
    """What is left of the shape chains is at most one Shape for every size that a run has to tell."""
    for case in SHAPE_CASES:
        graph = load(write(case.model, tmp_path))
        left = [n.op for n in graph.nodes]
        assert left.count("Shape") <= 3, case.name
        assert not {"Where", "Equal", "Sqrt"} & set(left) or case.name == "expanded token", case.name


# -- branches ---------------------------------------------------------------------------------------------------


def branch(name, nodes, output, constants=None):
    """A subgraph without inputs and with one output."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, 1, None)], tensors)


def choose(condition, output, then, other):
    return node("If", condition, output, then_branch=then, else_branch=other)


def squeezed(axes):
    """``squeeze`` as TorchScript writes it: an If on the size of the axis."""
    return [
        node("Shape", "h", "hs"),
        node("Gather", "hs last", "size", axis=0),
        node("Equal", "size one", "is_one"),
        choose(
            "is_one", "k",
            branch("then", [node("Squeeze", f"h {axes}", "squeezed")], "squeezed", {"axes": ints(-1)}),
            branch("else", [node("Identity", "h", "same")], "same"),
        ),
    ]  # fmt: skip


def _squeeze_by_if(last):
    """A convolution over a line of ``last`` elements, then an If that drops the axis when it is one."""
    nodes = [node("Conv", "x w1", "h"), *squeezed("axes" if last == 1 else ""), node("Relu", "k", "r")]
    nodes.append(node("Gemm", "r w2", "y", transB=1) if last == 1 else node("Conv", "r w3", "y"))
    constants = weights(w1=(8, 3, 1), w2=(2, 8), w3=(2, 8, 1)) | {"last": np.int64(-1), "one": np.int64(1)}
    model = build(nodes, {"x": ["N", 3, last]}, ["y"], constants)
    shape = ["N", 2] if last == 1 else ["N", 2, last]  # nobody can infer it before the If is gone
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, shape))
    return model


def _branches_with_weights(taken):
    """Both branches use the same inner names and bring their own weights."""
    then = branch(
        "then", [node("MatMul", "h inner", "p"), node("Relu", "p", "q")], "q", weights(1, inner=(8, 6))
    )  # fmt: skip
    other = branch(
        "else", [node("MatMul", "h inner", "p"), node("Tanh", "p", "q")], "q", weights(2, inner=(8, 6))
    )  # fmt: skip
    nodes = [node("MatMul", "x w1", "h"), choose("flag", "k", then, other), node("MatMul", "k w2", "y")]
    return build(nodes, {"x": ["N", 5]}, ["y"], weights(w1=(5, 8), w2=(6, 3)) | {"flag": np.array([taken])})


def _nested_branches():
    inner = choose(
        "no", "i", branch("a", [node("Relu", "h", "z")], "z"), branch("b", [node("MatMul", "h w", "z")], "z")
    )
    then, other = branch("then", [inner, node("Tanh", "i", "j")], "j"), branch("else", [node("Abs", "h", "j")], "j")
    nodes = [node("MatMul", "x w1", "h"), choose("yes", "k", then, other), node("MatMul", "k w2", "y")]
    constants = weights(w1=(5, 8), w=(8, 6), w2=(6, 3)) | {"yes": np.array(True), "no": np.array(False)}
    return build(nodes, {"x": ["N", 5]}, ["y"], constants)


def _branch_of_the_input():
    """An If that only a run can decide: what it reads is frozen, what stands beside it is not."""
    then, other = (
        branch(n, [node("MatMul", "h inner", "q")], "q", weights(k, inner=(8, 6))) for k, n in enumerate("ab")
    )
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        node("MatMul", "x w1", "h"),
        choose("positive", "k", then, other),
        node("MatMul", "x w3", "l"),
        node("MatMul", "l w4", "m"),
        node("Add", "k m", "y"),
    ]
    constants = weights(w1=(5, 8), w3=(5, 7), w4=(7, 6)) | {"zero": np.float32(0)}
    return build(nodes, {"x": [2, 5]}, ["y"], constants)


def _names_of_a_branch_that_stays():
    """What becomes part of the graph must not take the names another branch uses inside."""
    known, then, other = (
        branch(n, [node("Relu", "h", "p"), node("Abs", "p", "q")], "q") for n in ("known", "then", "other")
    )
    nodes = [
        node("MatMul", "x w1", "h"),
        choose("yes", "k", known, known),
        node("MatMul", "k w2", "l"),
        node("Relu", "l", "l1"),
        node("MatMul", "l1 w3", "m"),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        choose("positive", "n", then, other),
        node("MatMul", "n w4", "o"),
        node("Add", "m o", "y"),
    ]
    constants = weights(w1=(5, 8), w2=(8, 6), w3=(6, 3), w4=(8, 3)) | {"yes": np.array(True), "zero": np.float32(0)}
    return build(nodes, {"x": [2, 5]}, ["y"], constants)


BRANCHES = [
    Case("squeeze taken", _squeeze_by_if(1), (8,)),
    Case("squeeze not taken", _squeeze_by_if(4), (8,)),
    Case("then, with weights", _branches_with_weights(True), (6, 8)),
    Case("else, with weights", _branches_with_weights(False), (6, 8)),
    Case("nested", _nested_branches(), (6, 8)),
    Case("names of a branch that stays", _names_of_a_branch_that_stays(), (6,), frozen="read inside a subgraph"),
    Case("decided by the input", _branch_of_the_input(), (7,), frozen="read inside a subgraph"),
]


@pytest.mark.parametrize("case", params(BRANCHES))
def test_branches(case, tmp_path):
    graph = check(write(case.model, tmp_path), case, tmp_path / "out.onnx")
    left = [n.op for n in graph.nodes].count("If")
    assert left == (case.name in ("decided by the input", "names of a branch that stays"))


# -- local functions --------------------------------------------------------------------------------------------


def function(name, inputs, outputs, nodes, opset=OPSET, attributes=(), defaults=(), domains=("local",)):
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_function(
        "local", name, inputs.split(), outputs.split(), nodes, imports, list(attributes), list(defaults)
    )
    made.doc_string = f"what {name} does"
    return made


def reference(op, inputs, outputs, **names):
    """A node of a function whose attributes are the caller's: ``alpha="slope"`` takes the caller's ``slope``."""
    made = node(op, inputs, outputs)
    for attribute, (outer, kind) in names.items():
        made.attribute.add(name=attribute, ref_attr_name=outer, type=kind)
    return made


FLOAT = onnx.AttributeProto.FLOAT

LINEAR = function("Linear", "x w b", "y", [node("MatMul", "x w", "h"), node("Add", "h b", "y")])
BLOCK = function(
    "Block", "x w b", "y",
    [node("local::Linear", "x w b", "h"), node("Relu", "h", "y")],
)  # fmt: skip
LEAKY = function(
    "Leaky", "x", "y", [reference("LeakyRelu", "x", "y", alpha=("slope", FLOAT))], attributes=["slope"]
)  # fmt: skip
LEAKY_BY_DEFAULT = function(
    "Leaky", "x", "y",
    [reference("LeakyRelu", "x", "y", alpha=("slope", FLOAT))], defaults=[helper.make_attribute("slope", 0.3)],
)  # fmt: skip
SCALED = function(
    "Scaled", "x", "y",
    [reference("Constant", "", "c", value_float=("by", FLOAT)), node("Mul", "x c", "y")], attributes=["by"],
)  # fmt: skip
OUTER = function(
    "Outer", "x", "y", [reference("local::Leaky", "x", "y", slope=("steep", FLOAT))], attributes=["steep"]
)  # fmt: skip
SPLIT = function("Both", "x", "a b", [node("Relu", "x", "a"), node("Neg", "a", "b")])
CHOICE = function(
    "Choice", "x", "y",
    [
        node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True))),
        choose("yes", "y", branch("t", [node("Relu", "x", "z")], "z"), branch("e", [node("Abs", "x", "z")], "z")),
    ],
)  # fmt: skip
OLD = function("Old", "x", "y", [node("Relu", "x", "y")], opset=13)
IDLE = function("Idle", "x", "y", [node("Abs", "x", "y")])

LAYERS = weights(w1=(5, 8), b1=(8,), w2=(8, 6), b2=(6,), w3=(6, 3))


def called(*nodes, functions):
    return build(nodes, {"x": ["N", 5]}, ["y"], LAYERS, functions=functions)


def between(*nodes):
    """``h`` with 8 units, some calls that give ``k``, and a layer that reads it."""
    return [node("MatMul", "x w1", "h"), *nodes, node("MatMul", "k w2", "l"), node("MatMul", "l w3", "y")]


def inside(*nodes, functions):
    """A model around calls that give ``k`` from ``h``."""
    return called(*between(*nodes), functions=functions)


STRIDED = function(
    "Strided", "x w", "y", [node("Conv", "x w", "c", strides=[2, 2], pads=[1, 1, 1, 1]), node("Relu", "c", "y")]
)


def _resize_to_a_result():
    """The height and width of a call's result, which nobody knows the name of but an inner tensor of the call."""
    nodes = [
        node("local::Strided", "x w1", "a"),
        node("MaxPool", "a", "b", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "b w2", "c"),
        node("Shape", "c", "front", start=0, end=2),
        node("Shape", "a", "back", start=2, end=4),
        node("Concat", "front back", "sizes", axis=0),
        node("Resize", "c - - sizes", "d", mode="nearest"),
        node("Concat", "a d", "e", axis=1),
        node("Conv", "e w3", "y"),
    ]
    constants = weights(w1=(6, 3, 3, 3), w2=(8, 6, 1, 1), w3=(2, 14, 1, 1))
    return build(nodes, {"x": ["N", 3, "H", "W"]}, ["y"], constants, functions=[STRIDED])


FUNCTIONS = [
    Case(
        "called twice",
        called(
            node("local::Linear", "x w1 b1", "h"), node("local::Linear", "h w2 b2", "k"), node("MatMul", "k w3", "y"),
            functions=[LINEAR],
        ), (6, 8),
    ),
    Case(
        "nested",
        called(
            node("local::Block", "x w1 b1", "h"), node("local::Block", "h w2 b2", "k"), node("MatMul", "k w3", "y"),
            functions=[LINEAR, BLOCK],
        ), (6, 8),
    ),
    Case("attribute", inside(node("local::Leaky", "h", "k", slope=0.25), functions=[LEAKY]), (6, 8)),
    Case("attribute left to its default", inside(node("local::Leaky", "h", "k"), functions=[LEAKY_BY_DEFAULT]), (6, 8)),
    Case(
        "attribute in place of its default",
        inside(node("local::Leaky", "h", "k", slope=0.75), functions=[LEAKY_BY_DEFAULT]), (6, 8),
    ),
    Case("attribute of a constant", inside(node("local::Scaled", "h", "k", by=3.0), functions=[SCALED]), (6, 8)),
    Case("attribute handed down", inside(node("local::Outer", "h", "k", steep=0.5), functions=[LEAKY, OUTER]), (6, 8)),
    Case("two results", inside(node("local::Both", "h", "a b"), node("Mul", "a b", "k"), functions=[SPLIT]), (6, 8)),
    Case("one result of two", inside(node("local::Both", "h", "k -"), functions=[SPLIT]), (6, 8)),
    Case(
        "the second result of two", inside(node("local::Both", "h", "- k"), functions=[SPLIT]), (6, 8),
        defect="an output the caller omits gets the name '' inside too, where another node of the function reads it",
    ),
    Case(
        "a size of an inner tensor", _resize_to_a_result(), (6, 8), ({"x": (1, 3, 16, 16)}, {"x": (2, 3, 24, 12)}),
        defect="folding reads the size off a tensor inside the call, which is gone when the call is put back",
    ),
    Case("a branch inside", inside(node("local::Choice", "h", "k"), functions=[CHOICE]), (6, 8)),
    Case("another operator set", inside(node("local::Old", "h", "k"), functions=[OLD]), (6,), frozen="no rule"),
    Case("never called", inside(node("Relu", "h", "k"), functions=[IDLE]), (6, 8)),
]  # fmt: skip


@pytest.mark.parametrize("case", params(FUNCTIONS))
def test_functions(case, tmp_path):
    check(write(case.model, tmp_path), case, tmp_path / "out.onnx")


LOST_CALLS = {
    "attribute of a constant": "loading rewrites value_float to value, so that the call's body no longer matches",
    "one result of two": "the node behind the omitted output is dropped, so that the call's body no longer matches",
}


@pytest.mark.parametrize(
    "case",
    params(
        dataclasses.replace(c, defect=c.defect or LOST_CALLS.get(c.name, ""))
        for c in FUNCTIONS
        if c.name != "a branch inside"  # what was inside is no longer what the call did
    ),
)
def test_untouched_calls_are_put_back(case, tmp_path):
    """Read and written again, a model with functions is the file it was."""
    path = write(case.model, tmp_path)
    save(load(path), tmp_path / "same.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "same.onnx")
    assert list(after.functions) == list(before.functions)
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]


def test_only_cut_calls_are_inlined(tmp_path):
    model = called(
        node("local::Linear", "x w1 b1", "h"), node("local::Leaky", "h", "g", slope=0.25),
        node("local::Linear", "g w2 b2", "k"), node("local::Outer", "k", "l", steep=2.0), node("MatMul", "l w3", "y"),
        functions=[LINEAR, LEAKY, OUTER, IDLE],
    )  # fmt: skip
    graph = load(write(model, tmp_path))
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1, only=["w1"])
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan)
    save(pruned, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    called_ops = [n.op_type for n in written.graph.node if n.domain == "local"]
    # a cut changes what a call is given, not what it does; only a Constant or a size inside would be inlined
    assert called_ops == ["Linear", "Leaky", "Linear", "Outer"]
    assert [f.name for f in written.functions] == ["Linear", "Leaky", "Outer", "Idle"]


RESHAPED = function(
    "Heads", "x", "y",
    [node("Constant", "", "to", value_ints=[0, 4, 2]), node("Reshape", "x to", "r"), node("Softmax", "r", "s", axis=1),
     node("Constant", "", "flat", value_ints=[0, 8]), node("Reshape", "s flat", "y")],
)  # fmt: skip


def test_a_call_with_a_size_inside_is_inlined_where_it_is_cut(tmp_path):
    model = inside(node("local::Heads", "h", "k"), functions=[RESHAPED, IDLE])
    case = Case("sizes", model, (2, 6))
    graph = check(write(model, tmp_path), case, tmp_path / "out.onnx")
    assert graph.calls.uncalled == {"Idle"}
    written = onnx.load(tmp_path / "out.onnx")
    assert [f.name for f in written.functions] == ["Idle"]  # no call is left; what was idle before stays
    assert "Heads" not in {n.op_type for n in written.graph.node}


@pytest.mark.xfail(strict=True, reason="restore puts a call where its last node was, behind the readers of its others")
def test_functions_of_an_unsorted_model(tmp_path):
    """Sorting may move other nodes between those of a call; the call must not be put back in front of its inputs."""
    nodes = between(
        node("local::Both", "h", "a b"), node("Sigmoid", "a", "c"), node("Mul", "b c", "d"), node("Add", "d a", "k")
    )
    model = called(*nodes, functions=[SPLIT])
    for seed in range(6):
        shuffled = [nodes[k] for k in np.random.default_rng(seed).permutation(len(nodes))]
        path = write(reordered(model, shuffled), tmp_path)
        save(load(path), tmp_path / "out.onnx")
        onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


# -- saving -----------------------------------------------------------------------------------------------------


def described(value, text):
    value.doc_string = f"about {text}"
    value.metadata_props.add(key="name", value=text)


def documented():
    """A model with a remark wherever ONNX has room for one."""
    model = versioned(21)
    model.doc_string = "about the model"
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "1.2", "org.maker", 7
    model.metadata_props.add(key="classes", value="cat,dog")
    described(model.graph, "graph")
    model.opset_import.add(domain="com.microsoft", version=1)
    for found in model.graph.node:
        described(found, found.op_type)
    for tensor in model.graph.initializer:
        described(tensor, tensor.name)
    model.graph.value_info.append(helper.make_tensor_value_info("c", 1, ["N", 8, 5, 5]))
    model.graph.value_info.append(helper.make_tensor_value_info("r", 1, ["N", 4, 5, 5]))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        described(value, value.name)
    for name in ("c", "w1", "r"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="low")
    return model


SIZES = {"two", "six"}
"""Bounds of the slice: they follow the cut."""


def test_every_remark_is_kept(tmp_path):
    path = write(documented(), tmp_path)
    save(cut(load(path)), tmp_path / "out.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
        assert getattr(after, name) == getattr(before, name)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.opset_import) == list(before.opset_import)
    assert after.graph.name == before.graph.name
    assert after.graph.doc_string == "about graph"
    assert list(after.graph.metadata_props) == list(before.graph.metadata_props)
    assert list(after.graph.quantization_annotation) == list(before.graph.quantization_annotation)
    for kind in ("node", "input", "output", "value_info", "initializer"):
        old = {v.output[0] if kind == "node" else v.name: v for v in getattr(before.graph, kind)}
        new = {v.output[0] if kind == "node" else v.name: v for v in getattr(after.graph, kind)}
        assert new.keys() - {f"{n}.1" for n in SIZES} == old.keys() - SIZES, kind
        for name in new.keys() & old.keys():
            value = new[name]
            assert value.name == old[name].name
            assert value.doc_string == old[name].doc_string, (kind, name)
            assert list(value.metadata_props) == list(old[name].metadata_props), (kind, name)
    declared = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in after.graph.value_info}
    assert declared == {"c": 4, "r": 2}  # declared shapes follow the cut


@pytest.mark.xfail(strict=True, reason="an updated size constant is always a new one, named 'two.1', without remarks")
def test_a_size_with_one_reader_keeps_its_name_and_remarks(tmp_path):
    save(cut(load(write(documented(), tmp_path))), tmp_path / "out.onnx")
    kept = {t.name: t.doc_string for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.name in SIZES}
    assert kept == {"two": "about two", "six": "about six"}


def test_reading_and_writing_changes_nothing(tmp_path):
    path = write(documented(), tmp_path)
    save(load(path), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(path)


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "external"])
def test_the_same_plan_gives_the_same_bytes(outside, tmp_path):
    path = write_outside(wide(), tmp_path) if outside else write(wide(), tmp_path)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        graph = load(path)
        save(rewrite(graph, half(graph)), tmp_path / name / "out.onnx")
        contents.append({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 1 + outside


def test_the_data_file_is_named_by_its_content(tmp_path):
    """A reader of the old model must never meet new data under the old name."""
    path = write_outside(wide(), tmp_path)
    graph = load(path)
    groups = find_groups(graph)
    out = tmp_path / "out.onnx"
    names = []
    for ratio in (0.25, 0.5, 0.25):
        save(rewrite(graph, make_plan(groups, score(groups), ratio=ratio, align=1)), out)
        (data,) = tmp_path.glob("out-*.data")  # the file of the output replaced is gone
        names.append(data.name)
        assert load(out).parameters < graph.parameters
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("name", ["weights.bin", "out-mine.bin", "shared.data"])
def test_foreign_data_files_stay(name, tmp_path):
    """The output replaced kept its data in a file somebody else made, which other models may use."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    write_outside(wide(), target, location=name).rename(target / "out.onnx")
    kept = (target / name).read_bytes()
    save(cut(load(write_outside(wide(), source))), target / "out.onnx")
    assert (target / name).read_bytes() == kept
    assert load(target / "out.onnx").parameters < load(source / "model.onnx").parameters


def test_a_model_may_be_replaced_by_its_own_cut(tmp_path):
    path = write_outside(wide(), tmp_path)
    graph = load(path)
    feed = feeds_for(wide(), {})
    before = run(path, feed)["y"]
    pruned = cut(graph)
    save(pruned, path)
    assert load(path).parameters == pruned.parameters < graph.parameters
    # the dense graph maps its weights: they must still be there
    np.testing.assert_allclose(run(serialize_with_data(graph.model, graph.folder), feed)["y"], before, rtol=1e-5)


@pytest.mark.xfail(strict=True, reason="the data file of the model replaced is kept for the graph in memory, for ever")
def test_cutting_in_place_leaves_one_data_file(tmp_path):
    path = write_outside(wide(), tmp_path)
    for _ in range(3):
        save(cut(load(path)), path)
    assert len(list(tmp_path.glob("model-*.data"))) == 1


def invalid(graph: Graph) -> Graph:
    """The graph with an attribute Relu does not have."""
    model = onnx.ModelProto.FromString(graph.model.SerializeToString())
    next(n for n in model.graph.node if n.op_type == "Relu").attribute.append(helper.make_attribute("no_such", 1))
    return dataclasses.replace(graph, model=model)


def raising(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


def _on_data(original, suffix, code):
    """``Path.replace`` that fails on the way to a file with this suffix only."""

    def replace(self, target):
        if Path(target).suffix == suffix:
            raise OSError(code, os.strerror(code))
        return original(self, target)

    return replace


FAILURES = {
    "the checker objects": lambda _: None,
    "no permission for a temporary file": lambda m: m.setattr(tempfile, "mkstemp", raising(errno.EACCES)),
    "a read-only file system": lambda m: m.setattr(tempfile, "mkstemp", raising(errno.EROFS)),
    "no room for the model": lambda m: m.setattr(Path, "write_bytes", raising(errno.ENOSPC)),
    "the disk fails while flushing": lambda m: m.setattr(os, "fsync", raising(errno.EIO)),
    "the model cannot be renamed": lambda m: m.setattr(Path, "replace", _on_data(Path.replace, ".onnx", errno.EACCES)),
    "the data cannot be renamed": lambda m: m.setattr(Path, "replace", _on_data(Path.replace, ".data", errno.EACCES)),
}


PLACES = [(f, o) for f in FAILURES for o in (False, True) if o or f != "the data cannot be renamed"]


@pytest.mark.parametrize("there", [False, True], ids=["new file", "old file"])
@pytest.mark.parametrize(
    ("failure", "outside"), PLACES, ids=[f"{f}, {'external' if o else 'inside'}" for f, o in PLACES]
)
def test_a_failure_leaves_everything_as_it_was(failure, outside, there, tmp_path, monkeypatch, request):
    if outside and failure == "no room for the model":
        reason = "the data file made first is removed only if the check or the rename fails, not if the write does"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = write_outside(wide(), tmp_path / "in") if outside else write(wide(), tmp_path / "in")
    graph = load(path)
    target = tmp_path / "out" / "out.onnx"
    if there:
        groups = find_groups(graph)
        save(rewrite(graph, make_plan(groups, score(groups), ratio=0.25, align=1)), target)
    before = {f: f.read_bytes() for f in target.parent.iterdir()}
    pruned = cut(graph)
    if failure == "the checker objects":
        pruned = invalid(pruned)
    with monkeypatch.context() as patch:
        FAILURES[failure](patch)
        checked = failure == "the checker objects"
        text = "does not pass the ONNX checker" if checked else "cannot be written"
        with pytest.raises(ModelError if checked else UsageError, match=text):
            save(pruned, target)
    assert {f: f.read_bytes() for f in target.parent.iterdir()} == before
    assert {f.name for f in path.parent.iterdir()} == {"model.onnx"} | ({"weights.bin"} if outside else set())


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    graph = load(write_outside(wide(), tmp_path))
    before = set(tmp_path.iterdir())

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(cut(graph), tmp_path / "out.onnx")
    assert set(tmp_path.iterdir()) == before


def test_success_leaves_no_temporary_file(tmp_path):
    save(cut(load(write(wide(), tmp_path))), tmp_path / "out.onnx")
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx", "out.onnx"}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_file_has_the_users_permissions(umask, tmp_path):
    """A temporary file is private; the result is not."""
    graph = load(write_outside(wide(), tmp_path))
    old = os.umask(umask)
    try:
        save(cut(graph), tmp_path / "out.onnx")
    finally:
        os.umask(old)
    for file in (tmp_path / "out.onnx", *tmp_path.glob("out-*.data")):
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_missing_folder_is_named(tmp_path):
    graph = load(write(wide(), tmp_path))
    with pytest.raises(UsageError, match="nowhere"):
        save(graph, tmp_path / "nowhere" / "out.onnx")


# -- bad input --------------------------------------------------------------------------------------------------


def changed(change, model=None):
    """Bytes of a small model after ``change``."""
    copy = onnx.ModelProto.FromString((model or mlp()).SerializeToString())
    change(copy)
    return copy.SerializeToString()


def _first(model, name):
    return next(n for n in model.graph.node if n.output[0] == name)


def _duplicate_initializer(model):
    model.graph.initializer.append(model.graph.initializer[0])


def _duplicate_input(model):
    model.graph.input.append(model.graph.input[0])


def _duplicate_output(model):
    _first(model, "a").output[0] = "h"


def _output_named_like_an_input(model):
    _first(model, "h").output[0] = "x"


def _dangling(model):
    _first(model, "a").input[0] = "nowhere"


def _undefined(model):
    model.graph.output[0].name = "z"


def _cycle(model):
    _first(model, "h").input[0] = "a"


def _cycle_through_a_branch(model):
    then = branch("t", [node("Relu", "y", "z")], "z")
    _first(model, "a").CopyFrom(choose("flag", "a", then, then))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))


def _dangling_in_a_branch(model):
    then = branch("t", [node("Relu", "nowhere", "z")], "z")
    _first(model, "a").CopyFrom(choose("flag", "a", then, then))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))


def _short_weight(model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _negative_size(model):
    model.graph.initializer[0].dims[0] = -8


def _huge_weight(model):
    model.graph.initializer[0].dims[0] = 1 << 47


def _unknown_type(model):
    model.graph.initializer[0].data_type = 99


def set_opset(version):
    def change(model):
        model.opset_import[0].version = version

    return change


def set_ir(version):
    def change(model):
        model.ir_version = version

    return change


def _without_weights(model):
    del _first(model, "h").input[1:]


def _not_text(model):
    model.graph.node[1].op_type = "Re!u"


DEFECTS = {
    "a negative size": "load does not look at the sizes of a weight it does not read",
    "a huge size": "slots are numbered for an axis of any size: MemoryError (out of memory where less is asked for)",
    "an unknown element type": "load does not look at the type of a weight it does not read",
    "an operator without its inputs": "only SlotError is caught around a rule: IndexError",
    "a name that is not UTF-8": "protobuf gives such a name as bytes: TypeError or UnicodeDecodeError later",
    "duplicate initializer": "the second of two initializers of one name is not noticed",
    "duplicate input": "the second of two inputs of one name is not noticed",
    "in the parent folder, of a branch": "external data of a subgraph's initializers is not checked",
    "dangling input of a branch": "names read inside a subgraph are not checked",
}

BAD = {
    "empty": (b"", "holds no ONNX graph \\(0 bytes"),
    "text": (b"this is not a model\n" * 20, "is not an ONNX file|holds no ONNX graph"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is not an ONNX file"),
    "an archive": (b"PK\x03\x04" + bytes(60), "is not an ONNX file"),
    "zeros": (bytes(1000), "is not an ONNX file"),
    "no nodes": (changed(lambda m: m.graph.ClearField("node")), "holds no ONNX graph"),
    "no operator sets": (changed(lambda m: m.ClearField("opset_import")), "holds no ONNX graph"),
    "operator set 6": (changed(set_opset(6)), "uses operator set 6; 7 is the oldest"),
    "IR version 2": (changed(set_ir(2)), "IR version 2; 3 is the oldest"),
    "duplicate initializer": (changed(_duplicate_initializer), "'w1' is defined twice"),
    "duplicate input": (changed(_duplicate_input), "'x' is defined twice"),
    "duplicate node output": (changed(_duplicate_output), "'h' is defined twice"),
    "node output named like an input": (changed(_output_named_like_an_input), "'x' is defined twice"),
    "dangling input": (changed(_dangling), "Relu 'node_a' reads 'nowhere'"),
    "dangling input of a branch": (changed(_dangling_in_a_branch), "reads 'nowhere'"),
    "undefined output": (changed(_undefined), "output 'z' is defined by no node"),
    "cycle": (changed(_cycle), "cycle through (Gemm 'node_h'|Relu 'node_a')"),
    "cycle through a branch": (changed(_cycle_through_a_branch), "cycle through"),
    "a weight too short": (changed(_short_weight), "'w1' .*cannot be read.*\\n.*damaged"),
    "a negative size": (changed(_negative_size), "'w1'"),
    "a huge size": (changed(_huge_weight), "'w1'"),
    "an unknown element type": (changed(_unknown_type), "'w1'"),
    "an operator without its inputs": (changed(_without_weights), "Gemm 'node_h'"),
    "a name that is not UTF-8": (changed(_not_text).replace(b"Re!u", b"Re\xffu"), "UTF-8|not text"),
}  # fmt: skip


def marked(names):
    """Names of a table; those of a known defect must fail."""
    marks = {n: pytest.mark.xfail(strict=True, reason=reason) for n, reason in DEFECTS.items()}
    return [pytest.param(n, marks=marks.get(n, ())) for n in names]


@pytest.mark.parametrize("name", marked(BAD))
def test_bad_files_are_refused(name, tmp_path):
    """Each with a message that names the cause, before anything is cut."""
    data, text = BAD[name]
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=text):
        half(load(tmp_path / "model.onnx"))


def test_no_such_file(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.onnx: no such file"):
        load(tmp_path / "missing.onnx")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory"):
        load(tmp_path)


def test_a_model_in_memory_is_checked_too():
    with pytest.raises(ModelError, match="the model uses operator set 6"):
        from_model(onnx.ModelProto.FromString(changed(set_opset(6))))


def set_entry(key, value, tensor=0):
    """Change one entry of an external tensor's description."""

    def change(path, _):
        model = onnx.load(path, load_external_data=False)
        found = model.graph.initializer[tensor]
        for entry in [e for e in found.external_data if e.key == key]:
            found.external_data.remove(entry)
        if value is not None:
            found.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())

    return change


def _to_the_parent(path, data):
    data.rename(path.parent.parent / "secret.bin")
    for k in range(4):
        set_entry("location", "../secret.bin", k)(path, data)


def _to_an_absolute_path(path, data):
    data.rename(path.parent.parent / "secret.bin")
    for k in range(4):
        set_entry("location", str(path.parent.parent / "secret.bin"), k)(path, data)


def _to_a_link(path, data):
    data.rename(path.parent.parent / "secret.bin")
    data.symlink_to(path.parent.parent / "secret.bin")


def _to_a_linked_folder(path, data):
    (path.parent.parent / "secrets").mkdir()
    data.rename(path.parent.parent / "secrets" / "weights.bin")
    (path.parent / "near").symlink_to(path.parent.parent / "secrets")
    for k in range(4):
        set_entry("location", "near/weights.bin", k)(path, data)


def _cut_short(path, data):
    data.write_bytes(data.read_bytes()[:-1])


def _at_the_end(path, data):
    set_entry("length", None)(path, data)
    set_entry("offset", str(data.stat().st_size - 8))(path, data)


def _in_a_constant_node(path, data):
    """External data of a Constant node, which onnx allows too."""
    _to_the_parent(path, data)
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "w1")
    model.graph.node.insert(0, node("Constant", "", "w1", value=tensor))
    model.graph.initializer.remove(tensor)
    (path.parent / "weights.bin").write_bytes((path.parent.parent / "secret.bin").read_bytes())
    for t in model.graph.initializer:
        t.external_data[0].value = "weights.bin"
    path.write_bytes(model.SerializeToString())


def _in_a_branch(path, data):
    """External data of a subgraph's initializer: neither read here nor handed to ONNX Runtime."""
    (path.parent.parent / "secret.bin").write_bytes(bytes(64))
    secret = helper.make_tensor("secret", 1, [1], [0.0])
    secret.ClearField("float_data")
    secret.data_location = onnx.TensorProto.EXTERNAL
    secret.external_data.add(key="location", value="../secret.bin")
    model = onnx.load(path, load_external_data=False)
    then = branch("t", [node("Add", "h secret", "z")], "z")
    then.initializer.append(secret)
    model.graph.node[1].CopyFrom(choose("flag", "a", then, branch("e", [node("Relu", "h", "z")], "z")))
    model.graph.input.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    path.write_bytes(model.SerializeToString())


OUTSIDE = r"'\S+', which is outside the model's folder"

BAD_DATA = {
    "no data file": (lambda _, data: data.unlink(), "'w1' keeps its data in 'weights.bin', but there is no such file"),
    "in the parent folder": (_to_the_parent, OUTSIDE),
    "at an absolute path": (_to_an_absolute_path, OUTSIDE),
    "behind a link": (_to_a_link, OUTSIDE),
    "behind a linked folder": (_to_a_linked_folder, OUTSIDE),
    "in the parent folder, of a Constant node": (_in_a_constant_node, OUTSIDE),
    "in the parent folder, of a branch": (_in_a_branch, OUTSIDE),
    "without a location": (set_entry("location", None), "'w1' keeps its data in ''"),
    "in a folder": (set_entry("location", "."), "'w1' keeps its data in '.', but there is no such file"),
    "offset beyond the end": (set_entry("offset", "1000000"), "'w1' .* at bytes 1000000.*, but the file has"),
    "length beyond the end": (set_entry("length", "1000000"), "'w1' .* at bytes 0..1000000, but the file has"),
    "offset below zero": (set_entry("offset", "-4"), "'w1' .* at bytes -4"),
    "length below zero": (set_entry("length", "-4"), "'w1' .* at bytes"),
    "offset that is no number": (set_entry("offset", "first"), "'w1' .* not a number"),
    "length that is no number": (set_entry("length", "1e3"), "'w1' .* not a number"),
    "length of another shape": (set_entry("length", "64"), "'w1' .*cannot be read: 64 bytes for 2560 elements"),
    "no length, and too short": (_at_the_end, "'w1' .*cannot be read"),
    "cut short": (_cut_short, "'(w2|b2|w1|b1)' .*truncated or belongs to another model|but the file has"),
}  # fmt: skip


@pytest.mark.parametrize("name", marked(BAD_DATA))
def test_bad_external_data_are_refused(name, tmp_path):
    change, text = BAD_DATA[name]
    (tmp_path / "models").mkdir()
    path = write_outside(wide(), tmp_path / "models")
    half(load(path))  # good so far
    change(path, path.parent / "weights.bin")
    with pytest.raises(ModelError, match=text):
        half(load(path))


def test_a_link_within_the_folder_is_followed(tmp_path):
    path = write_outside(wide(), tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "data" / "real.bin")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "data" / "real.bin")
    assert len(half(load(path)).groups) == 1


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    write_outside(wide(), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(half(load(tmp_path / "link" / "model.onnx")).groups) == 1


_COMPLETE = versioned(13).SerializeToString()


@pytest.mark.parametrize("offset", [*range(1, 40, 3), *range(40, len(_COMPLETE), 57), -1])
def test_truncated_files_are_refused(offset, tmp_path):
    (tmp_path / "model.onnx").write_bytes(_COMPLETE[:offset])
    with pytest.raises(ModelError, match=r"truncated \([\d,]+ bytes read\)|[\d,]+ bytes read\).\n.*truncated"):
        load(tmp_path / "model.onnx")


def allowed_to_fail(data):
    """Load, analyse, cut and prove: any error must be one of ours."""
    try:
        graph = from_model(onnx.ModelProto.FromString(data))
        plan = half(graph)
        verify(rewrite(graph, plan), graph, plan, runs=1)
    except (SecateurError, RunError):
        pass


_SMALL = mlp().SerializeToString()
_RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def flipped(changes):
    data = bytearray(_SMALL)
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data)


_CHANGES = st.lists(st.tuples(st.integers(0, len(_SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=3)


@pytest.mark.xfail(strict=True, reason="see the table: names that are not UTF-8, operators without their inputs")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a weight of 1e38 overflows where it is squared
@settings(max_examples=60, **_RELAXED)
@given(_CHANGES)
def test_damaged_bytes_never_crash(changes):
    try:
        onnx.ModelProto.FromString(flipped(changes))
    except Exception:  # protobuf itself refuses: covered by the table above
        return
    allowed_to_fail(flipped(changes))
