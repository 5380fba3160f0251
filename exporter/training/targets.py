"""What a student is compared with: labels, the original's outputs, and inner tensors of the original by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import torch
from torch import Tensor

from exporter.autograd import OnnxModule, to_torch, torch_outputs
from exporter.autograd.dtypes import to_array, to_tensor
from exporter.calibration.cache import content
from exporter.errors import UsageError
from exporter.finer import in_types_of
from exporter.graph import Graph, Node
from exporter.normalise import serialize_with_data
from exporter.plan import Plan
from exporter.protos import add_outputs
from exporter.training.choosing import choosers, choosing
from exporter.training.losses import Loss, make_loss, relative_error
from exporter.training.options import AGREEMENT, check_target
from exporter.training.outputs import Output, Outputs, judged
from exporter.widened import is_narrow, widen
from runtime.backends import open_session

Teacher = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

_FLOATS = (1, 10, 11, 16)


@dataclass(frozen=True)
class Match:
    """An inner tensor of both graphs.

    Attributes:
        name: of the tensor.
        keep: by axis, which of the original's slots the student still has.
    """

    name: str
    keep: Mapping[int, Tensor]

    def of(self, original: Tensor) -> Tensor:
        """The part of the original's tensor that the student has."""
        for axis, indices in self.keep.items():
            original = original.index_select(axis, indices.to(original.device))
        return original


def matches_of(graph: Graph, teacher: Graph, patterns: Sequence[str], plan: Plan | None) -> list[Match]:
    """Find inner tensors that both graphs have.

    Args:
        graph: the student.
        teacher: the original.
        patterns: globs of tensor names.
        plan: which slots the student kept; without, only tensors of equal shape can be compared.

    Raises:
        UsageError: a pattern matches no tensor that can be compared.
    """
    hide = plan.hide if plan is not None else {}
    found: list[Match] = []
    for pattern in patterns:
        names = [n.key for n in graph.nodes if n.depth == 0 and fnmatch.fnmatchcase(n.key, pattern)]
        fitting = []
        for name in names:
            keep = {k: torch.tensor(t.keep) for k, t in hide.get(name, {}).items()}
            shape = list(teacher.shape(name) or ())
            for axis, indices in keep.items():
                shape[axis] = len(indices)
            if graph.inferred.dtype.get(name) in _FLOATS and shape and tuple(shape) == graph.shape(name):
                fitting.append(Match(name, keep))
        if not fitting:
            why = "the shapes differ: give the plan with --plan" if names else "no tensor has such a name"
            raise UsageError(f"--match {pattern}: {why}. 'secateur inspect' and the plan list names.")
        found += [m for m in fitting if m.name not in {f.name for f in found}]
    return found


def teacher_of(graph: Graph, names: Sequence[str], device: torch.device) -> Teacher:
    """A function that runs a graph without gradients and returns the tensors named.

    On the CPU that is ONNX Runtime, which is two to three times as fast there as torch; elsewhere a torch module. What
    is in bfloat16, of which ONNX Runtime has no products there, answers in 32 bits.
    """
    if device.type != "cpu":
        module = to_torch(graph, train=lambda _: False).to(device)

        def in_torch(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with torch.no_grad():
                return module.run(inputs, names)

        return in_torch
    probe = onnx.load_model_from_string(serialize_with_data(graph.model, graph.folder))
    if is_narrow(graph):
        widen(probe)
    add_outputs(probe, names)
    session = open_session(probe.SerializeToString())

    def in_runtime(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feed = in_types_of(session.inputs, {name: to_array(value) for name, value in inputs.items()})
        found = session.run(feed, list(names))
        return {name: to_tensor(value) for name, value in found.items()}

    return in_runtime


@dataclass(frozen=True)
class Target:
    """What is made small.

    Attributes:
        names: tensors the student is asked for.
        loss: of labels, or of the user's own; None for distillation alone.
        distil: agreement with the original's outputs.
        teacher: the original.
        share: of the distillation in the sum, where there are both.
        matches: inner tensors, the mean of whose errors is added.
        chosen: tensors that say what nodes choose, which the student is given as the original has them, and the nodes.
        about: what all this is, for checkpoints.
    """

    names: tuple[str, ...]
    loss: Loss | None
    distil: Loss | None
    teacher: Teacher | None
    share: float
    matches: tuple[Match, ...]
    chosen: Mapping[str, Node] = field(default_factory=dict)
    about: str = ""

    def __call__(
        self, module: OnnxModule, inputs: Mapping[str, Tensor], labels: Tensor | None
    ) -> tuple[Tensor, Outputs]:
        """The loss of a batch, and the student's tensors."""
        want = self.teacher(inputs) if self.teacher is not None else {}
        with choosing(module, {node: want[name] for name, node in self.chosen.items()}):
            got = module.run(inputs, self.names)
        parts = []
        if self.loss is not None:
            parts.append((1 - self.share if self.distil else 1.0) * self.loss(got, want, inputs, labels))
        if self.distil is not None:
            parts.append((self.share if self.loss else 1.0) * self.distil(got, want, inputs, labels))
        if self.matches:
            errors = [relative_error(got[m.name], m.of(want[m.name])) for m in self.matches]
            parts.append(torch.stack(errors).mean())
        return torch.stack([p.float() for p in parts]).sum(), got


def make_target(
    graph: Graph,
    *,
    labelled: bool,
    teacher: Graph | None,
    device: torch.device,
    loss: str = "auto",
    output: str | None = None,
    share: float = 0.5,
    temperature: float = 1.0,
    match: Sequence[str] = (),
    plan: Plan | None = None,
) -> Target:
    """Put a target together.

    Args:
        graph: the student.
        labelled: whether the data have labels.
        teacher: the original, to distil from.
        device: where the student is.
        loss: see ``make_loss``; ``auto`` leaves it to the labels, or to the original alone where there are none.
        output: the output to judge.
        share: of the distillation, where there are labels too.
        temperature: of KL.
        match: globs of inner tensors to compare.
        plan: that made the student of the original.

    Raises:
        UsageError: there is nothing to learn from, an output differs, or a pattern matches nothing.
    """
    check_target(loss, labelled, teacher is not None, share, temperature, bool(match))
    from_labels = loss not in ("auto", *AGREEMENT) or (loss == "auto" and labelled)
    own = make_loss(graph, loss, labelled, output, temperature) if from_labels else None
    distil, told = None, list[Output]()
    if teacher is not None:
        more = [n for n in teacher.inputs if n not in graph.inputs]
        if more:
            raise UsageError(
                f"the teacher takes an input '{more[0]}', which the model has no more; fix it in the teacher too, with "
                f"secateur convert TEACHER -o FIXED.onnx --fix '{more[0]}=VALUE'."
            )
        lost = [n for n in graph.outputs if n not in teacher.outputs]
        if lost:
            raise UsageError(f"the teacher has no output '{lost[0]}'; it has {', '.join(teacher.outputs)}.")
        kind = loss if loss in AGREEMENT else "auto"
        distil = make_loss(graph, kind, False, output, temperature, teacher)
        told = judged(graph, kind, output, teacher)
    found = matches_of(graph, teacher, match, plan) if teacher is not None else []
    names = tuple(dict.fromkeys([*torch_outputs(graph), *(o.name for o in told), *(m.name for m in found)]))
    chosen = choosers(teacher, graph, own is not None) if teacher is not None else {}
    run = teacher_of(teacher, [*dict.fromkeys((*names, *chosen))], device) if teacher is not None else None
    source = content(teacher) if teacher is not None else ""
    about = f"{loss} {labelled} {output} {share} {temperature} {source} {[m.name for m in found]} {[*chosen]}"
    return Target(names, own, distil, run, share, tuple(found), chosen, about)
