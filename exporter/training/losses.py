"""Losses: from labels, from a function of the user's, or from agreement with the original where there are no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.training.labels import FromLabels, knowing, loss_of
from exporter.training.options import AGREEMENT, LOSSES
from exporter.training.outputs import (
    CHANCES,
    LEAST,
    Output,
    Outputs,
    classes_of,
    float_outputs,
    judged,
    log_probabilities,
)
from runtime.feeds import Array
from runtime.metrics import IGNORED
from runtime.plugins import PLUGIN, plugin_callable

Loss = Callable[[Outputs, Outputs, Outputs, Tensor | None], Tensor]
"""(outputs, outputs of the original, inputs, labels) -> a number to make small."""


def divergence(values: Tensor, wanted: Tensor, output: Output, temperature: float = 1.0) -> Tensor:
    """KL(wanted || values) of classes, times the temperature's square (Hinton et al., 2015), mean over positions.

    Raises:
        UsageError: there are no two classes or more.
    """
    given, form, axis = classes_of(output, values.float())
    own = log_probabilities(given, form, axis, temperature)
    other = log_probabilities(classes_of(output, wanted.float())[0], form, axis, temperature)
    return (other.exp() * (other - own)).sum(axis).mean() * temperature**2


def relative_error(values: Tensor, wanted: Tensor) -> Tensor:
    """Mean square error relative to the variance of what is wanted; the square error itself of a single number."""
    good = torch.isfinite(wanted)
    wanted = torch.where(good, wanted, torch.zeros_like(wanted)).float()
    values = torch.where(good, values, torch.zeros_like(values)).float()
    error = F.mse_loss(values, wanted)
    return error / wanted.var().clamp(min=LEAST) if wanted.numel() > 1 else error


def _disagreement(output: Output, got: Tensor, want: Tensor, temperature: float) -> Tensor:
    if got.shape != want.shape:
        raise UsageError(
            f"'{output.name}' has the shape {list(got.shape)} in the model and {list(want.shape)} in the teacher, so "
            "they cannot be compared. Judge by another output (--loss-output)."
        )
    if not got.numel():
        return got.float().sum()
    return relative_error(got, want) if output.form == "values" else divergence(got, want, output, temperature)


def agreement(outputs: Sequence[Output], temperature: float = 1.0) -> Loss:
    """The mean over outputs: KL where they hold classes, relative error elsewhere.

    The loss raises a UsageError where an output differs in shape, or none has classes where one should.
    """

    def loss(got: Outputs, want: Outputs, _: Outputs, __: Tensor | None) -> Tensor:
        able = [o for o in outputs if o.form in ("values", CHANCES) or o.classes(got[o.name].shape) is not None]
        parts = [_disagreement(o, got[o.name], want[o.name], temperature) for o in able or outputs]
        weights = torch.tensor([o.weight for o in able or outputs], device=parts[0].device)
        return (torch.stack(parts) * weights).sum() / weights.sum()

    return loss


def make_loss(
    graph: Graph,
    kind: str,
    labelled: bool,
    output: str | None = None,
    temperature: float = 1.0,
    teacher: Graph | None = None,
) -> Loss:
    """The loss of a name. It reads the outputs and, for agreement, what is ``judged``.

    Args:
        graph: whose outputs they are.
        kind: ``auto`` is cross-entropy where there are labels and agreement with the original where there are none;
            ``kl`` and ``mse`` are agreement; ``next-id`` is the cross-entropy of the next id of the first integer input
            (a language model); ``plugin:package.module:callable`` is called with (outputs, outputs of the original,
            inputs, labels).
        labelled: whether there are labels.
        output: the output to judge; by default all floating-point ones, of which labels are for the first.
        temperature: of KL.
        teacher: the original, where it is another graph.

    Raises:
        UsageError: there is no such loss or output, or it needs labels.
    """
    if kind.startswith(PLUGIN):
        found: Loss = plugin_callable(kind, "--loss")
        return found
    outputs = float_outputs(graph)
    if output is not None:
        outputs = [o for o in outputs if o.name == output]
    if not outputs:
        names = ", ".join(o.name for o in float_outputs(graph)) or "none"
        raise UsageError(f"there is no floating-point output '{output or ''}'; there are: {names}.")
    first = outputs[0]
    if kind == "cross-entropy" or (kind == "auto" and labelled):
        if not labelled:
            raise UsageError("--loss cross-entropy needs labels: name their array with --labels.")
        return FromLabels(first, asked=kind == "cross-entropy")
    if kind == "next-id":
        return _next_id(graph, first)
    if kind in ("auto", *AGREEMENT):
        return agreement(judged(graph, kind, output, teacher), temperature)
    raise UsageError(f"there is no loss '{kind}'. Choose from: {', '.join(LOSSES)}.")


def _next_id(graph: Graph, output: Output) -> Loss:
    ids = next((n for n in graph.inputs if graph.inferred.dtype.get(n) in (6, 7)), None)
    if ids is None:
        raise UsageError("--loss next-id needs an integer input, and this model has none.")

    def loss(got: Outputs, _: Outputs, inputs: Outputs, __: Tensor | None) -> Tensor:
        following = inputs[ids][:, 1:]
        return loss_of(got[output.name][:, :-1], output, torch.where(following < 0, IGNORED, following))

    return loss


def probe(
    graph: Graph, output: str | None = None, labels: Array | None = None
) -> Callable[[Outputs, Outputs, Tensor | None, torch.Generator], Tensor]:
    """A loss whose gradient at the original is not zero, which that of agreement is, for scores. It reads ``asked``.

    With labels it is their loss. Without, classes are drawn from the model's own distribution, so that squares of
    gradients are the Fisher information (Theis et al., 2018), and values are multiplied by random signs, so that they
    are the diagonal of the Gauss-Newton matrix (Hutchinson). Outputs without elements, and numbers that are not finite,
    have no part in it.

    Args:
        graph: whose outputs they are.
        output: the output to differentiate; by default all, of which labels are for the first.
        labels: all of them, by which their loss is chosen.
    """
    outputs = [o for o in float_outputs(graph) if output in (None, o.name)]
    if not outputs:
        raise UsageError("the model has no floating-point output, so there is nothing to differentiate.")
    tensors = judged(graph, output=output)
    from_labels: Loss = knowing(FromLabels(outputs[0]), labels)

    def loss(got: Outputs, _: Outputs, labels: Tensor | None, draw: torch.Generator) -> Tensor:
        if labels is not None:
            return from_labels(got, {}, {}, labels)
        parts = [_probed(o, got[o.name].float(), draw) for o in tensors if got[o.name].numel()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    return loss


def _probed(output: Output, values: Tensor, draw: torch.Generator) -> Tensor:
    """What ``probe`` differentiates of one tensor, which has elements."""
    if output.form == "values":
        good = torch.isfinite(values)
        values = torch.where(good, values, torch.zeros_like(values)).reshape(values.shape or (1,))
        signs = torch.randint(0, 2, values.shape, generator=draw).to(values.device) * 2.0 - 1.0
        spread = values.detach().var().clamp(min=LEAST).sqrt() if values.numel() > 1 else 1.0
        scale = spread * math.sqrt(values[0].numel()) * len(values)
        return (values * signs).sum() / scale * math.sqrt(output.weight)
    if output.classes(values.shape) is None:
        return values.sum() * 0.0
    given, form, axis = classes_of(output, values)
    logs = log_probabilities(given, form, axis).movedim(axis, -1)
    logs = logs.reshape(-1, logs.shape[-1])
    chances = logs.detach().exp().cpu().nan_to_num(1.0)  # what is no number makes scores that are none
    drawn = torch.multinomial(chances, 1, generator=draw).to(values.device)
    return -logs.gather(1, drawn).mean()
