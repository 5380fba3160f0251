"""A digest of a model counts every file it is made of, wherever a tensor stands, and nothing outside its folder."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from runtime.model_files import digest_of, weight_files
from tests.onnx_builder import build, node, weights


def outside(name, location):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def constant(location):
    return helper.make_node("Constant", [], ["c"], value=outside("c", location))


def in_initializer(model, location):
    model.graph.initializer[0].CopyFrom(outside("w", location))


def in_attribute(model, location):
    model.graph.node.insert(0, constant(location))


def in_subgraph(model, location):
    branch = helper.make_graph([constant(location)], "branch", [], [helper.make_tensor_value_info("c", 1, [4])])
    model.graph.node.insert(0, helper.make_node("If", ["t"], ["i"], then_branch=branch, else_branch=branch))


def in_function(model, location):
    model.functions.append(
        helper.make_function("own", "F", [], ["c"], [constant(location)], [helper.make_opsetid("", 17)])
    )


PLACES = [in_initializer, in_attribute, in_subgraph, in_function]


def written(tmp_path, place, location):
    model = build([node("Mul", "x w", "y")], {"x": [4]}, ["y"], weights(w=(4,)))
    place(model, location)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "model" / "m.onnx"


@pytest.mark.parametrize("place", PLACES)
def test_data_files_count(tmp_path, place):
    path = written(tmp_path, place, "w.bin")
    path.with_name("w.bin").write_bytes(b"one")
    before = digest_of(path)
    assert weight_files(path) == [path.with_name("w.bin")]
    path.with_name("w.bin").write_bytes(b"two")
    assert digest_of(path) != before


@pytest.mark.parametrize("location", ["../secret", "none.bin", "", "w\0.bin", "w" * 300])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_outside_or_missing_is_not_read(tmp_path, place, location):
    (tmp_path / "secret").write_bytes(b"secret")
    path = written(tmp_path, place, location)
    assert weight_files(path) == []
    assert digest_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_is_no_model(tmp_path):
    for name in ("data.npz", "broken.onnx"):
        (tmp_path / name).write_bytes(b"\xff\xff no model")
        assert digest_of(tmp_path / name) == hashlib.sha256(b"\xff\xff no model").hexdigest()


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_no_text_is_not_read(tmp_path, place):
    path = written(tmp_path, place, "weights.bin")
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"weights\xffbin"))
    assert weight_files(path) == []
