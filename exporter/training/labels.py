"""Losses from labels: cross-entropy of classes or of chances, square error of values; chosen once, by all labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.errors import UsageError
from exporter.training.outputs import CHANCES, LEAST, LOGS, PROBABILITIES, Output, Outputs, log_probabilities
from runtime.feeds import Array
from runtime.metrics import IGNORED
from runtime.nouns import counted

_BELOW_ONE = 1 - 1e-7

L = TypeVar("L")


@dataclass(frozen=True)
class Facts:
    """What is known of labels together.

    Attributes:
        kind: the type they are stored in.
        whole: each is a whole number.
        one_hot: along the second or the last axis all are zero but one, which is one.
        low, high: the least and largest, ``IGNORED`` ones aside; infinite where there are none.
    """

    kind: str
    whole: bool
    one_hot: bool
    low: float
    high: float


def facts_of(labels: Array) -> Facts:
    """What is known of labels of any shape.

    Raises:
        UsageError: they are not numbers.
    """
    if labels.dtype.kind not in "iubf":
        raise UsageError(f"the labels are {labels.dtype}, not numbers.")
    with np.errstate(invalid="ignore"):
        whole = labels.dtype.kind != "f" or not (labels % 1 != 0).any()
    held = labels[labels != IGNORED]
    low, high = (float(held.min()), float(held.max())) if held.size else (np.inf, -np.inf)
    axes = (1, -1) if labels.ndim > 1 and whole and low >= 0 and high <= 1 else ()
    one_hot = any(bool((labels.sum(axis) == 1).all()) for axis in axes)
    return Facts(str(labels.dtype), whole, one_hot, low, high)


@dataclass(frozen=True)
class FromLabels:
    """The loss of an output from labels; called as every ``Loss``.

    Attributes:
        output: the output that labels are of.
        asked: whether cross-entropy was asked for, also of labels that give each class a probability.
        facts: of all labels; without, those of a batch are taken from it.
    """

    output: Output
    asked: bool = False
    facts: Facts | None = None

    def __call__(self, got: Outputs, _: Outputs, __: Outputs, labels: Tensor | None) -> Tensor:
        """The mean over labels.

        Raises:
            UsageError: they do not fit the output.
        """
        assert labels is not None
        return loss_of(got[self.output.name], self.output, labels, self.facts, self.asked)


def knowing(loss: L, labels: Array | None) -> L:
    """A loss that knows all labels, [samples, ...], where it is one from labels; others are returned as they are.

    Raises:
        UsageError: they are not numbers, or none counts.
    """
    if labels is None or not isinstance(loss, FromLabels):
        return loss
    facts = facts_of(labels)
    if facts.low > facts.high:
        raise UsageError(f"every label is {IGNORED}, which counts for nothing.")
    return replace(loss, facts=facts)


def loss_of(values: Tensor, output: Output, labels: Tensor, facts: Facts | None = None, asked: bool = False) -> Tensor:
    """The loss of an output, mean over the labels that count: those of ``IGNORED`` do not.

    A label for each position without its classes is the number of the right one. A label for each number is compared
    with it: by cross-entropy where the output holds probabilities, or the labels are one-hot; by that of two classes
    where all labels are 0 or 1, or lie between and the output comes from a Sigmoid; else by the square error.

    Args:
        values: what the model gave.
        output: what it holds.
        labels: of this batch.
        facts: of all labels; by default of these.
        asked: take cross-entropy of labels between 0 and 1 in any case.

    Raises:
        UsageError: labels do not fit the output, in shape or in range.
    """
    known = facts_of(labels.cpu().numpy()) if facts is None else facts
    values, labels, output, axis = _fitted(values, output, labels)
    labels = labels if labels.is_floating_point() else labels.long()
    if axis is not None:
        _check_classes(known, values.shape[axis])
        return _of_classes(values, output.form, labels, axis)
    if not (known.low >= 0 and known.high <= 1):
        if asked:
            raise UsageError(
                f"cross-entropy takes labels from 0 to 1 for an output of shape {list(values.shape)}; they go from "
                f"{known.low:g} to {known.high:g}. Leave --loss out for the square error."
            )
        return F.mse_loss(values.float(), labels.float())
    axis = output.classes(values.shape) if output.form != CHANCES else None
    if axis is not None and (asked or known.one_hot or output.form in (PROBABILITIES, LOGS)):
        logs = log_probabilities(values.float(), output.form, axis)
        return -torch.where(labels > 0, labels * logs, torch.zeros_like(logs)).sum(axis).mean()
    if asked or known.whole or output.form == CHANCES:
        return _of_chances(values.float(), output.form, labels)
    return F.mse_loss(values.float(), labels.float())


def _fitted(values: Tensor, output: Output, labels: Tensor) -> tuple[Tensor, Tensor, Output, int | None]:
    """Values and labels in shapes that fit, as metrics fit them, what such values hold, and the axis of classes; None
    where there is a label for each number.

    Raises:
        UsageError: they do not fit.
    """
    for found, held in _without_narrow(values, output):
        answers = list(_answers(labels))
        for answer in answers:
            if answer.shape == found.shape:
                return found, answer, held, None
        shape = list(found.shape)
        for answer in answers:
            for axis in (held.axis, found.ndim - 1, 1):
                if axis is None or not 0 <= axis < found.ndim or shape[axis] < 2:
                    continue
                if shape[:axis] + shape[axis + 1 :] == list(answer.shape):
                    return found, answer, held, axis
    raise UsageError(
        f"labels of shape {list(labels.shape)} do not fit an output of shape {list(values.shape)}: they should be one "
        "whole number for each position without its classes. Choose the output with --loss-output, or give a loss of "
        "your own with --loss plugin:package.module:callable."
    )


def _without_narrow(values: Tensor, output: Output) -> Iterator[tuple[Tensor, Output]]:
    """Values as they are, and without axes of size 1 but the first; with the output where the axis of classes lies."""
    known = output.classes(values.shape) if output.axis is not None else None
    yield values, replace(output, axis=known)
    kept = [k for k, n in enumerate(values.shape) if not k or n > 1]
    narrower = values.reshape([values.shape[k] for k in kept])
    yield narrower, replace(output, axis=kept.index(known) if known in kept else None)


def _answers(labels: Tensor) -> Iterator[Tensor]:
    yield labels
    if len(labels) == 1:
        yield labels[0]  # of a run whose samples are labelled together
    if labels.ndim > 1 and labels.shape[-1] == 1:
        yield labels[..., 0]


def _check_classes(facts: Facts, classes: int) -> None:
    if not facts.whole:
        raise UsageError(f"the labels are {facts.kind}, not whole numbers.")
    if facts.low < 0 or facts.high >= classes:
        raise UsageError(
            f"labels go from {facts.low:g} to {facts.high:g}, the output has {counted(classes, 'class')}. A label of "
            f"{IGNORED} counts for nothing."
        )


def _of_classes(values: Tensor, form: str, labels: Tensor, axis: int) -> Tensor:
    """Mean of minus the logarithm of the right class's probability."""
    held = labels != IGNORED
    right = torch.where(held, labels, torch.zeros_like(labels)).long().unsqueeze(axis)
    nats = -log_probabilities(values.float(), form, axis).gather(axis, right).squeeze(axis)
    return torch.where(held, nats, torch.zeros_like(nats)).sum() / held.sum().clamp(min=1)


def _of_chances(values: Tensor, form: str, labels: Tensor) -> Tensor:
    """Mean of minus the logarithm of what each number says of its label: a probability, or the logit of one."""
    held = labels != IGNORED
    wanted = torch.where(held, labels, torch.zeros_like(labels)).float()
    if form in (CHANCES, PROBABILITIES):
        values = values.clamp(LEAST, _BELOW_ONE)
        nats = -(wanted * values.log() + (1 - wanted) * torch.log1p(-values))
    else:
        nats = F.binary_cross_entropy_with_logits(values, wanted, reduction="none")
    return torch.where(held, nats, torch.zeros_like(nats)).sum() / held.sum().clamp(min=1)
