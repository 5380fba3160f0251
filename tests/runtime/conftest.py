"""A backend and a clock of our own: models take a set time, and the clock moves only while they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import runtime.backends.ort  # noqa: F401  (registers itself, before a test puts another registry in place)
from runtime import backends, clocks
from runtime.backends import TensorSpec
from runtime.errors import RunError
from tests.onnx_builder import build, node, weights


class Machine:
    """A backend whose models take a set time on a clock that moves only while they run."""

    def __init__(self):
        self.now = 0.0
        self.busy = 0.0
        self.switches = 0
        self.ran: list[str] = []
        self.fed: list[dict] = []
        self.opened: list = []
        self.durations: dict[str, float] = {}
        self.inputs = (TensorSpec("ids", np.dtype(np.int64), ("N", "S")),)
        self.signatures: dict[str, list[TensorSpec]] = {}
        self.accepts = lambda _: True
        self.disturbs = lambda _: False
        self.noise = lambda: 1.0
        self.placed = lambda: 1.0  # how where it came to lie in memory changes a model's time, for one load
        self.answer = lambda _, feeds: {"y": feeds["ids"].astype(np.float32)}

    def open(self, path, options):
        self.opened.append((path, options))
        self.now += 0.5
        return Loaded(self, Path(path).stem)


class Loaded:
    """A model on the machine."""

    def __init__(self, machine, name):
        self.machine, self.name, self.inputs = machine, name, machine.signatures.get(name, machine.inputs)
        self.outputs = (TensorSpec("y", np.dtype(np.float32), ("N", "S")),)
        self.place = machine.placed()

    def run(self, feeds, outputs=None):
        return self.machine.answer(self.name, feeds)

    def bind(self, feeds):
        machine = self.machine
        machine.fed.append(feeds)

        def call():
            if not machine.accepts({n: v.shape for n, v in feeds.items()}):
                raise RunError(f"{self.name} does not like {[v.shape for v in feeds.values()]}")
            machine.ran.append(self.name)
            seconds = machine.durations.get(self.name, 0.01) * self.place * machine.noise()
            machine.now += seconds
            machine.busy += 2 * seconds  # two threads
            machine.switches += machine.disturbs(self.name)

        return call


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(backends, "BACKENDS", {"fake": made.open})
    monkeypatch.setattr(clocks, "wall", lambda: made.now)
    monkeypatch.setattr(clocks, "process_cpu", lambda: made.busy)
    monkeypatch.setattr(clocks, "thread_cpu", lambda: made.now)
    monkeypatch.setattr(clocks, "switches", lambda: made.switches)
    monkeypatch.setattr(clocks, "machine_cpu", lambda: 1.5 * made.now + made.busy)  # others use 1.5 processors
    return made


@pytest.fixture
def paths(tmp_path):
    """Three files; what is in them matters for the values of inputs only."""
    model = build([node("Gather", "w ids", "y")], {"ids": ["N", "S"]}, ["y"], weights(w=(7, 2)), kinds={"ids": "i"})
    for name in "abc":
        onnx.save(model, tmp_path / f"{name}.onnx")
    return [tmp_path / f"{name}.onnx" for name in "abc"]
