"""Patching: the file is as it was but for the bytes of the values, or nothing is written at all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import load
from exporter.sparsity.patching import patch, places
from tests.exporter.files import write, write_outside
from tests.exporter.test_functions import LINEAR
from tests.onnx_builder import build, node, weights


def model():
    held = node("Constant", "", "v", value=numpy_helper.from_array(weights(1, v=(6, 4))["v"]))
    nodes = [node("local::Linear", "x w b", "h"), held, node("MatMul", "h v", "y")]
    made = build(nodes, {"x": ["N", 8]}, ["y"], weights(w=(8, 6), b=(6,)), functions=[LINEAR], domains={"local": 1})
    made.doc_string = "what the model is for"
    made.metadata_props.add(key="author", value="somebody")
    return made


def test_only_the_values_change(tmp_path):
    source, target = write(model(), tmp_path), tmp_path / "out.onnx"
    graph = load(source)
    fresh = {"w": np.zeros((8, 6), np.float32), "v": -graph.array("v")}
    assert patch(graph, fresh, target) == source.stat().st_size == target.stat().st_size
    before, after = source.read_bytes(), target.read_bytes()
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    inside = [range(*span) for name, span in places(before).items() if name in fresh]
    assert changed.size
    assert all(any(c in r for r in inside) for c in changed)
    again = load(target)
    for name, values in fresh.items():
        assert (again.array(name) == values).all()
    assert (again.array("b") == graph.array("b")).all()
    assert onnx.load(target).functions[0].doc_string == LINEAR.doc_string


def test_the_file_itself_can_be_patched(tmp_path):
    source = write(model(), tmp_path)
    patch(load(source), {"w": np.zeros((8, 6), np.float32)}, source)
    assert not load(source).array("w").any()


def typed(made):
    """Values in a typed field instead of raw bytes."""
    tensor = made.graph.initializer[0]
    made.graph.initializer[0].CopyFrom(
        helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, numpy_helper.to_array(tensor).ravel())
    )
    return made


@pytest.mark.parametrize("kind", ["typed", "outside", "in-memory", "other-type"])
def test_what_does_not_lie_in_one_piece_is_left_to_others(tmp_path, kind):
    made = typed(model()) if kind == "typed" else model()
    source = write_outside(made, tmp_path) if kind == "outside" else write(made, tmp_path)
    graph = load(source)
    if kind == "in-memory":
        source.unlink()
    values = np.zeros((8, 6), np.float64 if kind == "other-type" else np.float32)
    assert patch(graph, {"w": values}, tmp_path / "out.onnx") is None
    assert not (tmp_path / "out.onnx").exists()


def test_a_name_that_means_something_else_in_the_file_is_not_patched(tmp_path):
    source = write(model(), tmp_path)
    graph = load(source)
    other = model()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(7, w=(8, 6))["w"], "w"))
    write(other, tmp_path)
    assert patch(graph, {"w": np.zeros((8, 6), np.float32)}, tmp_path / "out.onnx") is None


@pytest.mark.parametrize("cut", [1, 5, 40, 200])
def test_broken_bytes_are_refused(cut):
    data = model().SerializeToString()
    whole = places(data)
    assert set(whole) == {"w", "b", "v"}
    with pytest.raises(ValueError, match="runs over the end"):
        places(data[:-cut])
