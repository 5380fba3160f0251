"""A number of residual blocks goes first, and the widths of what is left meet the latency."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exporter import load, verify
from exporter.cli import main
from exporter.errors import GoalError, UsageError
from exporter.latency.budget import Target, prune_to_latency
from runtime.runners import Asked
from tests.exporter.latency.test_budget import device  # noqa: F401  (the fixture)
from tests.exporter.latency.test_competition import COUNT, HIDDEN, made

WEAK = (1.0, 1e-4, 1.0, 1e-4)


def pruned(path, share, **options):
    """Prune to a share of the latency; the result, what was measured, and the widths of what is left by weight."""
    options = {"align": 1, "only": ["h*", "b*"], **options}
    result, outcome = prune_to_latency(path, path.with_name("out.onnx"), Target(share=share), Asked(), **options)
    return result, outcome, {g.name: (g.width, len(g.keep)) for g in result.plan.groups if g.width == HIDDEN}


def dropped(result):
    return [d.node for d in result.plan.drop]


@pytest.mark.parametrize("calib", [False, True])
@pytest.mark.parametrize(("count", "share", "gone"), [(1, 0.6, 1), (2, 0.4, 2)])
def test_blocks_go_and_widths_meet_the_target(count, share, gone, calib, device, tmp_path):  # noqa: F811
    device.fixed = 1e-7
    path = made(tmp_path, WEAK)
    data = {"calib": tmp_path / "x.npz"} if calib else {}
    result, outcome, widths = pruned(path, share, layers=count, **data)
    assert len(dropped(result)) == gone
    assert set(dropped(result)) <= {"r2", "r4"}, "those that add least"
    assert outcome.ratio.value == pytest.approx(share, rel=0.04)
    assert outcome.predicted == pytest.approx(share, rel=0.1)
    assert len(widths) == COUNT - count
    assert any(kept < width for width, kept in widths.values())
    assert result.proof is not None
    assert (result.plan.options["layers"], result.plan.options["latency"]) == (count, f"{share:g}x")
    assert result.grounds is not None
    assert bool(result.grounds.damage) == calib
    if not calib:  # else the layers were fitted anew
        assert verify(load(path.with_name("out.onnx")), load(path), result.plan).error < 1e-3


def test_blocks_alone_are_enough(device, tmp_path):  # noqa: F811
    result, outcome, widths = pruned(made(tmp_path, WEAK), 0.9, layers=2)
    assert set(dropped(result)) == {"r2", "r4"}
    assert all(kept == width for width, kept in widths.values())
    assert outcome.ratio.value < 0.9
    assert len(outcome.tried) == 1
    assert any("no width was cut" in w for w in result.warnings)


def test_a_prediction_that_was_too_low_is_made_up_for_by_widths(device, tmp_path, monkeypatch):  # noqa: F811
    """Dropping a block saves less than the table says: the widths are cut although the table had said no need."""
    path = made(tmp_path, WEAK)
    plain = device.profile
    whole = plain(path, Asked()).busy

    def profile(file, asked, **_):
        found = plain(file, asked)
        late = 0.1 * whole if str(file).endswith(("other.onnx", "dense.onnx", "m.onnx")) is False else 0.0
        return type(found)(**{**vars(found), "busy": found.busy + late, "latency": found.latency + late})

    monkeypatch.setattr(device, "profile", profile)
    result, outcome, widths = pruned(path, 0.8, layers=1)
    assert len(dropped(result)) == 1
    assert len(outcome.tried) > 1
    assert any(kept < width for width, kept in widths.values())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"layers": 0}, UsageError, "--layers 0: must be at least 1"),
        ({"layers": 9}, GoalError, "--layers 9: only 4 residual blocks can go"),
        ({"layers": 1, "granularity": ["layers"]}, UsageError, "already says how many blocks go"),
        ({"layers": 1, "granularity": ["bricks"]}, UsageError, "--granularity bricks: choose from layers"),
        ({"layers": 1, "min_width": 60}, GoalError, r"--latency 0.5x cannot be reached: the best .* 0\.7.*\nLower"),
        ({"layers": 1, "only": ["u2"]}, GoalError, "--latency 0.5x cannot be reached: the best result measures"),
    ],
)  # fmt: skip
def test_what_cannot_be(options, error, text, device, tmp_path):  # noqa: F811
    path = made(tmp_path, WEAK)
    with pytest.raises(error, match=text):
        pruned(path, 0.5, **options)
    assert not path.with_name("out.onnx").exists()


def test_inputs_are_read_once(device, tmp_path):  # noqa: F811
    """A generator gives its feeds once."""
    device.fixed = 1e-7
    path = made(tmp_path, WEAK)
    rng = np.random.default_rng(1)
    feeds = ({"x": rng.standard_normal((1, 16)).astype(np.float32)} for _ in range(64))
    result, _, _ = pruned(path, 0.6, layers=1, calib=feeds)
    assert result.fidelity is not None
    assert result.fidelity.error < 0.1


@pytest.mark.parametrize("kept", [True, False])
def test_predictions_are_kept_as_for_other_budgets(kept, device, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    device.fixed = 1e-7
    pruned(made(tmp_path, WEAK), 0.6, layers=1, calib=tmp_path / "x.npz", cache=kept)
    assert bool(list((tmp_path / "cache").rglob("*.npz"))) == kept


def test_from_the_command_line(device, tmp_path, capsys):  # noqa: F811
    device.fixed = 1e-7
    path = made(tmp_path, WEAK)
    words = ["--latency", "0.6x", "--layers", "1", "--align", "1", "-q", "--json", str(tmp_path / "r.json")]
    words += ["--report", str(tmp_path / "r.html")]
    assert main(["prune", str(path), "-o", str(tmp_path / "o.onnx"), *words]) == 0
    out = capsys.readouterr().out
    assert "latency: 0." in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert sum(not b["kept"] for b in report["layers"]) == 1
    assert report["latency_budget"]["share"] == 0.6
    page = (tmp_path / "r.html").read_text()
    assert "The budget was --layers 1 --latency 0.6x." in page
    assert "its least important units went" in page
