"""Plans are tried where it matters, and the best on samples that nothing was fitted to is taken."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from exporter.calibration import trial
from exporter.calibration.damage import Prediction


@pytest.mark.parametrize(
    ("errors", "share", "tried"),
    [
        ({0.7: 1.0, 0.9: 2.0, 0.3: 3.0}, 0.7, [0.7, 0.9, 0.3]),
        ({0.7: 2.0, 0.9: 3.0, 0.3: 1.0}, 0.3, [0.7, 0.9, 0.3]),
        ({0.7: 2.0, 0.9: 1.0, 0.97: 3.0}, 0.9, [0.7, 0.9, 0.97]),
        ({0.7: 3.0, 0.9: 2.0, 0.97: 1.0}, 0.97, [0.7, 0.9, 0.97]),
        ({0.7: 1.0, 0.9: 1.15, 0.3: 0.95}, 0.7, [0.7, 0.9, 0.3]),
        ({0.7: 1.0, 0.9: 1.05}, 0.7, [0.7, 0.9]),
        ({0.7: 1.0, 0.9: 0.95}, 0.7, [0.7, 0.9]),
    ],
)
def test_the_share_with_the_least_error_is_taken(monkeypatch, errors, share, tried):
    asked, fits, judges = [], [], []

    def plan_for(value):
        asked.append(value)
        return SimpleNamespace(groups=[SimpleNamespace(keep=value)])

    def compensate(pruned, graph, plan, samples, batch, *, quick):
        assert quick
        fits.append(set(samples))
        return plan.groups[0].keep, []

    def deviation(fitted, graph, samples, batch):
        judges.append(set(samples))
        return errors[fitted]

    class Some(list):
        run = 1

        def part(self, start, stop):
            return Some(self[start:stop])

        def first(self, count):
            return Some(self[:count])

    monkeypatch.setattr(trial, "rewrite", lambda graph, plan: graph)
    monkeypatch.setattr(trial, "compensate", compensate)
    monkeypatch.setattr(trial, "deviation", deviation)
    monkeypatch.setattr(trial, "comparable", lambda *_: True)
    monkeypatch.setattr(trial, "answers", lambda *_: None)
    calibration = SimpleNamespace(fit=Some(range(100)), batch=8)
    assert trial.best_plan(None, plan_for, calibration, 1e6, lambda _: None).groups[0].keep == share
    assert asked == tried
    assert all(not f & j and f | j == set(range(100)) for f, j in zip(fits, judges, strict=True))


def test_equal_plans_are_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "rewrite", lambda graph, plan: graph)
    monkeypatch.setattr(trial, "compensate", lambda *a, **k: (None, []))
    monkeypatch.setattr(trial, "deviation", lambda *a: tried.append(1) or 1.0)
    monkeypatch.setattr(trial, "comparable", lambda *_: True)
    monkeypatch.setattr(trial, "answers", lambda *_: None)
    plans = {share: SimpleNamespace(groups=[SimpleNamespace(keep=(1, 2))]) for share in (0.3, 0.7, 0.9, 0.97)}
    calibration = SimpleNamespace(fit=_Whole(), batch=8)
    assert trial.best_plan(None, plans.get, calibration, 1e6, lambda _: None) is plans[0.7]
    assert tried == [1]


@pytest.mark.parametrize(
    ("macs", "run", "any_tried"), [(1e11 / 32, 1, True), (1e11 / 8, 1, False), (1e11 / 32, 64, False)]
)
def test_nothing_is_tried_where_a_trial_costs_too_much_or_is_one_run(monkeypatch, macs, run, any_tried):
    tried = []
    monkeypatch.setattr(trial, "rewrite", lambda graph, plan: graph)
    monkeypatch.setattr(trial, "compensate", lambda *a, **k: tried.append(1) or (None, []))
    monkeypatch.setattr(trial, "deviation", lambda *a: 1.0)
    monkeypatch.setattr(trial, "comparable", lambda *_: True)
    monkeypatch.setattr(trial, "answers", lambda *_: None)
    calibration = SimpleNamespace(fit=_Whole(64, run), batch=8)

    def plan_for(share):
        return SimpleNamespace(groups=[SimpleNamespace(keep=(share,))])

    assert trial.best_plan(None, plan_for, calibration, macs, lambda _: None).groups[0].keep == (0.7,)
    assert bool(tried) == any_tried


class _Whole:
    def __init__(self, count=16, run=1):
        self.count, self.run = count, run

    def __len__(self):
        return self.count

    def part(self, start, stop):
        return self

    def first(self, count):
        return self


def test_layers_that_come_after_mend():
    damage = {"early": np.array([2.0, 1.0, 0.0]), "late": np.array([2.0, 1.0, 0.0])}
    prediction = Prediction({}, damage, {"early": 1.0, "late": 0.0})
    assert prediction.mended(0.75)["early"].tolist() == [0.5, 0.25, 0.0]
    assert prediction.mended(0.75)["late"].tolist() == [2.0, 1.0, 0.0]
