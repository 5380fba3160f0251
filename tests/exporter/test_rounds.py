"""``prune --steps``: rounds of pruning and fitting towards one budget."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exporter import Plan, UsageError, load, prune, rewrite, verify
from exporter.cli import main
from exporter.rounds import has_targets
from tests.exporter.calibration.networks import residual_mlp
from tests.exporter.files import run, write
from tests.exporter.trained import drawn, files


def shares(result, kind):
    before, after = result.before, result.after
    return after.macs / before.macs if kind == "macs" else after.parameters / before.parameters


@pytest.mark.parametrize(("kind", "scope"), [("macs", None), ("params", None), ("macs", "local"), ("ratio", "local")])
def test_each_round_takes_its_share(kind, scope, tmp_path):
    model, data = files(tmp_path, count=160)
    result = prune(model, tmp_path / "out.onnx", **{kind: 0.4}, steps=3, align=1, scope=scope, calib=data)
    wanted = [0.6 ** (k / 3) if kind == "ratio" else 0.4 ** (k / 3) for k in (1, 2, 3)]
    assert [r.budget for r in result.rounds] == pytest.approx(wanted)
    left = [r.params if kind == "params" else r.macs for r in result.rounds]
    assert left == sorted(left, reverse=True)
    if kind == "ratio":
        kept, width = (sum(f(g) for g in result.plan.groups) for f in (lambda g: len(g.keep), lambda g: g.width))
        assert kept / width == pytest.approx(0.6, abs=0.05)
    else:
        assert all(w - 0.06 < x <= w for x, w in zip(left, wanted, strict=True))
        assert shares(result, kind) == pytest.approx(left[-1])
    assert all(r.proof is not None and r.original and r.refits for r in result.rounds)
    assert result.plan.options["steps"] == 3
    assert result.plan.options[kind] == 0.4
    assert result.fidelity.error == result.rounds[-1].error < 0.1


def test_the_plan_leads_from_the_original_to_the_result(tmp_path):
    """Its rewrite is proved, and has the shapes of what was written; fitted again it does as well."""
    model, data = files(tmp_path, count=160)
    saved = tmp_path / "plan.json"
    result = prune(model, tmp_path / "out.onnx", macs=0.4, steps=2, align=1, calib=data)
    result.plan.save(saved)
    graph, plan = load(model), Plan.load(saved)
    pruned, written = rewrite(graph, plan), load(tmp_path / "out.onnx")
    verify(pruned, graph, plan, runs=2)
    shape = {n: tuple(t.dims) for n, t in written.constants.items()}
    assert shape == {n: tuple(t.dims) for n, t in pruned.constants.items()}
    assert any(not np.array_equal(written.array(n), pruned.array(n)) for n in shape), "the layers were fitted"
    again = prune(model, tmp_path / "again.onnx", plan=plan, calib=data)
    assert again.after.macs == result.after.macs
    assert again.fidelity.error < 2 * result.fidelity.error


def test_layers_are_fitted_to_the_original(tmp_path):
    """Errors do not add up: three gentle rounds end near what one round does."""
    model, data = files(tmp_path, count=240)
    one, three = (prune(model, tmp_path / f"{n}.onnx", macs=0.5, steps=n, align=1, calib=data) for n in (1, 3))
    assert not one.rounds
    assert three.fidelity.error < 1.5 * one.fidelity.error
    x, _ = drawn(500, 5)
    dense, pruned = (run(p, {"x": x})["y"] for p in (model, tmp_path / "3.onnx"))
    assert (dense.argmax(1) == pruned.argmax(1)).mean() > 0.9


def test_without_calibration(tmp_path):
    model, _ = files(tmp_path)
    result = prune(model, tmp_path / "out.onnx", macs=0.5, steps=2, align=1)
    assert len(result.rounds) == 2
    assert result.rounds[-1].error is None
    assert result.fidelity is None
    assert result.proof.error < 1e-5
    graph = load(model)
    again = prune(model, tmp_path / "again.onnx", plan=result.plan)
    assert again.output.read_bytes() == result.output.read_bytes()
    assert rewrite(graph, result.plan).parameters == result.after.parameters


def test_blocks_go_in_the_first_round(tmp_path):
    model = write(residual_mlp(), tmp_path)
    feeds = [{"x": np.random.default_rng(k).standard_normal((4, 6)).astype(np.float32)} for k in range(24)]
    result = prune(model, tmp_path / "out.onnx", layers=1, macs=0.3, steps=2, align=1, calib=feeds)
    assert len(result.plan.drop) == 1
    assert len(result.rounds) == 2
    assert result.rounds[-1].macs <= 0.3
    assert result.fidelity.samples


def test_protected_layers_stay(tmp_path):
    model, data = files(tmp_path, count=100)
    result = prune(model, tmp_path / "out.onnx", macs=0.6, steps=3, align=1, keep=["w1"], calib=data)
    kept = {g.name: len(g.keep) for g in result.plan.groups}
    assert kept["w1"] == 32
    assert kept["w2"] < 48


def test_a_round_that_has_nothing_to_do_is_left_out(tmp_path):
    """Alignment overshoots: the second round finds its budget met."""
    model, data = files(tmp_path, count=100)
    result = prune(model, tmp_path / "out.onnx", macs=0.52, steps=8, align=16, calib=data)
    assert 1 <= len(result.rounds) < 8
    assert result.after.macs <= 0.52 * result.before.macs


def test_targets(tmp_path):
    """Rewriting keeps the names of what layers give."""
    graph = load(write(residual_mlp(), tmp_path))
    plan = prune(tmp_path / "model.onnx", ratio=0.5, align=1, dry_run=True).plan
    assert has_targets(graph, rewrite(graph, plan))
    other, _ = files(tmp_path)
    assert not has_targets(load(other), graph)


def test_without_the_original_s_tensors_the_round_before_is_the_target(tmp_path, monkeypatch, capsys):
    model, data = files(tmp_path, count=160)
    monkeypatch.setattr("exporter.rounds.has_targets", lambda *_: False)
    result = prune(model, tmp_path / "out.onnx", macs=0.5, steps=2, align=1, calib=data)
    assert [r.original for r in result.rounds] == [False, False]
    assert all(r.refits for r in result.rounds)
    assert result.fidelity.error < 0.1
    from exporter.report import prune_text

    assert "to the round before" in prune_text(result)


def test_the_report(tmp_path, capsys):
    model, data = files(tmp_path, count=100)
    plan, report = tmp_path / "plan.json", tmp_path / "report.json"
    command = ["prune", str(model), "-q", "-o", str(tmp_path / "out.onnx"), "--macs", "0.5", "--steps", "2"]
    more = ["--align", "1", "--calib", str(data), "--save-plan", str(plan), "--json", str(report)]
    assert main([*command, *more]) == 0
    text = capsys.readouterr().out
    assert "round 1 of 2: " in text
    assert "round 2 of 2: " in text
    assert "2 layers fitted, proved to" in text
    document = json.loads(report.read_text())
    assert [r["proof"]["error"] < 1e-3 for r in document["rounds"]] == [True, True]
    assert main(["prune", str(model), "-q", "-o", str(tmp_path / "again.onnx"), "--plan", str(plan)]) == 0
    again = load(tmp_path / "again.onnx")
    assert again.parameters == document["after"]["parameters"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"macs": 0.5, "steps": 0}, "at least 1"),
        ({"steps": 2}, "exactly one budget"),
        ({"steps": 2, "layers": 1}, "exactly one budget"),
        ({"macs": 1.5, "steps": 2}, "between 0 and 1"),
    ],
)
def test_errors(options, says, tmp_path):
    model, _ = files(tmp_path, count=40)
    with pytest.raises(UsageError, match=says):
        prune(model, tmp_path / "out.onnx", **options)
