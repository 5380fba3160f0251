"""Losses: from labels, from a function of the user's, or from agreement with the original where there are no labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd import torch_outputs
from exporter.calibration.outputs import float_outputs as numeric_outputs
from exporter.calibration.outputs import parts_of
from exporter.errors import UsageError
from exporter.graph import Graph, Node
from exporter.training.options import AGREEMENT, LOSSES
from runtime.plugins import PLUGIN, plugin_callable

Outputs = Mapping[str, Tensor]
Loss = Callable[[Outputs, Outputs, Outputs, Tensor | None], Tensor]
"""(outputs, outputs of the original, inputs, labels) -> a number to make small."""


_SOFT = {"Softmax": "probabilities", "LogSoftmax": "logs"}
_PASSING = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Flatten", "Transpose")
_ZIPPED = "ai.onnx.ml::ZipMap"
_LEAST = 1e-12


@dataclass(frozen=True)
class Output:
    """A floating-point output, or a tensor that one is put together of.

    Attributes:
        name: of the tensor.
        form: ``logits``, ``probabilities`` or ``logs``, where it holds classes; else ``values``.
        weight: in the mean over outputs.
    """

    name: str
    form: str
    weight: float = 1.0


def float_outputs(graph: Graph) -> list[Output]:
    """The floating-point outputs, and what they hold.

    What a Softmax gave holds probabilities, and so does what a Sigmoid has part in where it is handed out as a
    dictionary for each sample. Others are taken for logits only where they have two axes: detectors, encoders and the
    like return values.
    """
    found = []
    for name in numeric_outputs(graph):
        held, maker = name, graph.producer.get(name)
        if maker is not None and maker.op == _ZIPPED:
            held = maker.inputs[0]
        node, shape = _source(graph, held), graph.shape(held) or ()
        form = _SOFT.get(node.op, "") if node is not None else ""
        if held != name and node is not None and node.op == "Concat" and "Sigmoid" in _ops_before(graph, node):
            form = "probabilities"
        found.append(Output(name, form or ("logits" if len(shape) == 2 and shape[1] > 1 else "values")))
    return found


def _source(graph: Graph, name: str) -> Node | None:
    """The node that computes a tensor, through what only moves it."""
    node = graph.producer.get(name)
    while node is not None and node.op in _PASSING:
        node = graph.producer.get(node.inputs[0])
    return node


def _ops_before(graph: Graph, node: Node) -> set[str]:
    return {before.op for name in node.inputs if (before := _source(graph, name)) is not None}


def judged(graph: Graph, kind: str = "auto", output: str | None = None, teacher: Graph | None = None) -> list[Output]:
    """What agreement with the original is judged by.

    Where an output of values puts tensors together (a detector's boxes and scores), each of these counts, relative to
    its own variance; see ``exporter.calibration.outputs``.

    Args:
        graph: whose outputs they are.
        kind: ``auto``, ``kl`` or ``mse``: of the last two, all outputs hold logits, or values.
        output: the output to judge; by default all.
        teacher: the original, where it is another graph.
    """
    found = []
    for o in float_outputs(graph):
        if output not in (None, o.name):
            continue
        form = {"kl": "logits" if o.form == "values" else o.form, "mse": "values"}.get(kind, o.form)
        parts = parts_of(graph, o.name) if form == "values" else [o.name]
        if teacher is not None and not _same_parts(parts, o.name, graph, teacher):
            parts = [o.name]
        found += [Output(n, form, 1 / len(parts)) for n in parts]
    return found


def _same_parts(parts: Sequence[str], output: str, graph: Graph, teacher: Graph) -> bool:
    return parts_of(teacher, output) == parts and all(teacher.shape(n) == graph.shape(n) for n in parts)


def asked(graph: Graph) -> tuple[str, ...]:
    """Names of the graph's outputs, and of what else they are judged by."""
    return tuple(dict.fromkeys([*torch_outputs(graph), *(o.name for o in judged(graph))]))


def log_probabilities(values: Tensor, form: str, axis: int, temperature: float = 1.0) -> Tensor:
    """Logarithms of the classes' probabilities at a temperature."""
    if form == "probabilities":
        values = values.clamp(min=_LEAST).log()
    return F.log_softmax(values / temperature, axis)


def class_axis(values: Tensor, labels: Tensor) -> int:
    """The axis of ``values`` that ``labels`` lacks.

    Raises:
        UsageError: there is none.
    """
    shape, wanted = list(values.shape), list(labels.shape)
    for axis in (1, values.ndim - 1):
        if values.ndim > axis and shape[:axis] + shape[axis + 1 :] == wanted:
            return axis
    raise UsageError(
        f"labels of shape {wanted} do not fit an output of shape {shape}: they should be one whole number for each "
        "position without its classes. Choose the output with --output, or give a loss of your own with "
        "--loss plugin:package.module:callable."
    )


def cross_entropy(values: Tensor, form: str, labels: Tensor) -> Tensor:
    """Mean of minus the logarithm of the right class's probability; labels below zero count for nothing."""
    if labels.is_floating_point() and labels.shape == values.shape:
        return F.mse_loss(values, labels.to(values.dtype))
    if labels.ndim == values.ndim and labels.shape[-1] == 1:
        labels = labels.squeeze(-1)
    if values.ndim == 2 and values.shape[1] == 1 and labels.shape == values.shape[:1]:
        return F.binary_cross_entropy_with_logits(values[:, 0], labels.to(values.dtype))
    axis = class_axis(values, labels)
    logs = log_probabilities(values, form, axis)
    whole = labels.long()
    safe = whole.clamp(0, values.shape[axis] - 1)
    picked = -logs.gather(axis, safe.unsqueeze(axis)).squeeze(axis)
    counted = (whole >= 0).to(picked.dtype)
    return (picked * counted).sum() / counted.sum().clamp(min=1)


def divergence(values: Tensor, wanted: Tensor, form: str, temperature: float = 1.0, axis: int = -1) -> Tensor:
    """KL(wanted || values) of classes, times the temperature's square (Hinton et al., 2015), mean over positions."""
    own = log_probabilities(values.float(), form, axis, temperature)
    other = log_probabilities(wanted.float(), form, axis, temperature)
    return (other.exp() * (other - own)).sum(axis).mean() * temperature**2


def relative_error(values: Tensor, wanted: Tensor) -> Tensor:
    """Mean square error relative to the variance of what is wanted; the square error itself of a single number."""
    good = torch.isfinite(wanted)
    wanted = torch.where(good, wanted, torch.zeros_like(wanted)).float()
    values = torch.where(good, values, torch.zeros_like(values)).float()
    error = F.mse_loss(values, wanted)
    return error / wanted.var().clamp(min=_LEAST) if wanted.numel() > 1 else error


def agreement(outputs: Sequence[Output], temperature: float = 1.0) -> Loss:
    """The mean over outputs: KL where they hold classes, relative error elsewhere."""

    def loss(got: Outputs, want: Outputs, _: Outputs, __: Tensor | None) -> Tensor:
        parts = [
            relative_error(got[o.name], want[o.name])
            if o.form == "values"
            else divergence(got[o.name], want[o.name], o.form, temperature)
            for o in outputs
        ]
        weights = torch.tensor([o.weight for o in outputs], device=parts[0].device)
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

        def from_labels(got: Outputs, _: Outputs, __: Outputs, labels: Tensor | None) -> Tensor:
            assert labels is not None
            return cross_entropy(got[first.name], first.form, labels)

        return from_labels
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
        return cross_entropy(got[output.name][:, :-1], output.form, inputs[ids][:, 1:])

    return loss


def probe(
    graph: Graph, output: str | None = None
) -> Callable[[Outputs, Outputs, Tensor | None, torch.Generator], Tensor]:
    """A loss whose gradient at the original is not zero, which that of agreement is, for scores. It reads ``asked``.

    With labels it is their cross-entropy. Without, classes are drawn from the model's own distribution, so that squares
    of gradients are the Fisher information (Theis et al., 2018), and values are multiplied by random signs, so that
    they are the diagonal of the Gauss-Newton matrix (Hutchinson).
    """
    outputs = [o for o in float_outputs(graph) if output in (None, o.name)]
    if not outputs:
        raise UsageError("the model has no floating-point output, so there is nothing to differentiate.")
    tensors = judged(graph, output=output)

    def loss(got: Outputs, _: Outputs, labels: Tensor | None, draw: torch.Generator) -> Tensor:
        if labels is not None:
            return cross_entropy(got[outputs[0].name], outputs[0].form, labels)
        parts = []
        for o in tensors:
            values = got[o.name].float()
            if o.form == "values":
                signs = torch.randint(0, 2, values.shape, generator=draw).to(values.device) * 2.0 - 1.0
                scale = values.detach().var().clamp(min=_LEAST).sqrt() * values[0].numel() ** 0.5
                parts.append((values * signs).sum() / scale / len(values) * o.weight**0.5)
                continue
            logs = log_probabilities(values, o.form, -1)
            flat = logs.detach().exp().reshape(-1, logs.shape[-1]).cpu()
            drawn = torch.multinomial(flat, 1, generator=draw).to(values.device)
            parts.append(-logs.reshape(-1, logs.shape[-1]).gather(1, drawn).mean())
        return torch.stack(parts).sum()

    return loss
