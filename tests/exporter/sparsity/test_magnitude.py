"""Choosing by magnitude: what stays is what a plain loop would keep, in every type and at every step."""

from __future__ import annotations

import numpy as np
import pytest
from ml_dtypes import bfloat16

from exporter.errors import UsageError
from exporter.model_file import from_model
from exporter.sparsity.choice import choose_weights
from exporter.sparsity.codes import Stored, stored_values
from exporter.sparsity.magnitude import lamp_scores, shares, smallest, strongest, thin_runs
from exporter.sparsity.patterns import Pattern, parse_pattern
from tests.onnx_builder import build, node

PLAIN = np.zeros(1, np.float32), np.ones(1, np.float32)


def by_loop(values, step, keep, of):
    """Of every run the largest stay, of equals the first."""
    result = np.zeros_like(values)
    for start in range(0, values.size, step * of):
        for offset in range(step):
            places = [start + offset + k * step for k in range(of)]
            for place in sorted(places, key=lambda p: -abs(float(values[p])))[:keep]:
                result[place] = values[place]
    return result


PATTERNS = [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8), (4, 16)]


@pytest.mark.parametrize(("keep", "of"), PATTERNS, ids=str)
@pytest.mark.parametrize("step", [1, 9, 80])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, bfloat16, np.int8])
def test_the_largest_of_every_run_stay(keep, of, step, dtype):
    values = (10 * np.random.default_rng(0).standard_normal(step * of * 5)).round().astype(dtype)  # with many ties
    found = thin_runs(Stored(values, *PLAIN), step, keep, of)
    assert found.dtype == values.dtype
    assert found.tobytes() == by_loop(values, step, keep, of).tobytes()


def test_pieces_do_not_show():
    values = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    whole = strongest(np.abs(values).reshape(-1, 4, 16), 2)
    assert (thin_runs(Stored(values, *PLAIN), 16, 2, 4) == np.where(whole.reshape(-1), values, 0)).all()


def test_what_is_no_number_stays_and_breaks_nothing():
    values = np.array([np.nan, 1, 2, np.inf, 3, -np.inf, np.nan, np.nan], np.float32)
    found = thin_runs(Stored(values, *PLAIN), 1, 2, 4)
    assert (found != 0).reshape(-1, 4).sum(1).tolist() == [2, 2]
    assert np.isnan(found[0])
    assert found[3] == np.inf


@pytest.mark.parametrize("dtype", [np.float16, np.float32, bfloat16])
def test_the_content_is_the_sum_of_all_magnitudes(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].astype(dtype)
    stored = Stored(finite, *PLAIN)
    count, total = stored.content()
    assert count == finite.size - 2
    assert np.isclose(total, np.abs(finite.astype(np.float64)).sum(), rtol=1e-5)
    small = slice(0, 900)  # of float16 all are subnormal
    assert np.isclose(stored.content(small)[1], np.abs(finite[small].astype(np.float64)).sum(), rtol=1e-5)
    for odd in (np.inf, -np.inf, np.nan):
        assert Stored(np.array([1, odd, 2], dtype), *PLAIN).content() == (3, np.inf)


def test_codes_are_compared_as_numbers_and_become_their_zero_point():
    """What is far from the zero point of its column is large; a zero of the codes is nothing special."""
    values = np.array([[0, 10], [130, 20], [255, 30], [128, 200]], np.uint8)
    nodes = [node("DequantizeLinear", "w s z", "v", axis=1), node("MatMul", "x v", "y")]
    scales = np.array([0.1, 0.5], np.float32)
    zeros = np.array([128, 20], np.uint8)
    graph = from_model(build(nodes, {"x": ["N", 4]}, ["y"], {"w": values, "s": scales, "z": zeros}))
    (weight,), _ = choose_weights(graph, parse_pattern("2:4"))
    stored = stored_values(graph, weight)
    assert np.allclose(stored.magnitudes().reshape(4, 2), np.abs(values - zeros.astype(float)) * scales)
    assert thin_runs(stored, 2, 2, 4).reshape(4, 2).tolist() == [[0, 10], [128, 20], [255, 20], [128, 200]]


def test_blocks_of_codes():
    values = np.array([[5, 5], [5, 5], [5, 5], [5, 5]], np.int8)
    nodes = [node("DequantizeLinear", "w s", "v", axis=0, block_size=2), node("MatMul", "x v", "y")]
    scales = np.array([[1, 4], [3, 2]], np.float32)
    graph = from_model(build(nodes, {"x": ["N", 4]}, ["y"], {"w": values, "s": scales}))
    (weight,), _ = choose_weights(graph, parse_pattern("2:4"))
    found = thin_runs(stored_values(graph, weight), 2, 2, 4).reshape(4, 2)
    assert found.tolist() == [[0, 5], [0, 5], [5, 0], [5, 0]]


@pytest.mark.parametrize("count", [0, 1, 7, 50, 100])
def test_exactly_so_many_of_the_smallest_go(count):
    scores = np.random.default_rng(0).integers(0, 9, 100).astype(np.float32)
    gone = smallest(scores, count)
    assert gone.sum() == count
    assert not count or count == 100 or scores[gone].max() <= scores[~gone].min()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.99])
def test_shares_add_up_and_share_one_limit(share):
    rng = np.random.default_rng(0)
    tensors = [
        np.abs(scale * rng.standard_normal(n)).astype(np.float32) for n, scale in ((400, 1), (90, 3), (510, 0.1))
    ]
    counts = shares(tensors, share)
    assert sum(counts) == round(share * 1000)
    masks = [smallest(t, c) for t, c in zip(tensors, counts, strict=True)]
    gone = np.concatenate([t[m] for t, m in zip(tensors, masks, strict=True)])
    stay = np.concatenate([t[~m] for t, m in zip(tensors, masks, strict=True)])
    assert gone.max() <= stay.min()


def test_shares_of_equal_scores():
    assert sum(shares([np.ones(10, np.float32), np.ones(20, np.float32)], 0.5)) == 15


def test_lamp_is_the_square_over_what_is_at_least_as_large():
    scores = lamp_scores(np.array([3, 1, 2], np.float32))
    assert np.allclose(scores, [1, 1 / 14, 4 / 13])


READ = {"2:4": Pattern(2, 4, 0.5), "1:4": Pattern(1, 4, 0.75), "0.8": Pattern(0, 0, 0.8), " 4:8 ": Pattern(4, 8, 0.5)}


@pytest.mark.parametrize("text", READ)
def test_patterns_are_read(text):
    assert parse_pattern(text) == READ[text]


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4", "2:400", "1.0", "0", "-1", "half", "2:4:8", "nan", ""])
def test_other_patterns_are_refused(text):
    with pytest.raises(UsageError, match="--pattern"):
        parse_pattern(text)
