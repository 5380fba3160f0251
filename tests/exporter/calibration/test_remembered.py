"""A session that is asked the same twice runs once, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.calibration.remembered import Remembered
from runtime.backends import open_session
from tests.onnx_builder import build, node


class Counting:
    """A session that counts its runs."""

    def __init__(self, answers=None):
        nodes = [node("Add", "x x", "y"), node("Neg", "x", "z")]
        self.session, self.runs, self.answers = (
            open_session(build(nodes, {"x": ["N", 4]}, ["y", "z"]).SerializeToString()),
            0,
            answers,
        )
        self.outputs = self.session.outputs

    def run(self, feeds, outputs=None):
        self.runs += 1
        return self.answers or self.session.run(feeds, outputs)


X = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_the_same_is_run_once():
    inner = Counting()
    session = Remembered(inner)
    assert session.outputs is inner.outputs
    first, second = session.run({"x": X}), session.run({"x": X.copy()})
    assert inner.runs == 1
    assert (first["y"] == 2 * X).all()
    assert first.keys() == second.keys() == {"y", "z"}
    second.clear()
    assert session.run({"x": X}).keys() == {"y", "z"}


@pytest.mark.parametrize(
    ("feeds", "outputs"),
    [({"x": X + 1}, None), ({"x": X[:1]}, None), ({"x": X[::-1]}, None), ({"x": X}, ["y"]), ({"x": X}, ["z", "y"])],
)
def test_anything_else_is_run(feeds, outputs):
    inner = Counting()
    session = Remembered(inner)
    session.run({"x": X})
    want, got = inner.session.run(feeds, outputs), session.run(feeds, outputs)
    assert inner.runs == 2
    assert got.keys() == want.keys()
    assert all((got[name] == want[name]).all() for name in want)


def test_text_tells_questions_apart():
    inner = Counting({"y": X})
    session = Remembered(inner)
    for words in (["a", "b"], ["a", "c"], ["a", "b"]):
        session.run({"x": np.array(words, object)})
    assert inner.runs == 2


def test_large_answers_are_not_held():
    """Nor sequences, whose size nobody knows; what was held before stays."""
    inner = Counting()
    session = Remembered(inner, most=100)
    for x, runs in ((X, 1), (X, 1), (X + 1, 2), (X + 1, 3), (X, 3)):  # 64 bytes each
        session.run({"x": x})
        assert inner.runs == runs
    inner = Counting({"y": [X, X]})
    session = Remembered(inner)
    assert session.run({"x": X})["y"] is session.run({"x": X})["y"]
    assert inner.runs == 2
