"""Budgets, ranking, alignment, selection of groups."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from exporter import GoalError, ModelError, UsageError, find_groups, make_plan, rewrite, score
from exporter.cost import CostModel
from exporter.edits import complete
from exporter.importance import normalised
from exporter.model_file import from_model
from tests.onnx_builder import build, node, weights
from tests.rows.networks import ROWS


def chain(*widths, image=True):
    """Convolutions (or linear layers) one after the other; every inner width is a group."""
    sizes = (3, *widths, 5)
    if image:
        nodes = [node("Conv", f"t{i} w{i}", f"t{i + 1}") for i in range(len(sizes) - 1)]
        constants = weights(**{f"w{i}": (b, a, 1, 1) for i, (a, b) in enumerate(pairwise(sizes))})
        shape = ["N", 3, 4, 4]
    else:
        nodes = [node("MatMul", f"t{i} w{i}", f"t{i + 1}") for i in range(len(sizes) - 1)]
        constants = weights(**{f"w{i}": (a, b) for i, (a, b) in enumerate(pairwise(sizes))})
        shape = ["N", 3]
    return find_groups(from_model(build(nodes, {"t0": shape}, [f"t{len(sizes) - 1}"], constants)))


def kept(plan):
    return [len(g.keep) for g in plan.groups]


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", [0.8, 0.5, 0.25])
def test_budgets_are_met_and_nearly_used(kind, scope, target):
    groups = chain(64, 96, 48, 80)
    plan = make_plan(groups, score(groups), scope=scope, align=1, **{kind: target})
    cost = CostModel(groups)
    measure = cost.macs if kind == "macs" else cost.parameters
    left = measure(kept(plan)) / measure(cost.widths)
    assert 0.98 * target < left <= target


def test_experts_go_only_where_they_are_asked_for():
    groups = find_groups(from_model(next(r for r in ROWS if r.name == "router-experts").model))
    (experts,) = (g for g in groups if g.kind == "experts")
    plain = make_plan(groups, score(groups), ratio=0.5, align=1)
    asked = make_plan(groups, score(groups), ratio=0.5, granularity=["experts"])
    assert kept(plain)[groups.groups.index(experts)] == 4
    assert list(kept(asked)) == [2 if g is experts else g.width for g in groups]


def test_the_cost_model_agrees_with_the_rewritten_graph():
    for row in ROWS:
        # which tokens an expert gets depends on the data
        if row.name.startswith("experts-"):
            continue
        graph = from_model(row.model)
        groups = find_groups(graph)
        plan = make_plan(groups, score(groups), ratio=0.5, align=1)
        after = find_groups(rewrite(graph, plan))
        predicted, measured = CostModel(groups), CostModel(after)
        assert predicted.macs(kept(plan)) == pytest.approx(measured.macs(measured.widths))
        assert predicted.parameters(kept(plan)) == pytest.approx(after.graph.parameters)


@pytest.mark.parametrize(
    ("widths", "image", "align", "expected"),
    [
        pytest.param((64, 96), True, "auto", [32, 48], id="convolutions in 16s"),
        pytest.param((40,), True, "auto", [16], id="to the nearest multiple"),
        pytest.param((24,), True, "auto", [16], id="a width between keeps a multiple"),
        pytest.param((12,), True, "auto", [8], id="a narrow group keeps its power of two"),
        pytest.param((10,), True, "auto", [6], id="and if that is two"),
        pytest.param((64, 24), False, "auto", [32, 16], id="matrix products in 8s"),
        pytest.param((64, 24), False, "sparse", [32, 16], id="for sparse kernels in 16s"),
        pytest.param((40, 12), False, "sparse", [16, 8], id="matrix products too, narrow groups as before"),
        pytest.param((64,), True, 24, [24], id="any multiple"),
        pytest.param((9,), True, 1, [4], id="not aligned"),
        pytest.param((5,), True, 1, [3], id="few units round up"),
    ],
)
def test_alignment(widths, image, align, expected):
    groups = chain(*widths, image=image)
    assert kept(make_plan(groups, score(groups), ratio=0.5, align=align)) == expected


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "dequantized"])
@pytest.mark.parametrize(("blocks", "left"), [(6, 3), (4, 2)])
def test_a_block_of_weights_is_aligned_as_it_is(blocks, left, packed):
    """Half of the blocks of 32 that share a scale; the scales, one for each, need not stay divisible by 4."""
    width = 32 * blocks
    constants = weights(w0=(5, width), b=(width,), w2=(8, 3)) | {"s": np.full((8, blocks), 0.02, np.float32)}
    attributes = {"K": width, "N": 8, "bits": 4, "block_size": 32}
    if packed:
        constants["c"] = np.arange(8 * blocks * 16, dtype=np.uint8).reshape(8, blocks, 16)
        layer = [node("com.microsoft::MatMulNBits", "a c s", "m", **attributes)]
    else:
        constants["c"] = np.arange(8 * width, dtype=np.int8).reshape(8, width)
        layer = [node("DequantizeLinear", "c s", "d", axis=1, block_size=32), node("Gemm", "a d", "m", transB=1)]
    nodes = [node("MatMul", "x w0", "h"), node("Add", "h b", "a"), *layer, node("MatMul", "m w2", "y")]
    groups = find_groups(from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants)))
    assert groups.groups[0].width == blocks
    plan = make_plan(groups, score(groups), ratio=0.5)
    assert len(plan.take["w0"].axes[1].keep) == 32 * left


def test_a_wide_layer_stays_divisible_by_four():
    """Two groups share the axis of w2: their sum stays divisible by 4 although neither width is aligned."""
    constants = weights(w0=(10, 3, 1, 1), w1=(6, 3, 1, 1), w2=(8, 16, 1, 1), w3=(2, 8, 1, 1))
    nodes = [
        node("Conv", "x w0", "a"),
        node("Conv", "x w1", "b"),
        node("Concat", "a b", "c", axis=1),
        node("Conv", "c w2", "d"),
        node("Conv", "d w3", "y"),
    ]
    groups = find_groups(from_model(build(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants)))
    for ratio in (0.2, 0.3, 0.5, 0.6, 0.7):
        plan = make_plan(groups, score(groups), ratio=ratio)
        left = plan.take["w2"].axes
        assert (len(left[1].keep) if 1 in left else 16) % 4 == 0


def test_automatic_alignment_gives_way_to_a_budget():
    groups = chain(16, 16, 16)
    plan = make_plan(groups, score(groups), macs=0.5)
    cost = CostModel(groups)
    assert cost.macs(kept(plan)) <= 0.5 * cost.macs(cost.widths)
    assert any("relaxed" in note for note in plan.notes)


def test_whole_groups_are_mentioned():
    groups = chain(16, 64)
    plan = make_plan(groups, score(groups), ratio=0.5)
    assert kept(plan) == [16, 32]
    assert any("1 of 2 groups stays whole" in note for note in plan.notes)


def test_the_best_units_stay():
    groups = chain(8, 6)
    scores = {g.name: np.arange(g.width, 0, -1.0) for g in groups}
    plan = make_plan(groups, scores, ratio=0.5, align=1)
    assert [g.keep for g in plan.groups] == [(0, 1, 2, 3), (0, 1, 2)]


def test_global_ranking_cuts_where_scores_are_low():
    groups = chain(40, 40)
    first, second = (g.name for g in groups)
    scores = {first: np.ones(40), second: np.r_[np.full(20, 0.01), np.full(20, 1.99)]}
    plan = make_plan(groups, scores, ratio=0.25, scope="global", align=1)
    assert kept(plan) == [40, 20]
    assert plan.groups[1].keep == tuple(range(20, 40))


def test_global_ranking_never_empties_a_group():
    groups = chain(40, 40)
    first, second = (g.name for g in groups)
    scores = {first: np.full(40, 1.0), second: np.full(40, 1.0)}
    scores[first][0] = 1000.0
    plan = make_plan(groups, scores, ratio=0.9, scope="global", align=1)
    assert min(kept(plan)) >= 4


def test_min_width():
    groups = chain(40, 12)
    assert kept(make_plan(groups, score(groups), ratio=0.9, align=1, min_width=10)) == [10, 10]


def test_normalised_scores_have_mean_one():
    result = normalised({"a": np.array([1.0, 3.0]), "b": np.zeros(2)})
    assert result["a"].tolist() == [0.5, 1.5]
    assert result["b"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("option", "cut"),
    [
        ({"keep": ["w0"]}, {"w1"}),
        ({"keep": ["node_t1"]}, {"w1"}),
        ({"only": ["w2"]}, {"w1"}),
        ({"only": ["w*"], "keep": ["t2"]}, {"w0"}),
    ],
)
def test_keep_and_only(option, cut):
    groups = chain(16, 24)
    plan = make_plan(groups, score(groups), ratio=0.5, align=1, **option)
    assert {g.name for g in plan.groups if len(g.keep) < g.width} == cut


@pytest.mark.parametrize(
    ("granularity", "kinds"),
    [
        (None, {"heads", "hidden", "neurons"}),
        (["heads"], {"heads"}),
        (["head_dims"], {"head_dims"}),
        (["heads", "head_dims"], {"heads", "head_dims"}),
        (["hidden", "neurons"], {"hidden", "neurons"}),
    ],
)
def test_granularity(granularity, kinds):
    groups = find_groups(from_model(next(r.model for r in ROWS if r.name == "attention-fused-qkv")))
    plan = make_plan(groups, score(groups), ratio=0.5, align=1, granularity=granularity)
    assert {g.kind for g in plan.groups if len(g.keep) < g.width} == kinds


def test_kv_groups_go_before_single_query_heads():
    groups = find_groups(from_model(next(r.model for r in ROWS if r.name == "attention-grouped-query")))
    plan = make_plan(groups, score(groups), ratio=0.4, align=1)
    cut = {g.width for g in plan.groups if g.kind == "heads" and len(g.keep) < g.width}
    assert cut == {3}


@pytest.mark.parametrize(
    ("heads", "dims", "ratio", "cut"),
    [
        pytest.param(4, 6, 0.5, {4}, id="half of four heads"),
        pytest.param(3, 6, 0.5, {6}, id="three heads have no half, their dimensions do"),
        pytest.param(3, 6, 0.33, {3}, id="a third of three heads"),
        pytest.param(3, 1, 0.5, {3}, id="no dimensions to cut instead"),
    ],
)
def test_heads_go_first_where_they_can_be_cut_to_the_share(heads, dims, ratio, cut):
    nodes = [
        *(n for t in "qkv" for n in (node("MatMul", f"x w{t}", t), node("Reshape", f"{t} apart", f"{t}4"))),
        node("Einsum", "q4 k4", "s", equation="bshe,bthe->bhst"),
        node("Softmax", "s", "p"),
        node("Einsum", "p v4", "o4", equation="bhst,bthf->bshf"),
        node("Reshape", "o4 flat", "o"),
        node("MatMul", "o wo", "y"),
    ]
    constants = weights(**{f"w{t}": (5, heads * dims) for t in "qkv"}, wo=(heads * dims, 5))
    constants |= {"apart": np.array([0, 0, heads, dims]), "flat": np.array([0, 0, heads * dims])}
    groups = find_groups(from_model(build(nodes, {"x": ["N", "S", 5]}, ["y"], constants)))
    plan = make_plan(groups, score(groups), ratio=ratio, align=1)
    assert {g.width for g in plan.groups if len(g.keep) < g.width} == cut


def test_channels_of_a_grouped_convolution_go_before_groups_unless_alignment_forbids_it():
    nodes = [node("Conv", "x w0", "a"), node("Conv", "a w1", "b", group=8), node("Conv", "b w2", "y")]
    constants = weights(w0=(64, 3, 1, 1), w1=(64, 8, 3, 3), w2=(4, 64, 1, 1))
    groups = find_groups(from_model(build(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)))
    free = make_plan(groups, score(groups), ratio=0.5, align=1)
    aligned = make_plan(groups, score(groups), ratio=0.5)
    assert {g.kind for g in free.groups if len(g.keep) < g.width} == {"channels"}
    assert {g.kind for g in aligned.groups if len(g.keep) < g.width} == {"conv_groups"}


ERRORS = {
    "no budget": ({}, UsageError, "exactly one budget"),
    "two budgets": ({"ratio": 0.5, "macs": 0.5}, UsageError, "exactly one budget"),
    "zero": ({"ratio": 0}, UsageError, "between 0 and 1"),
    "negative": ({"ratio": -0.5}, UsageError, "between 0 and 1"),
    "one": ({"macs": 1.0}, UsageError, "between 0 and 1"),
    "not a number": ({"params": float("nan")}, UsageError, "between 0 and 1"),
    "impossible": ({"macs": 1e-6}, GoalError, "cannot be reached"),
    "scope": ({"ratio": 0.5, "scope": "both"}, UsageError, "local, global or damage"),
    "align": ({"ratio": 0.5, "align": 0}, UsageError, "at least 1"),
    "align text": ({"ratio": 0.5, "align": "most"}, UsageError, "auto, sparse or a whole number"),
    "min width": ({"ratio": 0.5, "min_width": 0}, UsageError, "at least 1"),
    "kind": ({"ratio": 0.5, "granularity": ["layers"]}, UsageError, "choose from channels"),
    "absent kind": ({"ratio": 0.5, "granularity": ["heads"]}, ModelError, "leaves no group"),
    "keep everything": ({"ratio": 0.5, "keep": ["w*"]}, ModelError, "leaves no group"),
    "unknown name": ({"ratio": 0.5, "keep": ["stem.*"]}, UsageError, "matches no node or tensor"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, error, message = ERRORS[case]
    groups = chain(16, 24)
    with pytest.raises(error, match=message):
        make_plan(groups, score(groups), **options)


def test_nothing_to_prune():
    groups = find_groups(from_model(build([node("Softmax", "x", "y")], {"x": [2, 3]}, ["y"])))
    with pytest.raises(ModelError, match="it has no layer whose weight is a constant"):
        make_plan(groups, {}, ratio=0.5)


def grouped_attention():
    """An attention of four heads between convolutions of two groups, so that the groups are a factor of every axis."""
    constants = weights(w0=(16, 8, 1), q=(16, 8, 1), k=(16, 8, 1), v=(16, 8, 1), o=(16, 8, 1), w1=(3, 16, 1))
    constants |= {"apart": np.array([0, 4, 4, 6]), "flat": np.array([0, 16, 6])}
    nodes = [
        node("Conv", "x w0", "h"),
        *(node("Conv", f"h {t}", f"{t}0", group=2) for t in "qkv"),
        *(node("Reshape", f"{t}0 apart", f"{t}1") for t in "qkv"),
        node("Transpose", "q1", "q2", perm=[0, 1, 3, 2]),
        node("MatMul", "q2 k1", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "v1 p", "a"),
        node("Reshape", "a flat", "b"),
        node("Conv", "b o", "c", group=2),
        node("Conv", "c w1", "y"),
    ]
    return build(nodes, {"x": ["N", 8, 6]}, ["y"], constants)


def test_what_shares_no_axis_with_the_heads_is_cut_beside_them():
    groups = find_groups(from_model(grouped_attention()))
    plan = make_plan(groups, score(groups), ratio=0.5, align=1)
    cut = {axis for g in plan.groups if len(g.keep) < g.width for axis in g.spans}
    assert {("w0", 0), ("q", 0), ("q", 1), ("o", 0), ("w1", 1)} <= cut
    pruned = rewrite(groups.graph, plan)
    sizes = {t.name: tuple(t.dims) for t in pruned.model.graph.initializer}
    assert (sizes["w0"], sizes["q"], sizes["o"], sizes["w1"]) == ((8, 8, 1), (8, 4, 1), (8, 4, 1), (3, 8, 1))


def one_vector_for_all(layers, width):
    """Layers that add the same zeros, as exporters write that merge equal constants; with a normalisation alike."""
    nodes, constants = [], {"zero": np.zeros(width, np.float32), "one": np.ones(width, np.float32)}
    for i in range(layers):
        constants |= weights(i, **{f"w{i}": (width, width)})
        nodes += [node("Gemm", f"t{i} w{i} zero", f"h{i}")]
        nodes += [node("BatchNormalization", f"h{i} one zero zero one", f"t{i + 1}")]
    return find_groups(from_model(build(nodes, {"t0": ["N", width]}, [f"t{layers}"], constants)))


@pytest.mark.parametrize("budget", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("scope", ["local", "global", "damage"])
def test_a_vector_that_several_layers_share_counts_for_each_that_is_cut(scope, budget):
    groups = one_vector_for_all(8, 8)
    damage = {g.name: np.linspace(1, 0, g.width) ** 2 for g in groups} if scope == "damage" else None
    plan = make_plan(groups, score(groups), params=budget, align=1, scope=scope, damage=damage)
    left = find_groups(rewrite(groups.graph, plan)).graph.parameters
    cost = CostModel(groups)
    assert cost.parameters(cost.widths) == groups.graph.parameters
    assert left <= cost.parameters(kept(plan)) <= budget * groups.graph.parameters  # less where equal units stay
    assert left > 0.75 * budget * groups.graph.parameters


def test_layers_that_stay_whole_share_their_vector():
    groups = one_vector_for_all(4, 16)
    cost = CostModel(groups)
    for place in range(len(groups)):
        widths = cost.widths.copy()
        widths[place] = 12
        masks = [np.arange(g.width) < n for g, n in zip(groups, widths, strict=True)]
        assert cost.parameters(widths) == rewrite(groups.graph, complete(groups, masks, {}, [])).parameters
        assert cost.parameters(widths) <= cost.parameters_apart(widths) <= cost.parameters_apart(cost.widths)
