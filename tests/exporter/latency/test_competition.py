"""Residual blocks against widths under a budget of seconds: the cheaper of the two goes, and both are measured."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest

from exporter import find_groups, load
from exporter.blocks import find_blocks
from exporter.cli import main
from exporter.depth import drop
from exporter.errors import GoalError, UsageError
from exporter.latency.budget import Target, prune_to_latency
from exporter.latency.competition import Competition, carried_over, plan_of
from exporter.latency.cost import LatencyCost
from runtime.runners import Asked
from tests.exporter.latency.test_budget import STAIRS, Device, device  # noqa: F401  (the fixture)
from tests.onnx_builder import build, node, weights

WIDTH, HIDDEN, COUNT = 32, 64, 4


def network(strengths=(1.0, 1.0, 1.0, 1.0), useful=HIDDEN):
    """Four residual blocks; each adds so much, and so many of its hidden units matter."""
    nodes, constants = [node("MatMul", "x a", "r0")], weights(a=(16, WIDTH), z=(WIDTH, 8))
    for k, strength in enumerate(strengths, 1):
        nodes += [
            node("MatMul", f"r{k - 1} u{k}", f"h{k}"), node("Relu", f"h{k}", f"p{k}"),
            node("MatMul", f"p{k} d{k}", f"b{k}"), node("Add", f"r{k - 1} b{k}", f"r{k}"),
        ]  # fmt: skip
        constants |= weights(k, **{f"u{k}": (WIDTH, HIDDEN), f"d{k}": (HIDDEN, WIDTH)})
        constants[f"d{k}"] = constants[f"d{k}"] * np.float32(strength)
        constants[f"d{k}"][useful:] = 0
    return build([*nodes, node("MatMul", f"r{COUNT} z", "y")], {"x": ["N", 16]}, ["y"], constants)


def made(tmp_path, *arguments, **options):
    onnx.save(network(*arguments, **options), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(5).standard_normal((200, 16)).astype(np.float32))
    return tmp_path / "m.onnx"


def rivals(path, harms=1.0, damage=1.0, align=1, **device_options):
    """A competition with the same damage curve for every group, and a given harm of every block."""
    groups = find_groups(load(path))
    clock = Device()
    vars(clock).update(device_options)
    blocks = find_blocks(groups)
    curves = {g.name: damage * (1 - np.arange(1, g.width + 1) / g.width) ** 2 for g in groups}
    inner = [n for n, g in enumerate(groups) if g.width == HIDDEN]
    cost = LatencyCost(groups, clock.profile(path, Asked()), STAIRS)
    each = harms if isinstance(harms, dict) else dict.fromkeys((b.name for b in blocks), harms)
    total = lambda chosen: sum(each[b.name] for b in chosen)  # noqa: E731
    return Competition(cost, blocks, list(blocks), inner, curves, total, align, 1)


def test_what_goes_with_blocks_takes_no_time(tmp_path):
    rival = rivals(made(tmp_path))
    cost, blocks = rival.cost, list(rival.blocks)
    assert len(blocks) == COUNT
    times = [cost.without(rival.blocks.gone(blocks[:k])).macs(cost.widths) for k in range(COUNT + 1)]
    assert all(b < a for a, b in pairwise(times))
    alone = next(n.seconds for n in cost._kernels if n.name == "h1")
    assert times[0] - times[1] == pytest.approx(2 * alone, rel=1e-6)


def test_what_a_shallower_table_learns_the_whole_knows(tmp_path):
    rival = rivals(made(tmp_path), fixed=0.0)
    path, slow = tmp_path / "m.onnx", Device()
    slow.fixed = 5e-5
    counts = rival.cost.widths // 2
    before = rival.cost.macs(counts)
    rival.cost.without(rival.blocks.gone(list(rival.blocks)[:1])).observe(counts, slow.profile(path, Asked()))
    assert rival.cost.macs(counts) != pytest.approx(before)


@pytest.mark.parametrize(
    ("harm", "damage", "price", "dropped"),
    [
        (1e-6, 1.0, 1.0, True), (1.0, 1e-6, 1.0, False), (1e-6, 1.0, float("inf"), False), (0.3, 1.0, 1e-6, True),
        (0.3, 1e-3, 1.0, False),
    ],
)  # fmt: skip
def test_the_cheaper_goes(harm, damage, price, dropped, tmp_path):
    rival = rivals(made(tmp_path), harm, damage)
    cut = rival.cut(0.7, price)
    dense = rival.cost.macs(rival.cost.widths)
    assert rival.cost.without(cut.gone).macs(cut.counts) <= 0.7 * dense * (1 + 1e-9)
    assert bool(cut.blocks) == dropped
    assert (cut.counts < rival.cost.widths).any() or cut.blocks


def test_the_harmless_block_goes_and_widths_do_the_rest(tmp_path):
    path = made(tmp_path)
    names = [b.name for b in find_blocks(find_groups(load(path)))]
    rival = rivals(path, dict(zip(names, (9.0, 1e-6, 9.0, 9.0), strict=True)))
    cut = rival.cut(0.6)
    assert [b.name for b in cut.blocks] == [names[1]]
    groups = rival.cost.groups
    cuts = {g.name: int(n) < g.width for g, n in zip(groups, cut.counts, strict=True) if g.width == HIDDEN}
    assert sum(cuts.values()) == COUNT - 1, "widths inside the block that goes are not cut as well"


def test_nothing_that_may_go_is_enough(tmp_path):
    rival = rivals(made(tmp_path))
    with pytest.raises(GoalError, match="cannot be reached"):
        rival.cut(0.01, float("inf"))
    alone = Competition(rival.cost, rival.blocks, rival.able[:1], (), {}, rival.harm, 1, 1)
    with pytest.raises(GoalError, match="is left"):
        alone.cut(0.2)


def test_units_are_carried_over(tmp_path):
    """Groups of what is left keep the same units, position by position."""
    groups = find_groups(load(made(tmp_path)))
    rng = np.random.default_rng(0)
    masks = [rng.random(g.width) < 0.5 for g in groups]
    gone = next(iter(find_blocks(groups)))
    rest = find_groups(drop(groups.graph, [gone.drop]))
    assert len(rest) == len(groups) - 1
    kept = dict(zip((g.name for g in rest), carried_over(groups, masks, rest), strict=True))
    known = {(s.tensor, s.axis): m[s.units] for g, m in zip(groups, masks, strict=True) for s in g.spans}
    for group in rest:
        for s in group.spans:
            np.testing.assert_array_equal(kept[group.name][s.units], known[s.tensor, s.axis])


def test_a_plan_of_both_is_proved(tmp_path):
    from exporter import rewrite
    from exporter.verifier import verify

    path = made(tmp_path)
    names = [b.name for b in find_blocks(find_groups(load(path)))]
    rival = rivals(path, dict(zip(names, (9.0, 1e-6, 9.0, 9.0), strict=True)))
    groups = rival.cost.groups
    plan = plan_of(rival.cut(0.6), groups, {g.name: np.arange(g.width) + 1.0 for g in groups}, {"latency": "0.6x"})
    assert [d.name for d in plan.drop] == [names[1]]
    assert verify(rewrite(groups.graph, plan), groups.graph, plan).error < 1e-5


# -- the whole way --------------------------------------------------------------------------------------------------

BOTH = ["layers", "neurons", "channels", "hidden"]


@pytest.mark.parametrize(
    ("strengths", "useful", "dropped"),
    [((1.0, 1e-4, 1.0, 1e-4), HIDDEN, {"b2", "b4"}), ((1.0, 1.0, 1.0, 1.0), HIDDEN // 4, set())],
    ids=["blocks add little", "units do little"],
)
def test_the_target_is_met_by_what_matters_least(strengths, useful, dropped, device, tmp_path):  # noqa: F811
    path = made(tmp_path, strengths, useful=useful)
    device.fixed = 1e-7
    result, outcome = prune_to_latency(
        path, tmp_path / "out.onnx", Target(share=0.6), Asked(), granularity=BOTH, only=["h*", "b*"], align=1,
        calib=tmp_path / "x.npz",
    )  # fmt: skip
    assert 0.5 < outcome.ratio.value < 0.6 * 1.04, "a block goes whole, so it may be less"
    branches = {f"b{d.node.removeprefix('r')}" for d in result.plan.drop}
    assert branches <= dropped
    assert bool(branches) == bool(dropped)
    assert result.proof is not None
    assert result.fidelity is not None
    assert result.fidelity.error < 0.02


def test_blocks_go_where_widths_alone_do_not_reach_it(device, tmp_path):  # noqa: F811
    path = made(tmp_path, (1.0, 1e-4, 1.0, 1e-4))
    options = {"granularity": BOTH, "only": ["h*", "b*"], "align": 1, "min_width": 60, "calib": tmp_path / "x.npz"}
    result, outcome = prune_to_latency(path, tmp_path / "o.onnx", Target(share=0.6), Asked(), **options)
    assert result.plan.drop
    assert outcome.ratio.value < 0.6 * 1.04


def test_blocks_alone_need_no_inputs(device, tmp_path):  # noqa: F811
    path = made(tmp_path, (1.0, 1e-4, 1.0, 1.0))
    result, outcome = prune_to_latency(path, tmp_path / "o.onnx", Target(share=0.8), Asked(), granularity=["layers"])
    assert [d.node for d in result.plan.drop] == ["r2"]
    assert all(len(g.keep) == g.width for g in result.plan.groups)
    assert outcome.ratio.value < 0.8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give --calib DATA, or --calib synthetic"),
        ({"calib": "synthetic", "scope": "local"}, "leave out --scope"),
        ({"calib": "synthetic", "score": "l1"}, "leave out --scope and --score"),
        ({"calib": "synthetic", "layer_score": "magnitude"}, "--layer-score magnitude: with --calib"),
        ({"calib": "synthetic", "granularity": ["layers", "paint"]}, "--granularity paint: choose from layers"),
        ({"calib": "synthetic", "keep": ["nothing"]}, "--keep 'nothing' matches no"),
    ],
)
def test_requests_that_contradict(options, text, device, tmp_path):  # noqa: F811
    path = made(tmp_path)
    with pytest.raises(UsageError, match=text):
        prune_to_latency(path, tmp_path / "o.onnx", Target(share=0.6), Asked(), **{"granularity": BOTH, **options})
    assert not (tmp_path / "o.onnx").exists()


def test_from_the_command_line(device, tmp_path, capsys):  # noqa: F811
    path = made(tmp_path, (1.0, 1e-4, 1.0, 1.0))
    words = ["--latency", "0.8x", "--granularity", "layers", "-q"]
    assert main(["prune", str(path), "-o", str(tmp_path / "o.onnx"), *words]) == 0
    out = capsys.readouterr().out
    assert "r2" in out
    assert "latency: 0." in out
