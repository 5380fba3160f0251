"""Weights that are fed: all their rows, in 32 bits, behind their gates; what cannot be read is said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, numpy_helper

from exporter import external_parts, fed_weights, tensors
from exporter.errors import ModelError
from exporter.fed_weights import Room, in_room


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(fed_weights, "_AT_ONCE", 20)


def outside(values, folder, name="w"):
    """A tensor whose values lie in a file."""
    tensor = numpy_helper.from_array(values, name)
    (folder / f"{name}.data").write_bytes(bytes(16) + tensor.raw_data)
    external_data_helper.set_external_data(tensor, f"{name}.data", 16, len(tensor.raw_data))
    tensor.ClearField("raw_data")
    return tensor


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("shape", [(7,), (9, 8), (5, 50), (3, 2, 4, 4), (0, 4)])
def test_all_numbers_are_there(kind, shape, tmp_path):
    values = random(*shape).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    for tensor in (outside(values, tmp_path), numpy_helper.from_array(values, "w")):
        (got,) = in_room({"w": tensor}, tmp_path, Room()).values()
        assert got.dtype == (np.float64 if kind == TensorProto.DOUBLE else np.float32)
        assert np.array_equal(got, values.astype(got.dtype))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_gates_hide(kind, tmp_path):
    values = random(9, 8).astype(kind)
    values[2, 3] = np.nan
    rows, columns = np.arange(9)[:, None] % 2 == 0, np.arange(8) < 5
    found = in_room({"w": outside(values, tmp_path)}, tmp_path, Room(), {"w": [rows, columns]})["w"]
    assert np.array_equal(found, np.where(rows | columns, 0, values))
    assert np.isnan(tensors.read(outside(values, tmp_path), tmp_path)[2, 3])  # the file's numbers stay


STEPS = {
    "rows": [{0: [1, 2, 5]}],
    "columns": [{1: [0, 7]}],
    "both": [{0: [0, 8], 1: [3, 4, 5]}],
    "twice": [{0: [0, 2, 4, 6, 8], 1: [1, 2, 3]}, {0: [1, 2], 1: [2]}],
    "rows, then columns": [{0: [0, 2, 4]}, {1: [6]}],
    "none of them": [{0: []}],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_part_is_read_row_by_row(steps, tmp_path):
    values = random(9, 8).astype(np.float16)
    tensor = outside(values, tmp_path)
    for step in steps:
        part = TensorProto(name="w")
        external_parts.describe(part, tensor, step)
        tensor = part
        for axis, keep in step.items():
            values = np.take(values, np.asarray(keep, int), axis)
    assert np.array_equal(tensors.read(tensor, tmp_path), values)
    rows = tensors.rows_of(tensor, tmp_path)
    ranges = tensors.row_ranges(tensor.dims, 10)
    assert all(np.array_equal(rows(a, b), values[a:b]) for a, b in ranges)
    assert sum(b - a for a, b in ranges) == len(values)
    assert np.array_equal(in_room({"w": tensor}, tmp_path, Room())["w"], values)


def test_damage_in_a_thread_is_an_error_here(tmp_path):
    tensor = outside(random(9, 8), tmp_path)
    tensor.dims[0] = 10
    with pytest.raises(ModelError, match="initializer 'w'"):
        in_room({"w": tensor}, tmp_path, Room())


def test_an_error_while_filling_is_not_lost(tmp_path, monkeypatch):
    def breaks(*_):
        raise ModelError("broken")

    monkeypatch.setattr(tensors, "rows_of", lambda *_: breaks)
    with pytest.raises(ModelError, match="broken"):
        in_room({"w": outside(random(9, 8), tmp_path)}, tmp_path, Room())


def test_what_is_expected_stays_as_it_is(tmp_path):
    values = random(9, 8)
    tensor = outside(values, tmp_path)
    tensors.expect(tensor, tmp_path)
    tensors.expect(numpy_helper.from_array(values), tmp_path)
    assert np.array_equal(tensors.read(tensor, tmp_path), values)
