"""Labels that are classes of a model, by name or number, as numbers of the columns that stand for these classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from runtime.errors import BadRequest
from runtime.metrics import IGNORED
from runtime.samples import Samples

_SHOWN = 10


def numbered(samples: Samples, classes: Sequence[int | str]) -> Samples:
    """Samples with labels that are numbers of columns.

    Labels of a model that hands out a dictionary for each sample are the keys of these; whole numbers where the keys
    are text are taken for columns already, and so is one number for each column of a sample.

    Args:
        samples: with labels or without.
        classes: what the columns of the model's output stand for; empty where it does not say.

    Raises:
        BadRequest: a label is no class of the model.
    """
    answers, names = samples.answers, tuple(classes)
    if answers is None or not names or samples.classes or names == tuple(range(len(names))):
        return samples
    text = answers.dtype.kind == "U"
    if answers.shape[1:] == (len(names),) or (not text and isinstance(names[0], str)):
        return samples
    found = np.full(answers.shape, IGNORED, np.int64)
    known = np.zeros(answers.shape, bool) if text else answers == IGNORED
    for column, name in enumerate(names):
        here = answers == (str(name) if text else name)
        found[here], known = column, known | here
    if not known.all():
        raise BadRequest(f"the label {answers[~known][0]} is no class of the model: it has {_listed(names)}.")
    return replace(samples, answers=found, classes=names)


def whole(samples: Samples, classes: Sequence[int | str]) -> Samples:
    """As ``numbered``, for who can do nothing with text.

    Raises:
        BadRequest: a label is no class of the model, or labels are text and the model does not name its classes.
    """
    found = numbered(samples, classes)
    if found.answers is not None and found.answers.dtype.kind == "U":
        raise BadRequest(
            "the labels are text, and the model does not say which class is called so: give the number of its column."
        )
    return found


def _listed(names: Sequence[int | str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
