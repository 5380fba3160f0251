"""The independent check: it counts in the weight as the layer sees it, and one broken run fails."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter.errors import ModelError, UsageError
from exporter.sparsity.check import _count, check_file, check_pattern
from exporter.sparsity.patterns import parse_pattern
from tests.exporter.files import branch, choose
from tests.exporter.sparsity.test_layers import REFUSED, RESERVED, STEPS
from tests.onnx_builder import build, ints, node, weights

TWO_FOUR = parse_pattern("2:4")


def pattern_along(shape, axis, seed=0):
    """Ones where the first two of every four along an axis are, zeros elsewhere; not the same along other axes."""
    rng = np.random.default_rng(seed)
    moved = np.zeros((*np.delete(shape, axis), shape[axis] // 4, 4), np.float32)
    order = rng.permuted(np.broadcast_to(np.arange(4), moved.shape), axis=-1)
    moved[order < 2] = 1
    return np.moveaxis(moved.reshape(*np.delete(shape, axis), shape[axis]), -1, axis)


LAYERS = {
    # (nodes that read w, shape of w, axis of the runs, shape of x)
    "conv": ([node("Conv", "x w", "y")], (6, 8, 3, 3), 1, ["N", 8, 5, 5]),
    "gemm": ([node("Gemm", "x w", "y")], (8, 12), 0, ["N", 8]),
    "gemm-transposed": ([node("Gemm", "x w", "y", transB=1)], (12, 8), 1, ["N", 8]),
    "matmul": ([node("MatMul", "x w", "y")], (8, 12), 0, ["N", 3, 8]),
    "transpose": ([node("Transpose", "w", "v", perm=[1, 0]), node("MatMul", "x v", "y")], (12, 8), 1, ["N", 8]),
    "reshape": ([node("Reshape", "w to", "v"), node("MatMul", "x v", "y")], (2, 4, 12), 1, ["N", 8]),
}


@pytest.mark.parametrize(("nodes", "shape", "axis", "x"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("kind", ["float", "half", "codes"])
def test_the_right_axis_passes_and_one_more_weight_fails(nodes, shape, axis, x, kind):
    values = pattern_along(shape, axis)
    full = values.copy()
    full[tuple(np.argwhere(values == 0)[0])] = 1

    def rows(array):
        constants, before, name = {"w": array}, [], "w"
        if kind == "half":
            constants, before, name = {"h": array.astype(np.float16)}, [node("Cast", "h", "w", to=1)], "h"
        if kind == "codes":  # with a zero point, so that zero is no zero of the codes
            constants = {"q": (array * 5 + 3).astype(np.uint8), "s": np.float32(0.1), "z": np.uint8(3)}
            before, name = [node("DequantizeLinear", "q s z", "w")], "q"
        model = build([*before, *nodes], {"x": x}, ["y"], {**constants, "to": ints(8, 12)})
        (row,) = check_pattern(model, Path(), TWO_FOUR)
        assert name in row.names
        assert row.runs == array.size // 4
        return row.broken

    assert rows(values) == 0
    assert rows(full) == 1
    assert rows(np.ones(shape, np.float32)) == values.size // 4
    others = [a for a in range(len(shape)) if a != axis and shape[a] % 4 == 0]
    assert all(rows(pattern_along(shape, a)) > 0 for a in others)


@pytest.mark.parametrize("name", [n for n in STEPS if n not in ("integer", "shared-alike", "shared-behind-transpose")])
def test_every_layer_the_resolver_finds_is_looked_at(name):
    model, weight, _, inputs = STEPS[name]
    (row,) = check_pattern(model, Path(), TWO_FOUR)
    assert row.runs
    assert row.runs * 4 == np.prod(row.shape)
    assert inputs in row.shape
    assert any(weight in n for n in row.names)


def test_codes_that_are_multiplied_as_they_are():
    values = pattern_along((8, 12), 0)
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s p"),
        node("MatMulInteger", "q w p z", "i"),
        node("Cast", "i", "y", to=1),
    ]
    model = build(nodes, {"x": ["N", 8]}, ["y"], {"w": (values * 5 + 3).astype(np.uint8), "z": np.uint8(3)})
    (row,) = check_pattern(model, Path(), TWO_FOUR)
    assert (row.runs, row.broken) == (24, 0)


@pytest.mark.parametrize(("model", "reason"), [*RESERVED.values(), REFUSED["three-inputs"]])
def test_layers_without_a_pattern_say_why_or_are_not_listed(model, reason):
    rows = check_pattern(model, Path(), TWO_FOUR)
    assert all(r.skipped and not r.runs for r in rows)


def test_branches_and_what_they_read_from_outside():
    inside = branch("t", [node("MatMul", "x w", "z")], "z", {"w": pattern_along((8, 12), 0)})
    outside = branch("e", [node("MatMul", "x v", "z")], "z")
    nodes = [choose("flag", "y", inside, outside)]
    model = build(nodes, {"x": ["N", 8], "flag": []}, ["y"], {"v": weights(v=(8, 12))["v"]}, kinds={"flag": "b"})
    assert sorted(r.broken for r in check_pattern(model, Path(), TWO_FOUR)) == [0, 24]


@pytest.mark.parametrize("step", [1, 2, 63, 64, 100])
@pytest.mark.parametrize("of", [2, 4, 5, 8])
def test_counting_along_runs(step, of):
    runs = np.random.default_rng(step).random((7, of, step)) < 0.5
    assert (_count(runs) == runs.sum(axis=1)).all()


def test_values_may_stand_in():
    model = build([node("MatMul", "x w", "y")], {"x": ["N", 8]}, ["y"], weights(w=(8, 12)))
    fine = check_pattern(model, Path(), TWO_FOUR, overrides={"w": pattern_along((8, 12), 0)})
    assert [r.broken for r in fine] == [0]
    assert [r.broken for r in check_pattern(model, Path(), TWO_FOUR)] == [24]


def test_names_choose(tmp_path):
    model = build(
        [node("MatMul", "x a", "h"), node("MatMul", "h b", "y")], {"x": ["N", 8]}, ["y"], weights(a=(8, 8), b=(8, 8))
    )
    assert len(check_pattern(model, Path(), TWO_FOUR)) == 2
    assert [r.node for r in check_pattern(model, Path(), TWO_FOUR, only=["a"])] == ["MatMul 'node_h'"]
    assert [r.node for r in check_pattern(model, Path(), TWO_FOUR, keep=["node_h"])] == ["MatMul 'node_y'"]
    with pytest.raises(UsageError, match="--only 'c' matches no layer"):
        check_pattern(model, Path(), TWO_FOUR, only=["c"])


def test_files(tmp_path):
    path = tmp_path / "m.onnx"
    model = build([node("MatMul", "x w", "y")], {"x": ["N", 8]}, ["y"], {"w": pattern_along((8, 12), 0)})
    onnx.save(model, path, save_as_external_data=True, size_threshold=0)
    assert [r.broken for r in check_file(path, TWO_FOUR)] == [0]
    path.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match="not an ONNX file"):
        check_file(path, TWO_FOUR)
    with pytest.raises(UsageError, match="cannot be read"):
        check_file(tmp_path / "none.onnx", TWO_FOUR)


def test_many_nodes_before_a_computed_weight():
    """What a layer reads may lie behind thousands of nodes; only constants are looked for."""
    names = ["x", *(f"a{i}" for i in range(1500))]
    nodes = [node("Relu", a, b) for a, b in itertools.pairwise(names)]
    nodes += [node("MatMul", f"x {names[-1]}", "b"), node("MatMul", "b w", "y")]
    model = build(nodes, {"x": [8, 8]}, ["y"], {"w": pattern_along((8, 12), 0)})
    assert [(row.runs, row.broken) for row in check_pattern(model, Path(), TWO_FOUR)] == [(24, 0)]
