"""What outputs hold: classes and along which axis, chances, or values; and what agreement is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from exporter.autograd import torch_outputs
from exporter.calibration.outputs import float_outputs as numeric_outputs
from exporter.calibration.outputs import parts_of
from exporter.errors import UsageError
from exporter.graph import Graph, Node
from runtime.metrics import class_axis

Outputs = Mapping[str, Tensor]

PROBABILITIES, LOGS, CHANCES = "probabilities", "logs", "chances"
_FORMS = {"Softmax": PROBABILITIES, "LogSoftmax": LOGS, "Sigmoid": CHANCES}
_PASSING = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Flatten", "Transpose")
_ZIPPED = "ai.onnx.ml::ZipMap"
_ONE_AXIS_OPSET = 13
LEAST = 1e-12


@dataclass(frozen=True)
class Output:
    """A floating-point output, or a tensor that one is put together of.

    Attributes:
        name: of the tensor.
        form: ``logits``, ``probabilities`` or ``logs``, where it holds classes; ``chances``, where each number is a
            probability by itself; else ``values``.
        weight: in the mean over outputs.
        axis: of the classes, where a node says so.
    """

    name: str
    form: str
    weight: float = 1.0
    axis: int | None = None

    def classes(self, shape: Sequence[int]) -> int | None:
        """The axis of classes in a tensor of this output, at least two of them; None where it has none."""
        axis = self.axis
        if axis is None or not -len(shape) <= axis < len(shape):
            return class_axis(shape, shape[0] if shape else 1)
        return axis % len(shape) if shape[axis] > 1 else None


def float_outputs(graph: Graph) -> list[Output]:
    """The floating-point outputs, and what they hold.

    What a Softmax gave holds probabilities, and so does what a Sigmoid has part in where it is handed out as a
    dictionary for each sample; what a Sigmoid gave alone holds chances. Others are taken for logits only where they
    have two axes: detectors, encoders and the like return values.
    """
    found = []
    for name in numeric_outputs(graph):
        held, maker = name, graph.producer.get(name)
        if maker is not None and maker.op == _ZIPPED:
            held = maker.inputs[0]
        (node, moves), shape = _source(graph, held), graph.shape(held) or ()
        form = _FORMS.get(node.op, "") if node is not None else ""
        if held != name and node is not None and node.op == "Concat" and "Sigmoid" in _ops_before(graph, node):
            form = PROBABILITIES
        axis = _axis(graph, node, moves) if node is not None and node.op in ("Softmax", "LogSoftmax") else None
        form = form or ("logits" if len(shape) == 2 and shape[1] > 1 else "values")
        found.append(Output(name, form, axis=axis))
    return found


def _source(graph: Graph, name: str) -> tuple[Node | None, list[Node]]:
    """The node that computes a tensor, and those that only move it, the last one first."""
    node, moves = graph.producer.get(name), []
    while node is not None and node.op in _PASSING:
        moves.append(node)
        node = graph.producer.get(node.inputs[0])
    return node, moves


def _ops_before(graph: Graph, node: Node) -> set[str]:
    return {before.op for name in node.inputs if (before := _source(graph, name)[0]) is not None}


def _axis(graph: Graph, node: Node, moves: Sequence[Node]) -> int | None:
    """The axis of a Softmax in what it gives, moved; None where that is not clear."""
    shape = graph.shape(node.outputs[0])
    if shape is None:
        return None
    one = node.opset >= _ONE_AXIS_OPSET
    axis: int | None = node.attributes.get("axis", -1 if one else 1) % max(len(shape), 1)
    if not one:  # all axes from there on are one
        several = [k for k in range(axis or 0, len(shape)) if shape[k] > 1]
        axis = several[0] if len(several) == 1 else None
    for move in reversed(moves):
        axis = None if axis is None else _moved(graph, move, axis)
    return axis


def _moved(graph: Graph, node: Node, axis: int) -> int | None:
    """Where an axis lies after a node of ``_PASSING``."""
    old, new = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if old is None or new is None:
        return None
    if node.op == "Transpose":
        return list(node.attributes.get("perm", range(len(old))[::-1])).index(axis)
    before, after = ([(k, n) for k, n in enumerate(shape) if n > 1] for shape in (old, new))
    place = next((i for i, (k, _) in enumerate(before) if k == axis), None)
    if place is None:
        return None
    for cut in (slice(None, place + 1), slice(place - len(before), None)):  # elements stay in their order
        if [n for _, n in before[cut]] == [n for _, n in after[cut]]:
            return after[cut][place if cut.start is None else 0][0]
    return None


def judged(graph: Graph, kind: str = "auto", output: str | None = None, teacher: Graph | None = None) -> list[Output]:
    """What agreement with the original is judged by.

    Where an output of values puts tensors together (a detector's boxes and scores), each of these counts, relative to
    its own variance; see ``exporter.calibration.outputs``. Chances are judged as values unless ``kl`` is asked for.

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
        form = o.form
        if kind == "mse" or (form == CHANCES and kind != "kl"):
            form = "values"
        elif kind == "kl" and form == "values":
            form = "logits"
        parts = parts_of(graph, o.name) if form == "values" else [o.name]
        if teacher is not None and not _same_parts(parts, o.name, graph, teacher):
            parts = [o.name]
        found += [Output(n, form, 1 / len(parts), o.axis) for n in parts]
    return found


def _same_parts(parts: Sequence[str], output: str, graph: Graph, teacher: Graph) -> bool:
    return parts_of(teacher, output) == parts and all(teacher.shape(n) == graph.shape(n) for n in parts)


def asked(graph: Graph) -> tuple[str, ...]:
    """Names of the graph's outputs, and of what else they are judged by."""
    return tuple(dict.fromkeys([*torch_outputs(graph), *(o.name for o in judged(graph))]))


def log_probabilities(values: Tensor, form: str, axis: int, temperature: float = 1.0) -> Tensor:
    """Logarithms of the classes' probabilities at a temperature."""
    if form in (PROBABILITIES, CHANCES):
        values = values.clamp(min=LEAST).log()
    return F.log_softmax(values / temperature, axis)


def classes_of(output: Output, values: Tensor) -> tuple[Tensor, str, int]:
    """Values as ``log_probabilities`` takes them: with their form and the axis of classes; a chance is one of two.

    Raises:
        UsageError: there is no axis of two classes or more.
    """
    if output.form == CHANCES:
        return torch.stack([1 - values, values], -1), PROBABILITIES, values.ndim
    axis = output.classes(values.shape)
    if axis is None:
        raise UsageError(
            f"the output '{output.name}' of shape {list(values.shape)} has no axis of two classes or more, so its "
            "probabilities say nothing. Judge by another output (--loss-output), or by --loss mse."
        )
    return values, output.form, axis
