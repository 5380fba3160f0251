"""Output agreement: figures against numpy, pairs of outputs, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.agreement import output_differences
from runtime.backends import TensorSpec


class Fixed:
    """A session that gives what it was made with."""

    def __init__(self, **outputs):
        self.values = {k: np.asarray(v) for k, v in outputs.items()}
        self.outputs = tuple(TensorSpec(k, v.dtype, v.shape) for k, v in self.values.items())
        self.inputs = ()

    def run(self, feeds, outputs=None):
        return self.values


def differences(first, other):
    return output_differences(first, other, [{}], [{}])


def test_figures():
    x = np.array([[1.0, 2, 3], [6, 5, 4]])
    y = x + np.array([[0, 0, -1.5], [0, 0, 0]])
    (found,) = differences(Fixed(y=x), Fixed(y=y))
    assert found.largest == 1.5
    assert found.mean == pytest.approx(0.25)
    assert found.relative == pytest.approx(1.5 / x.std())
    assert found.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.top1 == 0.5


@pytest.mark.parametrize(
    ("x", "y", "largest"),
    [
        ([[1.0, np.nan]], [[1.0, np.nan]], 0),
        ([[1.0, np.inf]], [[1.0, np.inf]], 0),
        ([[1.0, 2.0]], [[1.0, np.nan]], np.inf),
        ([[3, 4]], [[3, 6]], 2),
        ([[True, False]], [[True, True]], 1),
    ],
)
def test_special_values(x, y, largest):
    (found,) = differences(Fixed(y=x), Fixed(y=y))
    assert found.largest == largest
    assert not found.problem


def test_whole_numbers_have_no_top1():
    assert differences(Fixed(y=[[1, 2]]), Fixed(y=[[1, 2]]))[0].top1 is None


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 5), 1), ((2, 5, 32, 32), 1), ((2, 1, 32, 32), None), ((2, 7, 5), 2), ((2,), None), ((5,), 0), ((), None)],
)
def test_classes_are_where_the_metric_finds_them(shape, axis):
    """A mask has its classes in the second axis, a score for each sample has none; both were taken along the last."""
    x = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape)
    y = np.roll(x, 1, axis) if axis is not None else x
    (found,) = output_differences(Fixed(y=x), Fixed(y=y), [{"x": np.zeros((2, 3))}], [{}])
    assert found.top1 == (None if axis is None else 0)


@pytest.mark.parametrize(
    ("first", "other", "problem"),
    [
        (Fixed(y=np.zeros((2, 3))), Fixed(y=np.zeros((2, 4))), "shapes differ: [2, 3] and [2, 4]"),
        (Fixed(y=np.zeros(2), z=np.zeros(2)), Fixed(z=np.zeros(2)), "the other model has no such output"),
        (Fixed(y=["a"]), Fixed(y=["a"]), "not numbers"),
        (Fixed(y=np.zeros((0, 3))), Fixed(y=np.zeros((0, 3))), "empty"),
    ],
)
def test_what_cannot_be_compared(first, other, problem):
    assert differences(first, other)[0].problem == problem


def test_names_first_then_places():
    one = Fixed(a=np.zeros(2), b=np.ones(2))
    assert [d.largest for d in differences(one, Fixed(b=np.ones(2), a=np.zeros(2)))] == [0, 0]
    assert [d.largest for d in differences(one, Fixed(p=np.ones(2), q=np.ones(2)))] == [1, 0]
    assert [d.problem for d in differences(one, Fixed(p=np.ones(2)))] == ["the other model has no such output"] * 2


def test_all_runs_count():
    class Growing(Fixed):
        def run(self, feeds, outputs=None):
            return {"y": self.values["y"] + feeds["k"]}

    runs = [{"k": np.array(0.0)}, {"k": np.array(2.0)}]
    (found,) = output_differences(Growing(y=np.zeros((1, 3))), Fixed(y=np.zeros((1, 3))), runs, runs)
    assert found.largest == 2
    assert found.mean == 1
