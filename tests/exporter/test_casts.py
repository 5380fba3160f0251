"""Conversions to and from half precision: every number is the one that numpy makes of it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from exporter.casts import to_half, to_single
from exporter.halves import magnitudes, numbers
from exporter.precision.values import convert_values, largest

EVERY = np.arange(1 << 16, dtype=np.uint16)


def same(found, wanted):
    bits = f"u{wanted.itemsize}"
    return ((found.view(bits) == wanted.view(bits)) | np.isnan(found) & np.isnan(wanted)).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits(dtype):
    values = EVERY.view(dtype)
    assert same(numbers(values), values.astype(np.float32))
    assert same(numbers(values.reshape(256, 256).T), values.reshape(256, 256).T.astype(np.float32))


def test_the_magnitude_of_every_half():
    finite = EVERY.view(np.float16)[np.isfinite(EVERY.view(np.float16))]
    assert same(magnitudes(finite), np.abs(finite.astype(np.float32)))
    assert same(magnitudes(EVERY.view(np.float16)), np.abs(EVERY.view(np.float16).astype(np.float32)))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_the_nearest_half():
    halves = np.sort(EVERY.view(np.float16)[np.isfinite(EVERY.view(np.float16))].astype(np.float64))
    between = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    edges = [np.nextafter(between, np.float32(side)) for side in (-np.inf, np.inf)]
    others = np.array([65519.996, 65520, -65520, 1e38, -np.inf, np.nan, 0.0, -0.0, 1e-45], np.float32)
    any_bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32).view(np.float32)
    values = np.concatenate([between, *edges, others, any_bits])
    found = np.empty(values.shape, np.float16)
    to_half(values, found)
    assert same(found, values.astype(np.float16))


def test_mapped_and_empty_ones(tmp_path):
    np.save(tmp_path / "a.npy", EVERY.view(np.float16)[:1000])
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")[3:]
    out = np.empty(mapped.shape, np.float32)
    to_single(mapped, out)
    assert same(out, mapped.astype(np.float32))
    to_single(np.empty(0, np.float16), np.empty(0, np.float32))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_what_stands_for_infinity_is_the_largest_half_and_no_size():
    values = np.array([[1, -3e38, np.inf], [70000, -2, np.nan]], np.float32)
    found = convert_values(values, TensorProto.FLOAT16)
    assert same(found, np.array([[1, -65504, np.inf], [np.inf, -2, np.nan]], np.float16))
    assert largest(values) == 70000
    assert largest(np.array([1, -5], np.float64)) == 5
    assert largest(np.array([np.nan, 3e38], np.float32)) == largest(np.empty(0, np.float32)) == 0
