"""Dropping residual blocks: which there are, that what is left is proved and tidy, and that wrong drops are caught."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest

from exporter import GoalError, ModelError, UsageError, find_groups, load, prune, rewrite, save, verify
from exporter.blocks import find_blocks
from exporter.cli import main
from exporter.depth import choose_blocks, drop
from exporter.edits import complete
from exporter.influence import JUDGES, score_blocks
from exporter.masked import masked_original
from exporter.model_file import from_model
from exporter.plan import AxisTake, Plan
from tests.exporter.files import branch, choose
from tests.exporter.test_functions import function
from tests.exporter.test_plan import SCHEMA
from tests.onnx_builder import build, node, weights
from tests.rows.depth import ROWS
from tests.rows.networks import ROWS as NETWORKS
from tests.schemas import conform

BLOCKED = [row for row in ROWS if row.blocks]


def random_drops(blocks, rng):
    """One or more blocks at random, none inside another, that leave every graph input read."""
    while True:
        chosen = [b for b in blocks if rng.random() < 0.5] or [blocks.blocks[rng.integers(len(blocks))]]
        outer = [b for b in chosen if not any(b.name in o.inside for o in chosen)]
        if len({b.drop.node for b in outer}) < len(outer):
            continue
        if blocks.left(outer).inputs == blocks.left([]).inputs:
            return [b.drop for b in outer]


def random_deep_plan(graph, rng, widths=True):
    """Random blocks and random units of what is left; the widths may stay whole."""
    groups = find_groups(drop(graph, random_drops(find_blocks(find_groups(graph)), rng)))
    masks = []
    for group in groups:
        mask = np.full(group.width, not widths)
        mask[rng.choice(group.width, rng.integers(1, group.width), replace=False)] = True
        masks.append(mask)
    return complete(groups, masks, {})


def assert_tidy(model: onnx.ModelProto):
    """Nothing is left that no output needs."""
    graph = model.graph
    wanted = {o.name for o in graph.output}
    for each in reversed(graph.node):
        assert wanted & set(each.output), f"{each.op_type} {each.name} is read by nothing"
        wanted |= set(each.input)
    made = {o for each in graph.node for o in each.output}
    assert {t.name for t in graph.initializer} <= wanted
    assert {v.name for v in graph.value_info} <= made | {t.name for t in graph.initializer}
    assert {v.name for v in graph.input} <= wanted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_blocks(row):
    blocks = find_blocks(find_groups(from_model(row.model)))
    assert tuple(f"{b.drop.node}:{b.drop.input}" for b in blocks) == row.blocks
    assert tuple(n for r in blocks.refused for n in r.reason.split("'")[1::2]) == row.refused
    assert len({b.name for b in blocks} | {r.name for r in blocks.refused}) == len(row.blocks) + len(row.refused)


@pytest.mark.parametrize("widths", [False, True], ids=["depth", "depth and width"])
@pytest.mark.parametrize("row", BLOCKED, ids=lambda row: row.name)
def test_dropped_blocks_are_proved(row, widths, tmp_path):
    onnx.save(row.model, tmp_path / "model.onnx")
    graph = load(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    for _ in range(3):
        plan = random_deep_plan(graph, rng, widths)
        assert Plan.from_json(plan.to_json()) == plan
        pruned = rewrite(graph, plan)
        proof = verify(pruned, graph, plan)
        assert proof.change > 1e-2
        assert len(pruned.nodes) < len(graph.nodes)
        assert pruned.parameters < graph.parameters or row.name == "shared"  # the other block reads the weights too
        save(pruned, tmp_path / "pruned.onnx")
        assert_tidy(pruned.model)
        assert set(plan.take) >= set(graph.constants)
        assert {n for n, t in plan.take.items() if not t.removed} == set(pruned.constants)


def test_every_block_alone(tmp_path):
    """What a block is said to save is what dropping it saves."""
    for row in BLOCKED:
        graph = from_model(row.model)
        groups = find_groups(graph)
        blocks = find_blocks(groups)
        dense = blocks.left([])
        assert dense.parameters == graph.parameters
        for block in blocks:
            left, reduced = blocks.left([block]), drop(graph, [block.drop])
            assert dense.macs - left.macs == block.macs
            assert dense.parameters - left.parameters == block.parameters
            assert left.parameters == reduced.parameters
            assert len(reduced.nodes) + len(block.nodes) + 1 == len(graph.nodes) + (block.drop.node in graph.outputs)


# -- the masked original ----------------------------------------------------------------------------------------


def deep(row_name="pre-norm", number=1):
    graph = from_model(next(r.model for r in ROWS if r.name == row_name))
    block = find_blocks(find_groups(graph)).blocks[number]
    groups = find_groups(drop(graph, [block.drop]))
    return graph, complete(groups, [np.arange(g.width) % 2 == 0 for g in groups], {})


def test_the_masked_original_is_the_dense_graph_with_a_branch_hidden():
    graph, plan = deep()
    model = masked_original(graph, plan)
    names = {n.name for n in model.graph.node}
    assert {n.proto.name for n in graph.nodes if n.op != "LayerNormalization"} <= names
    assert next(n for n in model.graph.node if n.op_type == "Where" and n.output[0] in _inputs(model, "node_r2"))


def _inputs(model, name):
    return next(list(n.input) for n in model.graph.node if n.name == name)


def test_dropping_another_branch_is_rejected():
    graph, plan = deep()
    other = drop(graph, [find_blocks(find_groups(graph)).blocks[0].drop])
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(other, graph, dataclasses.replace(plan, hide={}), runs=2)


def test_keeping_the_branch_is_rejected():
    graph, plan = deep()
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(graph, graph, dataclasses.replace(plan, hide={}), runs=2)


def test_a_consumer_of_the_wrong_tensor_is_rejected():
    """The sum is gone: its readers must read the stream, not what the branch before it added."""
    graph, plan = deep()
    groups = find_groups(drop(graph, plan.drop))
    plan = complete(groups, [np.ones(g.width, bool) for g in groups], {})
    good = rewrite(graph, plan)
    assert verify(good, graph, plan).error < 1e-5
    model = onnx.ModelProto()
    model.CopyFrom(good.model)
    reader = next(n for n in model.graph.node if n.name == "node_n3")
    assert reader.input[0] == "r1"
    reader.input[0] = "f1"
    with pytest.raises(GoalError, match="first at"):
        verify(dataclasses.replace(good, model=model), graph, plan, runs=2)


def test_a_plan_that_drops_the_stream_is_rejected():
    """The wrong operand hidden, the right one dropped."""
    graph, plan = deep()
    groups = find_groups(drop(graph, plan.drop))
    plan = complete(groups, [np.ones(g.width, bool) for g in groups], {})
    good = rewrite(graph, plan)
    only = plan.drop[0]
    wrong = dataclasses.replace(only, input=1 - only.input, keeps="f2")
    take = {n: dataclasses.replace(t, removed=False) for n, t in plan.take.items()}
    with pytest.raises(GoalError):
        verify(good, graph, dataclasses.replace(plan, drop=(wrong,), take=take), runs=2)


FAULTS = {
    "no such node": (lambda d: dataclasses.replace(d, node="nothing"), "there is no node 'nothing'"),
    "not a sum": (lambda d: dataclasses.replace(d, node="f2"), "is not a sum of two tensors"),
    "another stream": (lambda d: dataclasses.replace(d, keeps="e"), "does not add anything to 'e'"),
    "the other input": (lambda d: dataclasses.replace(d, input=0), "does not add anything to 'r1'"),
    "no such input": (lambda d: dataclasses.replace(d, input=2), "does not add anything"),
    "no such output": (lambda d: dataclasses.replace(d, interface=("z",)), "there is no input or output 'z'"),
    "an input that is read": (lambda d: dataclasses.replace(d, interface=("x",)), "'x' is removed, but read"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_changed_drops_are_refused(name):
    graph, plan = deep()
    change, text = FAULTS[name]
    with pytest.raises(UsageError, match=text):
        rewrite(graph, dataclasses.replace(plan, drop=(change(plan.drop[0]),)))


def test_removed_constants_must_be_unread():
    graph, plan = deep()
    removed = dataclasses.replace(plan.take["d2"], removed=True)
    for take in (
        {**plan.take, "d1": removed},
        {**plan.take, "d2": dataclasses.replace(removed, axes={0: AxisTake(8, (0,))})},
    ):
        with pytest.raises(UsageError, match="is removed, but read"):
            rewrite(graph, dataclasses.replace(plan, take=take))
    with pytest.raises(UsageError, match="nothing is dropped"):
        rewrite(graph, dataclasses.replace(plan, drop=()))
    with pytest.raises(UsageError, match="dropped twice"):
        rewrite(graph, dataclasses.replace(plan, drop=plan.drop * 2))


# -- choosing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", JUDGES)
def test_scores(by):
    for row in BLOCKED:
        blocks = find_blocks(find_groups(from_model(row.model)))
        scores = score_blocks(blocks, by)
        assert list(scores) == [b.name for b in blocks]
        assert all(0 <= s < 10 for s in scores.values())
        assert scores == score_blocks(blocks, by)


def test_similarity_is_one_minus_the_cosine():
    """Of a block that adds c x to x, and of one that turns x around."""
    names = ("e", "r1", "r2", "r3")
    constants = weights(w0=(5, 6), w1=(6, 3))
    nodes = [node("MatMul", "x w0", "e")]
    for n, factor in ((1, 0.5), (2, -3.0), (3, 0.0)):
        constants[f"d{n}"] = (factor * np.eye(6)).astype(np.float32)
        nodes += [node("MatMul", f"{names[n - 1]} d{n}", f"f{n}"), node("Add", f"{names[n - 1]} f{n}", names[n])]
    nodes.append(node("MatMul", "r3 w1", "y"))
    graph = from_model(build(nodes, {"x": ["N", 5]}, ["y"], constants))
    scores = score_blocks(find_blocks(find_groups(graph)))
    assert list(scores.values()) == pytest.approx([0, 2, 0], abs=1e-6)


def test_recorded_inputs_decide():
    graph = from_model(next(r.model for r in ROWS if r.name == "pre-norm"))
    blocks = find_blocks(find_groups(graph))
    one = score_blocks(blocks, inputs=[{"x": np.ones((1, 2, 5), np.float32)}])
    assert one != score_blocks(blocks)
    assert one == pytest.approx(score_blocks(blocks, inputs=[{"x": np.ones((3, 2, 5), np.float32)}]))


def test_an_unknown_score_is_refused():
    with pytest.raises(UsageError, match="--layer-score nothing: choose from similarity, magnitude, random"):
        score_blocks(find_blocks(find_groups(from_model(ROWS[3].model))), "nothing")


def test_the_least_important_go_first():
    blocks = find_blocks(find_groups(from_model(ROWS[3].model)))
    names = [b.name for b in blocks]
    scores = dict(zip(names, (3.0, 1.0, 2.0), strict=True))
    for count in (1, 2, 3):
        chosen = choose_blocks(blocks, scores, count=count)
        assert {b.name for b in chosen} == set(sorted(names, key=scores.__getitem__)[:count])
        assert [names.index(b.name) for b in chosen] == sorted(names.index(b.name) for b in chosen)
    assert len(choose_blocks(blocks, scores, ratio=0.67)) == 2
    assert choose_blocks(blocks, scores, ratio=0.1) == []
    for measure in ("macs", "params"):
        share = blocks.left(choose_blocks(blocks, scores, count=2))
        share = (share.macs if measure == "macs" else share.parameters) / getattr(
            blocks.left([]), "macs" if measure == "macs" else "parameters"
        )
        assert len(choose_blocks(blocks, scores, **{measure: share + 1e-6})) == 2
        assert len(choose_blocks(blocks, scores, **{measure: share - 1e-6})) == 3
        # of three equal blocks that hold nearly all, one leaves more than the square root of a half of it, two less
        assert len(choose_blocks(blocks, scores, **{measure: 0.5}, shared=True)) == 1
        assert len(choose_blocks(blocks, scores, **{measure: 0.25}, shared=True)) == 2
        assert len(choose_blocks(blocks, scores, **{measure: 0.01}, shared=True)) == 3
        with pytest.raises(GoalError, match=rf"--{measure} 0.01 cannot be reached by dropping residual blocks"):
            choose_blocks(blocks, scores, **{measure: 0.01})
    with pytest.raises(GoalError, match="--layers 4: only 3 residual blocks can go"):
        choose_blocks(blocks, scores, count=4)


def unequal():
    """Residual blocks of 1, 2 and 8 products."""
    nodes, constants, stream = [node("MatMul", "x w0", "r0")], weights(w0=(5, 8), w1=(8, 3)), "r0"
    for n, products in enumerate((1, 2, 8)):
        inside = stream
        for k in range(products):
            constants |= weights(n, **{f"v{n}{k}": (8, 8)})
            nodes += [node("MatMul", f"{inside} v{n}{k}", f"h{n}{k}"), node("Tanh", f"h{n}{k}", f"t{n}{k}")]
            inside = f"t{n}{k}"
        nodes.append(node("Add", f"{stream} {inside}", f"r{n + 1}"))
        stream = f"r{n + 1}"
    nodes.append(node("MatMul", f"{stream} w1", "y"))
    return build(nodes, {"x": ["N", 5]}, ["y"], constants)


@pytest.mark.parametrize("measure", ["macs", "params"])
def test_what_there_is_room_for_in_the_end_stays(measure):
    blocks = find_blocks(find_groups(from_model(unequal())))
    one, two, eight = blocks.blocks
    for scores, share, gone in (
        ((0, 1, 2), 0.95, [one]),
        ((0, 1, 2), 0.5, [eight]),  # with that the other two, which went first, can stay
        ((0, 1, 2), 0.3, [one, eight]),  # the more important of them
        ((1, 0, 2), 0.3, [two, eight]),
        ((0, 1, 2), 0.1, [one, two, eight]),
    ):
        chosen = choose_blocks(blocks, dict(zip((b.name for b in blocks), scores, strict=True)), **{measure: share})
        assert chosen == gone, (scores, share)


def test_why_less_is_left_than_allowed(tmp_path, capsys):
    onnx.save(unequal(), tmp_path / "m.onnx")
    command = ["prune", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "-q", "--granularity", "layers"]
    assert main([*command, "--macs", "0.5"]) == 0
    assert "less than allowed: no residual block that goes would fit" in capsys.readouterr().out


def test_a_block_goes_with_those_inside():
    blocks = find_blocks(find_groups(from_model(next(r.model for r in ROWS if r.name == "nested"))))
    inner, outer = blocks.blocks
    assert outer.inside == {inner.name}
    assert choose_blocks(blocks, {inner.name: 1.0, outer.name: 0.0}, count=2) == [outer]
    assert choose_blocks(blocks, {inner.name: 1.0, outer.name: 0.0}, count=1) == [inner]
    assert choose_blocks(blocks, {inner.name: 0.0, outer.name: 1.0}, count=2) == [outer]
    with pytest.raises(ModelError, match="leave none"):
        choose_blocks(blocks, {inner.name: 1.0, outer.name: 0.0}, ratio=0.99, keep=["k"])


def test_inputs_stay_read():
    """The last block that reads the mask is passed over, like the only one."""
    nodes = [node("MatMul", "x w0", "e")]
    constants = weights(w0=(5, 6), w1=(6, 3), v1=(6, 6), v2=(6, 6))
    for n, before in ((1, "e"), (2, "r1")):
        nodes += [node("MatMul", f"{before} v{n}", f"f{n}"), node("Mul", f"f{n} mask", f"m{n}")]
        nodes.append(node("Add", f"{before} m{n}", f"r{n}"))
    nodes.append(node("MatMul", "r2 w1", "y"))
    model = build(nodes, {"x": ["N", "S", 5], "mask": ["N", "S", 1]}, ["y"], constants)
    blocks = find_blocks(find_groups(from_model(model)))
    assert len(blocks) == 2
    assert len(choose_blocks(blocks, {"v1": 0.0, "v2": 1.0}, ratio=0.9)) == 1


# -- prune ------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    onnx.save(NETWORKS[0].model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_prune_by_layers(path, tmp_path):
    result = prune(path, tmp_path / "out.onnx", layers=1)
    assert len(result.plan.drop) == 1
    assert all(len(g.keep) == g.width for g in result.plan.groups)
    assert result.after.macs < result.before.macs
    assert result.proof.change > 1e-2
    again = prune(path, tmp_path / "again.onnx", plan=result.plan)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert again.after.macs == result.after.macs
    dry = prune(path, dry_run=True, layers=1)
    assert dry.after.macs == result.after.macs
    assert dry.after.parameters == result.after.parameters


def test_depth_and_width_share_a_budget(path, tmp_path):
    kinds = ["layers", "neurons", "heads", "hidden"]
    result = prune(path, tmp_path / "out.onnx", macs=0.4, granularity=kinds, align=1)
    assert len(result.plan.drop) == 1
    assert any(len(g.keep) < g.width for g in result.plan.groups)
    assert 0.3 < result.after.macs / result.before.macs <= 0.4
    result = prune(path, tmp_path / "out.onnx", params=0.5, layers=1, align=1)
    assert len(result.plan.drop) == 1
    assert 0.4 < result.after.parameters / result.before.parameters <= 0.5
    result = prune(path, tmp_path / "out.onnx", ratio=0.5, granularity=kinds, align=1)
    assert len(result.plan.drop) == 1
    assert any(len(g.keep) == g.width // 2 for g in result.plan.groups)


def test_a_budget_that_blocks_alone_meet(path, tmp_path):
    """Nothing is left for the widths to do."""
    result = prune(path, tmp_path / "out.onnx", layers=2, macs=0.9)
    assert len(result.plan.drop) == 2
    assert all(len(g.keep) == g.width for g in result.plan.groups)


def test_keep_and_only_reach_blocks(path, tmp_path):
    def dropped(**options):
        return [d.node for d in prune(path, tmp_path / "out.onnx", **options).plan.drop]

    assert dropped(layers=1, keep=["wqkv"]) == ["t"]
    assert dropped(layers=1, keep=["node_d"]) == ["r"]
    assert dropped(layers=1, only=["w1"]) == ["t"]
    assert dropped(ratio=0.6, granularity=["layers", "neurons"], keep=["w1"]) == ["r"]
    with pytest.raises(ModelError, match="--keep and --only leave none to drop of 2 residual blocks"):
        dropped(layers=1, keep=["w1", "wo"])
    with pytest.raises(UsageError, match="--keep 'nothing' matches no node or tensor"):
        dropped(layers=1, keep=["nothing"])


REFUSED = {
    "no budget": ({"granularity": ["layers"]}, "give exactly one budget"),
    "two budgets": ({"granularity": ["layers"], "macs": 0.5, "ratio": 0.5}, "give exactly one budget"),
    "no layers": ({"layers": 0}, "--layers 0: must be at least 1"),
    "out of range": ({"granularity": ["layers"], "macs": 1.5}, "--macs 1.5: must be between 0 and 1"),
    "an unknown kind": ({"granularity": ["layers", "bricks"], "macs": 0.5}, "--granularity bricks: choose from layers"),
    "twice": ({"layers": 1, "macs": 0.5, "granularity": ["layers"]}, "already says how many blocks go"),
    "kinds without budget": ({"layers": 1, "granularity": ["heads"]}, "for the other kinds give --ratio"),
    "an unknown score": ({"layers": 1, "layer_score": "guess"}, "--layer-score guess"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_requests(name, path, tmp_path):
    options, text = REFUSED[name]
    with pytest.raises(UsageError, match=text):
        prune(path, tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_without_blocks(tmp_path):
    row = next(r for r in ROWS if not r.blocks)
    onnx.save(row.model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="has no residual block that can be dropped"):
        prune(tmp_path / "model.onnx", tmp_path / "out.onnx", layers=1)
    result = prune(
        tmp_path / "model.onnx", tmp_path / "out.onnx", ratio=0.5, granularity=["layers", "neurons"], align=1
    )
    assert any("no residual block" in w for w in result.warnings)


def test_caches_go_where_they_may(tmp_path):
    """With --io the cache of a block goes with it, and so do its declarations."""
    model = next(r.model for r in ROWS if r.name == "cache")
    onnx.save(model, tmp_path / "model.onnx")
    result = prune(tmp_path / "model.onnx", tmp_path / "out.onnx", layers=2, io=["past:2", "present:2"])
    assert sorted(n for d in result.plan.drop for n in d.interface) == ["past", "present"]
    pruned = onnx.load(tmp_path / "out.onnx")
    assert [v.name for v in pruned.graph.input] == ["x"]
    assert [v.name for v in pruned.graph.output] == ["y"]
    assert_tidy(pruned)
    assert any("gone from the interface: past, present" in w for w in result.warnings)
    again = prune(tmp_path / "model.onnx", tmp_path / "again.onnx", plan=result.plan)
    assert again.proof.error < 1e-5
    kept = prune(tmp_path / "model.onnx", tmp_path / "out.onnx", layers=1, only=["u1"], io=["past:2", "present:2"])
    assert not kept.plan.drop[0].interface


# -- the command line -------------------------------------------------------------------------------------------


def test_inspect_lists_blocks(path, capsys):
    assert main(["inspect", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " layers " in line]
    assert [row[:3] for row in rows] == [["node_r", "layers", "1"], ["node_t", "layers", "1"]]
    assert main(["inspect", str(path), "--json", "-"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [(b["sum"], b["parameters"]) for b in layers] == [("r", 517), ("t", 280)]
    assert all(b["macs"] > 0 and b["nodes"] > 3 and not b["inside"] for b in layers)


def test_inspect_says_why_a_block_stays(tmp_path, capsys):
    onnx.save(next(r.model for r in ROWS if r.name == "cache"), tmp_path / "model.onnx")
    assert main(["inspect", str(tmp_path / "model.onnx")]) == 0
    text = capsys.readouterr().out
    assert "stays: graph input 'past' would go with it" in text
    assert "to free it: --io 'past:1' --io 'present:1' lets them go" in text


def test_prune_reports_blocks(path, tmp_path, capsys):
    command = [
        "prune",
        str(path),
        "-o",
        str(tmp_path / "out.onnx"),
        "-q",
        "--layers",
        "1",
        "--layer-score",
        "magnitude",
    ]
    assert main([*command, "--json", str(tmp_path / "report.json"), "--save-plan", str(tmp_path / "plan.json")]) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines() if " layers " in line]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [[b["name"], "layers", "1", str(int(b["kept"]))] for b in report["layers"]] == rows
    assert sorted(b["kept"] for b in report["layers"]) == [False, True]
    plan = Plan.load(tmp_path / "plan.json")
    assert [d.name for d in plan.drop] == [b["name"] for b in report["layers"] if not b["kept"]]
    assert plan.options["layers"] == 1
    assert plan.options["layer_score"] == "magnitude"
    again = ["prune", str(path), "-o", str(tmp_path / "again.onnx"), "-q", "--plan", str(tmp_path / "plan.json")]
    assert main(again) == 0
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines() if " layers " in line] == rows
    assert main([*again, "--layers", "1"]) == 2
    assert "leave out --layers" in capsys.readouterr().err
    assert main([*again, "--layer-score", "random"]) == 2
    assert "leave out --layer-score" in capsys.readouterr().err
    conform(json.loads((tmp_path / "plan.json").read_text()), SCHEMA)


# -- what models come with --------------------------------------------------------------------------------------

FFN = function("Ffn", "x u d", "y", [node("MatMul", "x u", "h"), node("Relu", "h", "k"), node("MatMul", "k d", "y")])
LAYER = function(
    "Layer", "x u d", "y", [node("local::Ffn", "x u d", "f"), node("Add", "x f", "y")]
)  # fmt: skip


@pytest.mark.parametrize("inside", [False, True], ids=["sum outside", "sum inside"])
def test_functions_go_with_their_last_call(inside, tmp_path):
    """Calls of what stays are put back; the definition goes when nothing calls it any more."""
    nodes = [node("MatMul", "x w0", "r0")]
    constants = weights(w0=(5, 6), w1=(6, 3))
    for n in (1, 2):
        constants |= weights(n, **{f"u{n}": (6, 8), f"d{n}": (8, 6)})
        if inside:
            nodes.append(node("local::Layer", f"r{n - 1} u{n} d{n}", f"r{n}"))
        else:
            nodes += [node("local::Ffn", f"r{n - 1} u{n} d{n}", f"f{n}"), node("Add", f"r{n - 1} f{n}", f"r{n}")]
    nodes.append(node("MatMul", "r2 w1", "y"))
    model = build(nodes, {"x": ["N", "S", 5]}, ["y"], constants, functions=[FFN, LAYER])
    model.opset_import.add(domain="local", version=1)
    onnx.save(model, tmp_path / "model.onnx")
    for count, calls in ((1, 1), (2, 0)):
        result = prune(tmp_path / "model.onnx", tmp_path / "out.onnx", layers=count)
        assert len(result.plan.drop) == count
        pruned = onnx.load(tmp_path / "out.onnx")
        assert_tidy(pruned)
        assert sum(n.domain == "local" for n in pruned.graph.node) == calls
        if not calls:
            assert "Ffn" not in {f.name for f in pruned.functions}
            assert [n.op_type for n in pruned.graph.node] == ["MatMul", "MatMul"]


def test_a_block_with_a_choice_inside(tmp_path):
    """The stream is read inside a subgraph, by the branch that goes and by what comes after it."""
    then, other = branch("t", [node("MatMul", "e v1", "m1")], "m1"), branch("o", [node("MatMul", "e v2", "m2")], "m2")
    last = branch("l", [node("MatMul", "r w1", "l1")], "l1"), branch("k", [node("MatMul", "r w2", "l2")], "l2")
    nodes = [
        node("MatMul", "x w0", "e"), choose("which", "f", then, other), node("Add", "e f", "r"),
        choose("which", "y", *last),
    ]  # fmt: skip
    constants = weights(w0=(5, 6), w1=(6, 3), w2=(6, 3), v1=(6, 6), v2=(6, 6))
    model = build(nodes, {"x": [2, 5], "which": []}, ["y"], constants, kinds={"which": "b"})
    graph = from_model(model)
    block = find_blocks(find_groups(graph)).blocks[0]
    assert block.parameters == 72
    groups = find_groups(drop(graph, [block.drop]))
    plan = complete(groups, [np.arange(g.width) > 0 for g in groups], {})
    pruned = rewrite(graph, plan)
    assert verify(pruned, graph, plan).change > 1e-2
    assert [n.op for n in pruned.nodes if n.depth == 0] == ["MatMul", "If"]
    assert {"v1", "v2"}.isdisjoint(pruned.constants)
    save(pruned, tmp_path / "out.onnx")


def test_quantization_annotations_and_declarations_go(tmp_path):
    model = next(r.model for r in ROWS if r.name == "pre-norm")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in ("f2.h", "r2", "r1"):
        copy.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        copy.graph.quantization_annotation.add(tensor_name=name)
    graph = from_model(copy)
    drops = [b.drop for b in find_blocks(find_groups(graph)) if b.drop.node == "r2"]
    groups = find_groups(drop(graph, drops))
    pruned = rewrite(graph, complete(groups, [np.ones(g.width, bool) for g in groups], {}))
    assert [v.name for v in pruned.model.graph.value_info] == ["r1"]
    assert [a.tensor_name for a in pruned.model.graph.quantization_annotation] == ["r1"]
