"""The contention detector: each sign alone, and none on a quiet machine."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.contention import find_contention

COUNT = 300


def quiet(seed=0):
    wall = np.exp(np.random.default_rng(seed).normal(-4, 0.01, COUNT))
    return {
        "wall": wall, "thread": wall * 0.999, "switched": np.zeros(COUNT, bool), "others": np.zeros(COUNT),
        "threads": 1, "processors": 2,
    }  # fmt: skip


SIGNS = {
    "quiet": ({}, []),
    "preempted": ({"switched": np.arange(COUNT) % 5 == 0}, ["preempted"]),
    "preempted now and then": ({"switched": np.arange(COUNT) % 20 == 0}, []),
    "busy": ({"others": np.full(COUNT, 0.8)}, ["busy"]),
    "load unknown": ({"others": np.full(COUNT, np.nan)}, []),
    "waiting": ({"thread": quiet()["wall"] / 1.4}, ["waiting"]),
    "waiting in several threads": ({"thread": quiet()["wall"] / 1.4, "threads": 2}, []),
    "drift": ({"wall": quiet()["wall"] * np.linspace(1, 1.3, COUNT), "threads": 0}, ["drift"]),
}


@pytest.mark.parametrize("name", SIGNS)
def test_signs(name):
    change, kinds = SIGNS[name]
    assert [f.kind for f in find_contention(**(quiet() | change))] == kinds


def test_what_is_said():
    change = {"switched": np.arange(COUNT) % 4 == 0, "others": np.full(COUNT, 1.25)}
    preempted, busy = find_contention(**(quiet() | change))
    assert preempted.text == "the scheduler took the processor away during 25 % of the samples"
    assert busy.text == "other work kept 1.2 of 2 processors busy"
