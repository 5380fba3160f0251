"""Weights in Constant nodes of models with external data: inside the model file, or outside of it too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import load, save
from exporter.normalise import serialize_with_data
from exporter.precision.converting import convert_precision
from exporter.pruner import prune
from exporter.quantization.quantizer import quantize
from exporter.sparsity.check import check_file
from exporter.sparsity.patterns import parse_pattern
from exporter.sparsity.sparsifier import sparsify
from exporter.sparsity.streaming import Stream
from tests.exporter.files import branch, choose, feeds_for, run
from tests.onnx_builder import build, node, weights

HALF = parse_pattern("2:4")


def product(name, values, x, y):
    constant = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, "value"))
    return [constant, node("MatMul", f"{x} {name}", y)]


def kept_by_nodes():
    """Weights in Constant nodes of the main graph, of branches, of a local function; two initializers."""
    w = weights(main=(64, 64), then=(64, 64), other=(64, 64), inner=(64, 64), small=(64, 3), large=(64, 64))
    opset = helper.make_opsetid("", 21)
    layer = helper.make_function("own", "layer", ["p"], ["q"], product("inner", w["inner"], "p", "q"), [opset])
    nodes = [
        node("MatMul", "x large", "l"),
        *product("main", w["main"], "l", "a"),
        choose(
            "c",
            "b",
            branch("t", product("then", w["then"], "a", "o"), "o"),
            branch("e", product("other", w["other"], "a", "u"), "u"),
        ),
        node("own::layer", "b", "d"),
        node("Relu", "d", "r"),
        node("MatMul", "r small", "y"),
    ]
    constants = {name: w[name] for name in ("small", "large")}
    return build(
        nodes, {"x": ["N", 64], "c": []}, ["y"], constants, kinds={"c": "b"}, functions=[layer], domains={"own": 1}
    )


@pytest.fixture(params=[0, 1000], ids=["all outside", "large initializers outside"])
def path(request, tmp_path):
    """The model with external data; Constant nodes stay in the model file in the second case."""
    model, file = kept_by_nodes(), tmp_path / "model.onnx"
    settings = {"size_threshold": request.param, "convert_attribute": not request.param}
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", **settings)
    return file


def outputs(file, condition):
    model = onnx.load(file, load_external_data=False)
    return run(file, feeds_for(model, {"x": (5, 64)}) | {"c": np.array(condition)})["y"]


@pytest.mark.parametrize("condition", [False, True])
def test_they_are_carried_along(path, tmp_path, condition):
    (tmp_path / "new").mkdir()
    out = tmp_path / "new" / "out.onnx"
    graph = load(path)
    save(graph, out)
    assert len(list(out.parent.iterdir())) == 2
    assert np.array_equal(outputs(out, condition), outputs(path, condition))
    feeds = feeds_for(graph.model, {"x": (5, 64)}) | {"c": np.array(condition)}
    assert np.array_equal(run(serialize_with_data(graph.model, graph.folder), feeds)["y"], outputs(path, condition))


def test_old_data_files_go_when_the_model_is_replaced(path, tmp_path):
    out = tmp_path / "out.onnx"
    save(load(path), out)
    sparsify(path, out)
    assert len(list(tmp_path.glob("out-*.data"))) == 1


@pytest.mark.parametrize("pattern", ["2:4", "0.5"])
def test_sparsify_writes_the_zeros_it_tells_of(pattern, path, tmp_path):
    (tmp_path / "new").mkdir()
    out = tmp_path / "new" / "out.onnx"
    result = sparsify(path, out, pattern=pattern)
    graph = load(out)
    written = sum(int((graph.array(layer.weight.name) == 0).sum()) for layer in result.layers)
    assert written == result.zeros == pytest.approx(sum(x.weight.size for x in result.layers) / 2, rel=0.01)
    assert not any(row.broken for row in check_file(out, HALF)) or pattern != "2:4"
    assert len(check_file(out, HALF)) == len(result.layers)


def test_sparsify_writes_nothing_where_the_file_did_not_ask_for_a_weight(tmp_path, monkeypatch):
    model = build([node("MatMul", "x w", "y")], {"x": ["N", 64]}, ["y"], weights(w=(64, 64)))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(Stream, "__contains__", lambda *_: False)
    with pytest.raises(AssertionError, match="w"):
        sparsify(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert set(tmp_path.iterdir()) == before


def test_others_take_them_too(path, tmp_path):
    (tmp_path / "new").mkdir()
    assert prune(path, tmp_path / "new" / "pruned.onnx", macs=0.7).proof is not None
    quantize(path, tmp_path / "new" / "quantized.onnx", precision="int8-weight")
    convert_precision(path, tmp_path / "new" / "half.onnx", precision="fp16")
    for out in ("pruned.onnx", "quantized.onnx", "half.onnx"):
        assert np.isfinite(outputs(tmp_path / "new" / out, True)).all()
