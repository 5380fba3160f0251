"""Sampling: when it stops, and what is read around a run."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import clocks, sampling
from runtime.sampling import MIN_SAMPLES, take


@pytest.fixture
def clock(monkeypatch):
    """Time that moves only when a call moves it."""

    class Clock:
        now = cpu = 0.0
        busy = 0.0  # of other processes
        switched = 0

    found = Clock()
    monkeypatch.setattr(clocks, "wall", lambda: found.now)
    monkeypatch.setattr(clocks, "thread_cpu", lambda: found.cpu)
    monkeypatch.setattr(clocks, "process_cpu", lambda: found.cpu)
    monkeypatch.setattr(clocks, "switches", lambda: found.switched)
    monkeypatch.setattr(clocks, "machine_cpu", lambda: found.cpu + found.busy)
    return found


def runs(clock, wall=0.01, cpu=0.008, others=0.0, device=None):
    def call():
        clock.now += wall
        clock.cpu += cpu
        clock.busy += others * wall
        return device

    return call


def test_what_is_read(clock):
    found = take([runs(clock), runs(clock, 0.02, 0.02, device=0.005)], 1.0)
    np.testing.assert_allclose(found.wall[0], 0.01)
    np.testing.assert_allclose(found.cpu[0], 0.008)
    np.testing.assert_allclose(found.thread[1], 0.02)
    np.testing.assert_allclose(found.device[1], 0.005)
    assert np.isnan(found.device[0]).all()
    assert not found.settled
    assert found.wall.shape[1] == pytest.approx(33, abs=1)


def test_it_stops_when_enough_is_known_and_not_before(clock):
    asked = []

    def enough(wall, thread):
        asked.append(wall.shape)
        return wall.shape[1] > 100

    found = take([runs(clock)], 100.0, enough)
    assert found.settled
    assert 100 < found.wall.shape[1] < 140
    assert asked[0][1] >= 64
    assert len(asked) < 5  # it is asked now and then


def test_a_short_model_is_sampled_for_a_moment_at_least(clock):
    found = take([runs(clock, 1e-4, 1e-4)], 10.0, lambda *_: True)
    assert clock.now >= 0.25
    assert found.wall.shape[1] > 1000


def test_there_are_always_some_samples(clock):
    assert take([runs(clock, 5.0)], 0.001).wall.shape[1] == MIN_SAMPLES


@pytest.mark.parametrize("others", [0.0, 0.5, 1.7])
def test_work_of_others_is_told(others, clock):
    found = take([runs(clock, others=others)], 2.0)
    np.testing.assert_allclose(found.others, others, atol=0.02)


def test_moments_are_told_apart(clock):
    """Other work begins half-way."""
    calls = {"n": 0}

    def call():
        calls["n"] += 1
        runs(clock, others=1.0 if calls["n"] > 202 else 0.0)()

    found = take([call], 4.0)
    assert found.others[0, :150].max() < 0.05
    assert found.others[0, -150:].min() > 0.9


def test_where_the_system_says_nothing(clock, monkeypatch):
    monkeypatch.setattr(clocks, "machine_cpu", lambda: None)
    assert np.isnan(take([runs(clock)], 1.0).others).all()


@pytest.mark.timing
def test_the_real_clocks():
    before = clocks.machine_cpu()
    assert sampling.take([lambda: sum(range(2000)) and None], 0.05).wall.min() > 0
    after = clocks.machine_cpu()
    assert (before is None) == (after is None)
    assert before is None or after >= before > 0
    assert clocks.switches() >= 0
    assert clocks.processors() >= 1
