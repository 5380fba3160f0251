"""``prune --max-drop``: the smallest model that is at most so much worse, found by search."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exporter import GoalError, UsageError, prune
from exporter.cli import main
from exporter.search import TRIES, parse_limit
from runtime.errors import BadRequest
from runtime.evaluation import evaluate
from runtime.samples import Samples, load_samples
from tests.exporter.trained import drawn, files


def searched(folder, drop="2%", labels="label", count=500, **options):
    model, data = files(folder, labels=labels, count=count)
    return prune(model, folder / "out.onnx", max_drop=drop, calib=data, calib_samples=160, **options)


@pytest.mark.parametrize(("of", "labels", "metric"), [("macs", "label", "top1"), ("params", "", "agreement")])
def test_the_smallest_within_the_limit(of, labels, metric, tmp_path):
    result = searched(tmp_path, "2%", labels, of=of, align=1)
    found = result.search
    assert found is not None
    assert found.limit == 0.02
    assert found.metric == metric
    assert 3 <= sum(t.accuracy is not None for t in found.tries) <= TRIES
    assert {t.within for t in found.tries} == {True, False}, "the limit lies between two tries"
    within = [t for t in found.tries if t.within]
    chosen = found.tries[found.chosen]
    assert chosen.left == min(t.left for t in within)
    assert found.accuracy.drop <= 0.02
    assert min(t.left for t in found.tries) < chosen.left, "smaller ones were tried, and were worse"
    left = {
        "macs": result.after.macs / result.before.macs,
        "params": result.after.parameters / result.before.parameters,
    }
    assert left[of] == pytest.approx(chosen.left)
    assert left[of] < 0.7
    assert result.proof is not None
    assert result.fidelity is not None
    assert result.fidelity.samples < found.samples
    assert result.plan.options["max_drop"] == "2%"


def test_what_is_written_is_what_was_judged(tmp_path):
    """On fresh inputs, too, the drop is about what was measured."""
    result = searched(tmp_path, "2%")
    x, labels = drawn(4000, 99)
    np.savez(tmp_path / "new.npz", x=x, y=labels)
    model = tmp_path / "model.onnx"
    samples = load_samples(tmp_path / "new.npz", _inputs(model), labels=("y",))
    before, after = (evaluate(p, samples, "top1") for p in (model, result.output))
    assert before.value > 0.9
    assert before.drop_to(after) <= result.search.accuracy.high + 0.01


def _inputs(path):
    from runtime.backends import open_session

    return open_session(path).inputs


def test_no_sample_is_in_two_parts(tmp_path):
    from exporter import load
    from exporter.calibration.data import calibration_of

    model, data = files(tmp_path, count=400)
    for limit in (100, 1000):
        found = calibration_of(data, load(model), limit=limit, judged=True)
        parts = [found.fit, found.held, found.judges]
        rows = np.concatenate([part.rows for part in parts])
        assert len(set(rows.tolist())) == len(rows) == 400
        assert all(isinstance(p, Samples) and len(p) for p in parts)
        assert len(found.fit) < 100 or limit == 1000
        assert len(found.judges) >= 100
    # sorted by class is no order to divide by
    x, labels = drawn(200, 0)
    order = np.argsort(labels, kind="stable")
    np.savez(tmp_path / "sorted.npz", x=x[order], y=labels[order])
    held = calibration_of(tmp_path / "sorted.npz", load(model)).held
    assert len(set(held.labels.tolist())) == 4


def test_sure_asks_for_the_whole_interval(tmp_path):
    result = searched(tmp_path, "6%", sure=True, align=1)
    assert result.search.accuracy.high <= 0.06
    assert result.search.sure


def test_sure_says_how_many_samples_it_takes(tmp_path):
    with pytest.raises(UsageError, match=r"--sure: \d+ samples cannot show .*\n.*Give about [\d,]+ samples"):
        searched(tmp_path, "0.1%", sure=True)
    assert not (tmp_path / "out.onnx").exists()


def test_a_limit_that_no_model_meets(tmp_path):
    with pytest.raises(GoalError, match=r"no model within a drop of 1e-09 \(mse\) was found in \d tries") as caught:
        searched(tmp_path, 1e-9, metric="mse")
    assert "judged on 255 samples.\nThe nearest leaves 0." in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_a_metric_in_its_own_unit(tmp_path):
    result = searched(tmp_path, 0.02, metric="cosine", align=1)
    assert result.search.limit == 0.02
    assert 0 < result.search.accuracy.drop <= 0.02
    assert result.search.accuracy.dense == pytest.approx(1)


def test_a_dry_run_searches_and_writes_nothing(tmp_path):
    model, data = files(tmp_path)
    result = prune(model, max_drop="3%", calib=data, calib_samples=160, dry_run=True)
    assert result.output is None
    assert result.search.accuracy.drop <= 0.03
    assert list(tmp_path.glob("*.onnx")) == [model]


def test_the_report(tmp_path, capsys):
    model, data = files(tmp_path, count=300)
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    command = ["prune", str(model), "-q", "-o", str(out), "--max-drop", "3%", "--calib", str(data), "--labels", "label"]
    assert main([*command, "--calib-samples", "160", "--json", str(report)]) == 0
    text = capsys.readouterr().out
    assert "judged on 105 samples that nothing is fitted to; --max-drop 3%" in text
    assert "chosen" in text
    assert "too much" in text
    assert "with 105 samples the drop may be as much as" in text
    document = json.loads(report.read_text())
    found = document["search"]
    assert found["given"] == "3%"
    assert found["tries"][found["chosen"]]["accuracy"]["drop"] <= 0.03
    assert found["tries"][found["chosen"]]["within"]
    assert document["fidelity"]["accuracy"]["metric"] == "top1"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_drop": "1%"}, UsageError, "give --calib"),
        ({"max_drop": "1%", "calib": "synthetic"}, UsageError, "made-up inputs"),
        ({"max_drop": "1%", "macs": 0.5, "calib": "D"}, UsageError, "leave out --ratio"),
        ({"max_drop": "1%", "steps": 2, "calib": "D"}, UsageError, "leave out --steps"),
        ({"max_drop": "1%", "of": "bytes", "calib": "D"}, UsageError, "choose macs or params"),
        ({"max_drop": "lots", "calib": "D"}, UsageError, "give a share such as 0.5%"),
        ({"max_drop": "1%", "metric": "mse", "calib": "D"}, UsageError, "original's value is 0"),
        ({"max_drop": "1%", "metric": "top7", "calib": "D"}, BadRequest, "choose from"),
        ({"max_drop": "1%", "labels": "truth", "calib": "D"}, BadRequest, "no such array"),
        ({"macs": 0.5, "sure": True, "calib": "D"}, UsageError, "say more of --max-drop"),
        ({"macs": 0.5, "metric": "top1"}, UsageError, "need calibration inputs"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_go_together(options, error, says, tmp_path):
    model, data = files(tmp_path, count=60)
    if options.get("calib") == "D":
        options = {**options, "calib": data}
    with pytest.raises(error, match=says):
        prune(model, tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("given", "value", "dense", "rate", "limit"),
    [("0.5%", 0.005, 0.9, True, 0.005), (0.01, 0.01, 0.9, True, 0.01), ("2%", 0.02, 8.0, False, 0.16),
     ("0.3", 0.3, 8.0, False, 0.3), ("0%", 0.0, 0.9, True, 0.0)],
)  # fmt: skip
def test_limits(given, value, dense, rate, limit):
    found = parse_limit(given)
    assert found.value == pytest.approx(value)
    assert found.for_accuracy(dense, rate) == pytest.approx(limit)


def test_a_point_is_not_all_of_a_rate():
    with pytest.raises(UsageError, match=r"--max-drop 1 is 100 points of a rate.* say 1%"):
        parse_limit(1).for_accuracy(0.9, rate=True)
    assert parse_limit(1).for_accuracy(8.0, rate=False) == 1


@pytest.mark.parametrize("given", ["-1%", "100%", "nan", "inf", "", "1 %%"])
def test_limits_out_of_range(given):
    with pytest.raises(UsageError, match="--max-drop"):
        parse_limit(given)
