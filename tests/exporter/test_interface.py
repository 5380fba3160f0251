"""Inputs and outputs that may shrink: which axes a pattern frees, and what follows a cut of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest

from exporter import Plan, UsageError, find_groups, load, prune, rewrite, verify
from exporter.cli import main
from exporter.edits import complete
from exporter.errors import GoalError
from exporter.interface import free_axes, pruned_shapes, shrunk
from exporter.masked import masked_original
from exporter.plan import AxisTake
from runtime.backends import SessionOptions, open_session
from tests.rows.interface import cached_attention, hidden_state, language_model

CACHES = ("past_*:1", "present_*:1")
HALF = ("--ratio", "0.5", "--align", "1")
SIZES = {"x": (2, 5, 5), "past_k": (2, 4, 6, 3), "past_v": (2, 4, 6, 3)}


@pytest.fixture
def decoder(tmp_path):
    """A file of one attention layer with a cache of four heads."""
    onnx.save(cached_attention(), tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx"


def halved(groups):
    """Keep the later half of every group."""
    return complete(groups, [np.arange(g.width) >= g.width // 2 for g in groups], {})


# -- patterns ---------------------------------------------------------------------------------------------------


def test_patterns_name_axes(decoder):
    graph = load(decoder)
    assert free_axes(graph, ["past_*:1", "*_k:-1"]) == {"past_k": (1, 3), "past_v": (1,), "present_k": (3,)}
    assert free_axes(graph, []) == {}


REFUSED = {
    "no axis": ("past_k", "expected GLOB:AXIS"),
    "not a number": ("past_k:one", "expected GLOB:AXIS"),
    "no name": (":1", "expected GLOB:AXIS"),
    "no match": ("cache*:1", "matches no input or output"),
    "an inner tensor": ("km:1", "matches no input or output"),
    "out of range": ("past_k:4", r"past_k\[N, 4, P, 3\] has no axis 4"),
    "out of range from the end": ("x:-4", r"x\[N, S, 5\] has no axis -4"),
    "dynamic": ("past_*:2", r"axis 2 of past_k\[N, 4, P, 3\] is dynamic"),
    "one of several is dynamic": ("*:0", "is dynamic"),
    "no ids": ("x:ids", "the values of 'x' select no rows of a table"),
}


@pytest.mark.parametrize(("pattern", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_patterns(decoder, pattern, message):
    with pytest.raises(UsageError, match=message):
        find_groups(load(decoder), (pattern,))


@pytest.mark.parametrize("pattern", ["past_k", "cache*:1"])
def test_messages_list_inputs_and_outputs(decoder, pattern):
    with pytest.raises(UsageError, match=r"Inputs: x\[N, S, 5\], past_k\[N, 4, P, 3\].*\n*Outputs: y\["):
        find_groups(load(decoder), (pattern,))


def test_an_axis_tied_to_a_frozen_one_is_reported(decoder):
    """The cache goes out as it came in, so freeing the way in alone frees nothing."""
    groups = find_groups(load(decoder), ("past_*:1",))
    assert not len(groups)
    stay = {(f.tensor, f.axis, f.reason.text, f.reason.where) for f in groups.frozen}
    assert ("past_k", 1, "graph output", "output 'present_k'") in stay


# -- what follows -----------------------------------------------------------------------------------------------


def test_declared_shapes_follow(decoder):
    graph = load(decoder)
    plan = halved(find_groups(graph, CACHES))
    model = rewrite(graph, plan).model
    declared = {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert declared["x"] == ["N", "S", 5]
    assert declared["past_k"] == declared["past_v"] == ["N", 2, "P", 3]
    assert [declared["present_v"][k] for k in (0, 1, 3)] == ["N", 2, 3]
    assert pruned_shapes(plan, SIZES) == {"x": (2, 5, 5), "past_k": (2, 2, 6, 3), "past_v": (2, 2, 6, 3)}
    assert [(s.name, s.kind, s.axis, s.before, s.keep) for s in shrunk(plan, graph)] == [
        (name, kind, 1, 4, (2, 3))
        for name, kind in (("past_k", "input"), ("past_v", "input"), ("present_k", "output"), ("present_v", "output"))
    ]


def test_the_proof_notices_other_heads(decoder):
    """The pruned model must return the heads the plan keeps, not as many others."""
    graph = load(decoder)
    plan = halved(find_groups(graph, CACHES))
    pruned = rewrite(graph, plan)
    assert verify(pruned, graph, plan).error < 1e-4
    others = {"present_k": {1: AxisTake(4, (0, 1))}}
    with pytest.raises(GoalError, match="output 'present_k', relative error"):
        verify(pruned, graph, replace(plan, hide={**plan.hide, **others}))


def test_step_by_step(decoder):
    """With its shrunk cache the pruned decoder goes where the masked original goes."""
    graph = load(decoder)
    plan = halved(find_groups(graph, CACHES))
    plain = SessionOptions(optimize=False)
    masked = open_session(masked_original(graph, plan).SerializeToString(), options=plain)
    pruned = open_session(rewrite(graph, plan).model.SerializeToString(), options=plain)
    x = np.random.default_rng(0).standard_normal((1, 1, 5)).astype(np.float32)
    wide = {n: np.zeros((1, 4, 0, 3), np.float32) for n in ("past_k", "past_v")}
    narrow = {n: np.zeros((1, 2, 0, 3), np.float32) for n in wide}
    y = z = x
    for step in range(1, 6):
        want, got = masked.run({"x": y, **wide}), pruned.run({"x": z, **narrow})
        y, z = np.tanh(want["y"]), np.tanh(got["y"])
        wide, narrow = ({n: r[n.replace("past", "present")] for n in wide} for r in (want, got))
        assert narrow["past_k"].shape == (1, 2, step, 3)
        np.testing.assert_allclose(z, y, rtol=1e-4)
        np.testing.assert_allclose(narrow["past_k"], wide["past_k"][:, 2:], rtol=1e-4)
    assert np.ptp(y) > 0.1


def test_a_plan_may_cut_only_what_was_free(decoder):
    graph = load(decoder)
    document = json.loads(halved(find_groups(graph, CACHES)).to_json())
    assert document["io"] == {name: [1] for name in ("past_k", "past_v", "present_k", "present_v")}
    document["io"].pop("present_k")
    with pytest.raises(UsageError, match="it cuts 'present_k', an input or output that was not free to shrink"):
        rewrite(graph, Plan.from_json(json.dumps(document)))
    document["io"]["cache"] = [1]
    with pytest.raises(UsageError, match=r"not free|no input or output 'cache'"):
        rewrite(graph, Plan.from_json(json.dumps(document)))


# -- ids --------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    """A file of a language model of 12 tokens."""
    onnx.save(language_model(), tmp_path / "words.onnx")
    return tmp_path / "words.onnx"


IDS = ("ids:ids", "y:2")


def test_ids_are_numbered_anew(words, tmp_path):
    """Where all ids of a text stay, the scores are the dense model's; the metadata tell which id is which."""
    result = prune(words, tmp_path / "out.onnx", ratio=0.5, align=1, granularity=["tokens"], io=IDS)
    model = onnx.load(tmp_path / "out.onnx")
    (record,) = [p for p in model.metadata_props if p.key == "secateur.ids.ids"]
    kept = json.loads(record.value)
    assert len(kept) == 6
    assert [(s.name, s.before, s.keep, s.ids) for s in shrunk(result.plan, load(words))] == [
        ("ids", 12, tuple(kept), True),
        ("y", 12, tuple(kept), False),
    ]
    text = np.array([[0, 5, 3]], np.int32)
    dense = open_session(words).run({"ids": np.array(kept, np.int32)[text]})["y"]
    pruned = open_session(tmp_path / "out.onnx").run({"ids": text})["y"]
    np.testing.assert_allclose(pruned, dense[..., kept], rtol=1e-4, atol=1e-5)


def test_ids_numbered_anew_twice(words, tmp_path):
    """The record always leads back to the first original."""
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    prune(words, one, ratio=0.5, align=1, granularity=["tokens"], io=IDS)
    plan = prune(one, two, ratio=0.5, align=1, granularity=["tokens"], io=IDS).plan
    first, second = (json.loads(onnx.load(p).metadata_props[-1].value) for p in (one, two))
    assert second == [first[k] for k in plan.hide["ids"][2].keep]
    assert len(second) == 3


def test_ids_that_occur_stay(words, tmp_path):
    text = np.array([[11, 2, 2], [7, 11, 11]], np.int32)
    np.savez(tmp_path / "text.npz", ids=text)
    options = {"align": 1, "granularity": ["tokens"], "io": IDS, "inputs": tmp_path / "text.npz"}
    plan = prune(words, tmp_path / "out.onnx", ratio=0.75, **options).plan
    assert plan.hide["ids"][2].keep == (2, 7, 11)
    with pytest.raises(UsageError, match="the recorded input 'ids' holds id 7, which the plan removes"):
        prune(words, tmp_path / "out.onnx", ratio=0.8, **options)


def test_the_proof_notices_ids_out_of_order(words):
    graph = load(words)
    plan = halved(find_groups(graph, IDS))
    pruned = rewrite(graph, plan)
    assert verify(pruned, graph, plan).error < 1e-4
    table = next(t for t in pruned.model.graph.initializer if t.name == "words")
    rows = onnx.numpy_helper.to_array(table)[[1, 0, 2, 3, 4, 5]]
    table.CopyFrom(onnx.numpy_helper.from_array(rows, "words"))
    with pytest.raises(GoalError, match="differs from the masked original"):
        verify(pruned, graph, plan)


def test_replaying_a_plan_for_ids(words, tmp_path):
    first = prune(words, tmp_path / "a.onnx", ratio=0.5, align=1, io=IDS)
    assert dict(first.plan.io) == {"ids": (2,), "y": (2,)}
    prune(words, tmp_path / "b.onnx", plan=Plan.from_json(first.plan.to_json()))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# -- the command line -------------------------------------------------------------------------------------------


def test_prune_replay_verify(decoder, tmp_path, capsys):
    out, again, plan = tmp_path / "out.onnx", tmp_path / "again.onnx", tmp_path / "plan.json"
    frees = [a for pattern in CACHES for a in ("--io", pattern)]
    assert main(["prune", str(decoder), "-o", str(out), *HALF, *frees, "--save-plan", str(plan)]) == 0
    told = capsys.readouterr().out
    assert "THE INTERFACE CHANGES" in told
    assert "input past_k, past_v: axis 1 is 2, was 4" in told
    assert "output present_k, present_v: axis 1 is 2, was 4" in told
    assert main(["prune", str(decoder), "-o", str(again), "--plan", str(plan), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {(c["name"], c["axis"], c["before"], len(c["keep"])) for c in report["interface"]} >= {("past_k", 1, 4, 2)}
    assert again.read_bytes() == out.read_bytes()
    assert main(["verify", str(decoder), str(out), "--plan", str(plan)]) == 0
    assert main(["prune", str(decoder), "-o", str(again), "--plan", str(plan), "--io", "past_k:1"]) == 2


def test_measure_and_bench(decoder, tmp_path, capsys, monkeypatch):
    """Dense and pruned are timed each with its own cache."""
    import functools

    import runtime.latency

    monkeypatch.setattr(runtime.latency, "bench", functools.partial(runtime.latency.bench, seconds=0.1))
    monkeypatch.setattr("exporter.commands.prune._PROFILE_SECONDS", 0.1)
    out = tmp_path / "out.onnx"
    frees = [a for pattern in CACHES for a in ("--io", pattern)]
    arguments = ["prune", str(decoder), "-o", str(out), *HALF, *frees, "--measure", "--json", "-"]
    assert main([*arguments, "--shape", "past_k:1x4x7x3"]) == 0
    latency = json.loads(capsys.readouterr().out)["latency"]
    assert (latency["dense"]["shapes"]["past_k"], latency["pruned"]["shapes"]["past_k"]) == ([1, 4, 7, 3], [1, 2, 7, 3])
    shapes = ["--shape", "past_k:3x4x8x3"]
    assert main(["bench", str(decoder), str(out), *shapes, "--seconds", "0.1", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["shapes"]["past_v"] for r in results] == [[3, 4, 8, 3], [3, 2, 8, 3]]
    # the first must take them as they are given
    assert main(["bench", str(out), str(decoder), *shapes, "--seconds", "0.1"]) == 2


def test_inspect_lists_what_is_free(decoder, capsys):
    assert main(["inspect", str(decoder)]) == 0
    told = capsys.readouterr().out
    named = re.findall(r"--io (\S+) lets it shrink", told)
    assert named
    assert main(["inspect", str(decoder), *(f"--io={name}" for name in named)]) == 0  # they can be typed as they stand
    assert capsys.readouterr().out != told
    assert main(["inspect", str(decoder), "--io", "past_*:1", "--io", "present_*:1"]) == 0
    assert "1 group;" in capsys.readouterr().out


def test_inspect_says_how_to_free_a_vocabulary(words, capsys):
    assert main(["inspect", str(words)]) == 0
    assert "selected by data (Gather 'node_e0')" in (told := capsys.readouterr().out)
    assert "to free it: --io INPUT:ids" in told
    assert main(["inspect", str(words), "--io", "ids:ids", "--io", "y:-1"]) == 0
    assert "tokens" in (told := capsys.readouterr().out)
    assert "selected by data" not in told


def test_names_that_look_like_patterns(tmp_path):
    """Replay names the axes exactly, whatever characters exporters put into names."""
    model = hidden_state()
    for value in (*model.graph.output, *(n for n in model.graph.node)):
        for field in ("name", "output", "input"):
            got = getattr(value, field, None)
            if got == "h":
                value.name = "h[*]:0"
            elif field != "name" and got:
                for k, name in enumerate(got):
                    got[k] = "h[*]:0" if name == "h" else name
    onnx.save(model, tmp_path / "m.onnx")
    first = prune(tmp_path / "m.onnx", tmp_path / "a.onnx", ratio=0.5, io=("h*:0:1",), align=1)
    assert dict(first.plan.io) == {"h[*]:0": (1,)}
    prune(tmp_path / "m.onnx", tmp_path / "b.onnx", plan=first.plan)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
