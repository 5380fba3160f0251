"""Model files for tests: how they are written and run, and the promise each of them must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from exporter import find_groups, load, make_plan, rewrite, save, score, verify
from exporter.graph import Graph
from exporter.model_file import from_model
from exporter.normalise import serialize_with_data
from exporter.plan import Plan
from tests.onnx_builder import build, ints, node, weights


@dataclass(frozen=True)
class Case:
    """A model, the width of every group that must be found (None: any), and input shapes that must all work."""

    name: str
    model: onnx.ModelProto = field(repr=False)
    widths: tuple[int, ...] | None
    sizes: tuple[dict[str, tuple[int, ...]], ...] = ()
    frozen: str = ""


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


# -- models -----------------------------------------------------------------------------------------------------


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


def wide(**options):
    """As ``mlp``, with weights large enough to lie outside, also when cut."""
    nodes = [node("Gemm", "x w1 b1", "h", transB=1), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")]
    return build(nodes, {"x": ["N", 40]}, ["y"], weights(w1=(64, 40), b1=(64,), w2=(64, 30), b2=(30,)), **options)


def declared_as_inputs(model):
    """The model itself, with its initializers among its inputs: before IR 4 they had to be."""
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


def reordered(model, nodes):
    """A copy of the model with its nodes in another order."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def write_outside(model, folder, *, location="weights.bin", threshold=0):
    """Write a model with external data: in one file, or in one per tensor where ``location`` is None."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save_model(
        copy, folder / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=location is not None,
        location=location, size_threshold=threshold,
    )  # fmt: skip
    return folder / "model.onnx"


def branch(name, nodes, output, constants=None):
    """A subgraph without inputs and with one output."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, 1, None)], tensors)


def choose(condition, output, then, other):
    return node("If", condition, output, then_branch=then, else_branch=other)


def halved(graph: Graph) -> tuple[Plan, Graph]:
    """A plan that takes half of every group, and the graph cut by it."""
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    return plan, rewrite(graph, plan)


def changed(graph: Graph, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Graph:
    """The graph with another constant."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    found = next(t for t in model.graph.initializer if t.name == name)
    found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found).copy()), name))
    return from_model(model)


def off(graph: Graph, name: str, by: float) -> Graph:
    """The graph with one weight off by a share of the largest."""

    def change(values):
        values.flat[-1] += by * np.abs(values).max()
        return values

    return changed(graph, name, change)


def zipped(*classes: int | str):
    """``x[N, 5]``, a hidden layer of 16; a label for each sample and a dictionary from class to probability."""
    nodes = [node("Gemm", "x w1 b1", "h", transB=1), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "s"),
             node("Softmax", "s", "p")]  # fmt: skip
    shapes = {"w1": (16, 5), "b1": (16,), "w2": (16, len(classes)), "b2": (len(classes),)}
    model = build(nodes, {"x": ["N", 5]}, ["p"], weights(**shapes))
    text = isinstance(classes[0], str)
    label = helper.make_tensor_value_info("label", 8 if text else 7, ["N", 1])
    maps = helper.make_map_type_proto(8 if text else 7, helper.make_tensor_type_proto(1, []))
    chances = helper.make_value_info("chances", helper.make_sequence_type_proto(maps))
    model.graph.initializer.append(numpy_helper.from_array(np.array(classes, object if text else np.int64), "classes"))
    model.graph.node.extend(
        [
            node("ArgMax", "p", "best", axis=1),
            node("ai.onnx.ml::ArrayFeatureExtractor", "classes best", "name"),
            node("Reshape", "name column", "label"),
            node("ai.onnx.ml::ZipMap", "p", "chances", **{f"classlabels_{'strings' if text else 'int64s'}": classes}),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(ints(-1, 1), "column"))
    del model.graph.output[:]
    model.graph.output.extend([label, chances])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return model


def encoded(**options):
    """``c[N, 2]`` of text, a category of (a, b, c) and one of (x, y), a hidden layer of 16, ``y[N, 3]``."""
    nodes = [node("Gather", f"c {k}", f"c{k}", axis=1) for k in ("first", "second")]
    known = {"first": ["a", "b", "c"], "second": ["x", "y"]}
    nodes += [node("ai.onnx.ml::OneHotEncoder", f"c{k}", f"h{k}", cats_strings=v, zeros=0) for k, v in known.items()]
    nodes += [node("Concat", "hfirst hsecond", "h", axis=1), node("MatMul", "h w1", "m"), node("Relu", "m", "a"),
              node("MatMul", "a w2", "y")]  # fmt: skip
    constants = weights(w1=(5, 16), w2=(16, 3)) | {"first": np.int64(0), "second": np.int64(1)}
    return build(nodes, {"c": ["N", 2]}, ["y"], constants, kinds={"c": "s"}, **options)
