"""Axes that hold samples and units together, as torch's attention has them: proved at any number of samples."""

from __future__ import annotations

import numpy as np
import pytest

from exporter import find_groups, make_plan, rewrite, verify
from exporter.errors import CannotRun, GoalError
from exporter.model_file import from_model
from exporter.plan import AxisTake
from exporter.relative_difference import fits, take_axes
from tests.onnx_builder import build, ints, node, weights

HEADS, SIZE = 4, 3
WIDTH = HEADS * SIZE


def attention(codes=False):
    """Sequence first, the heads of all samples along one axis; with ``codes`` what is multiplied is rounded."""
    shapes = {f"w{n}": (WIDTH, WIDTH) for n in "qkvo"}
    constants = weights(**shapes, head=(WIDTH, 3))
    constants |= {"lead": ints(6, -1, SIZE), "back": ints(6, -1, WIDTH), "step": np.float32(0.05), "zero": np.int8(0)}
    nodes = []
    for n in "qkv":
        nodes += [
            node("MatMul", f"x w{n}", f"{n}0"), node("Reshape", f"{n}0 lead", f"{n}1"),
            node("Transpose", f"{n}1", f"{n}2", perm=[1, 0, 2]),
        ]  # fmt: skip
        rounded = [node("QuantizeLinear", f"{n}2 step zero", f"{n}c"), node("DequantizeLinear", f"{n}c step zero", n)]
        nodes += rounded if codes else [node("Identity", f"{n}2", n)]
    nodes += [
        node("Transpose", "k", "kt", perm=[0, 2, 1]), node("MatMul", "q kt", "s"), node("Softmax", "s", "p"),
        node("MatMul", "p v", "a"), node("Transpose", "a", "at", perm=[1, 0, 2]), node("Reshape", "at back", "b"),
        node("MatMul", "b wo", "o"), node("Add", "x o", "r"), node("MatMul", "r head", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": [6, "batch", WIDTH]}, ["y"], constants)


def planned(keep, codes=False):
    """The dense graph, and a plan that keeps these heads."""
    graph = from_model(attention(codes))
    groups = find_groups(graph)
    order = {g.name: np.isin(np.arange(g.width), keep).astype(float) for g in groups}
    plan = make_plan(groups, order, ratio=1 - len(keep) / HEADS, align=1, granularity=["heads"])
    assert [g.keep for g in plan.groups if g.kind == "heads"] == [tuple(keep)]
    return graph, plan


def samples(count):
    return [{"x": np.random.default_rng(count).standard_normal((6, count, WIDTH)).astype(np.float32)}]


WAYS = {
    "as a whole": {},
    "in pieces": {"piece_bytes": 1},
    "one sample": {"inputs": samples(1)},
    "five samples": {"inputs": samples(5)},
    "five samples in pieces": {"inputs": samples(5), "piece_bytes": 1},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keep", [(0, 2), (1, 2, 3), (0, 1)])
def test_heads_of_all_samples(way, keep):
    """For two samples the heads 0 and 1 of four look like both samples of head 0, and of head 2."""
    graph, plan = planned(keep)
    assert verify(rewrite(graph, plan), graph, plan, **WAYS[way]).error < 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keep", [(0, 2), (0, 1)])
@pytest.mark.parametrize("weight", ["wq", "wv", "wo"])
def test_a_wrong_weight_is_found(way, keep, weight):
    graph, plan = planned(keep)
    pruned = rewrite(graph, plan)
    tensor = next(t for t in pruned.model.graph.initializer if t.name == weight)
    values = np.frombuffer(tensor.raw_data, np.float32).copy()
    values[3] *= 1.5
    tensor.raw_data = values.tobytes()
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan, **WAYS[way])


@pytest.mark.parametrize("way", [way for way in WAYS if "pieces" not in way])
def test_codes_along_such_an_axis_are_handed_over(way):
    graph, plan = planned((0, 2), codes=True)
    proof = verify(rewrite(graph, plan), graph, plan, **WAYS[way])
    assert proof.error < 1e-5
    assert not any("other sizes" in warning for warning in proof.warnings)


def test_codes_that_could_lie_in_two_ways_are_compared_at_the_sizes_of_the_analysis():
    graph, plan = planned((0, 1), codes=True)
    pruned = rewrite(graph, plan)
    proof = verify(pruned, graph, plan)
    assert [s["x"][1] for s in proof.shapes] == [2, 2]
    assert "not compared with inputs of other sizes: codes lie in another order there" in proof.warnings
    assert verify(pruned, graph, plan, inputs=samples(2)).error < 1e-5
    with pytest.raises(CannotRun, match="Give these sizes with --shape, or no --inputs"):
        verify(pruned, graph, plan, inputs=samples(5))


KEPT = {
    "units in samples": (AxisTake(6, (0, 1, 3, 4)), 9, [0, 1, 3, 4, 6, 7]),
    "fewer samples": (AxisTake(12, (0, 2, 3, 5, 6, 8, 9, 11)), 6, [0, 2, 3, 5]),
    "one sample": (AxisTake(6, (0, 1, 3, 4)), 3, [0, 1]),
    "samples in units": (AxisTake(6, (0, 1, 4, 5)), 9, [0, 1, 2, 6, 7, 8]),
    "another order": (AxisTake(6, (2, 0, 5, 3)), 9, [2, 0, 5, 3, 8, 6]),
    "all": (AxisTake(6, tuple(range(6))), 9, list(range(9))),
    "the same size": (AxisTake(6, (0, 1, 5)), 6, [0, 1, 5]),
    "either": (AxisTake(8, (0, 1, 4, 5)), 12, None),
    "neither": (AxisTake(6, (0, 1, 5)), 9, None),
    "samples between units": (AxisTake(12, (0, 2, 3, 5)), 18, None),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept_at_other_sizes(case):
    take, size, want = KEPT[case]
    values = np.arange(2 * size).reshape(2, size)
    assert fits(values, {1: take}) == (want is not None)
    if want is not None:
        np.testing.assert_array_equal(take_axes(values, {1: take}), values[:, want])


def test_ids_fit_any_size():
    take = AxisTake(9, (2, 5))
    assert fits(np.array([5, 2, 5, 5]), {1: take})
    np.testing.assert_array_equal(take_axes(np.array([5, 2, 5, 5]), {1: take}), [1, 0, 1, 1])
