"""Labels that are classes: those a model names become the numbers of its columns."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backends import TensorSpec
from runtime.class_labels import numbered, whole
from runtime.errors import BadRequest
from runtime.metrics import IGNORED
from runtime.samples import samples_of

INPUTS = (TensorSpec("x", np.dtype(np.float32), (None, 2)),)


def labelled(labels):
    labels = np.array(labels)
    return samples_of([{"x": np.ones((len(labels), 2), np.float32), "y": labels}], INPUTS, labels="y")


@pytest.mark.parametrize(
    ("classes", "labels", "columns"),
    [
        ((3, 5, 9), [9, 3, 3], [2, 0, 0]),
        ((3, 5, 9), [[9], [5]], [[2], [1]]),
        ((3, 5, 9), [9.0, IGNORED], [2, IGNORED]),
        ((3, 5, 9), ["9", "5"], [2, 1]),
        (("a", "bb"), ["bb", "a"], [1, 0]),
        (("a", "bb"), [1, 0], [1, 0]),
        ((1, 2), [[0, 1], [1, 0]], [[0, 1], [1, 0]]),
        ((0, 1, 2), [2, 0], [2, 0]),
        ((), [2, 0], [2, 0]),
    ],
)
def test_labels_become_columns(classes, labels, columns):
    found = numbered(labelled(labels), classes)
    assert found.labels.tolist() == columns
    assert numbered(found, classes).labels.tolist() == columns  # once is enough


@pytest.mark.parametrize(
    ("classes", "labels", "text"),
    [
        ((3, 5, 9), [3, 4], "the label 4 is no class of the model: it has 3, 5, 9"),
        (("a", "b"), ["a", "c"], "the label c is no class"),
        (tuple(range(5, 25)), [1], "13, 14 and 10 more"),
        ((), ["a", "c"], "does not say which class"),
    ],
)
def test_what_is_no_class(classes, labels, text):
    with pytest.raises(BadRequest, match=text):
        whole(labelled(labels), classes)
