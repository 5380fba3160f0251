"""Scores from gradients: what the loss says of each unit.

    gradient    sum of |w dL/dw| over the parameters a unit owns (SNIP, at the trained weights)
    taylor      |dL/dz| by the unit's gate z: the first-order change of the loss when the unit goes
    fisher      (dL/dz)^2 of single samples: the second-order change, with the Fisher information for the Hessian

A group that cannot be gated is scored by its weights, with the same powers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporter.autograd import OnnxModule, to_torch
from exporter.autograd.dtypes import to_tensor
from exporter.groups import Groups
from exporter.importance import Comparable, Scores
from exporter.spans import Span
from exporter.training.devices import default_device, placed
from exporter.training.gates import Gates
from exporter.training.losses import probe
from exporter.training.outputs import asked
from runtime.samples import Samples
from runtime.steps import Count

Step = Callable[[str], None]

FISHER_SAMPLES = 256


def batches(samples: Samples, size: int, device: torch.device) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
    """Inputs and labels as tensors on a device, at most ``size`` samples at a time."""
    for feeds, labels in samples.labelled(size):
        given = {name: to_tensor(value).to(device) for name, value in feeds.items()}
        yield given, None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)).to(device)


def steps_of(
    samples: Samples, size: int, device: torch.device
) -> Iterator[list[tuple[dict[str, Tensor], Tensor | None]]]:
    """The runs of one step after another: about ``size`` samples, in several runs where the file fixes how many go into
    one."""
    runs = batches(samples, size, device)
    while group := list(islice(runs, runs_in(samples, size))):
        yield group


def rows_in(samples: Samples, inputs: Mapping[str, Tensor]) -> int:
    """How many samples these inputs of a run hold."""
    return 1 if samples.store.single else len(next(iter(inputs.values())))


def runs_in(samples: Samples, size: int) -> int:
    """How many runs ``steps_of`` puts into a step."""
    one = 1 if samples.store.single else samples.store.fixed or size
    return max(size // one, 1)


def gradient_scores(groups: Groups, samples: Samples, batch: int, by: str, step: Step, seed: int = 0) -> Scores:
    """Score every unit with gradients.

    Args:
        groups: the analysis.
        samples: inputs, with labels or without; see ``losses.probe`` for what is differentiated then.
        batch: samples in one run.
        by: ``gradient``, ``taylor`` (Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019)
            or ``fisher`` (Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018).
        step: called with a line now and then.
        seed: of drawn classes and signs.

    Returns:
        For each group name an array of shape (width,); higher means keep. They are changes of the loss, and so mean the
        same in every group.

    Raises:
        Unsupported: an operator is not implemented in torch.
    """
    module = placed(to_torch(groups.graph), default_device())
    gates = Gates(groups, module)
    loss, names = probe(groups.graph, labels=samples.labels), asked(groups.graph)
    draw = torch.Generator().manual_seed(seed)
    power = 2 if by == "fisher" else 1
    samples = samples.first(FISHER_SAMPLES) if by == "fisher" else samples
    mine = owned(groups, module) if by == "gradient" or len(gates.gated) < len(groups) else {}
    worth = torch.zeros(gates.count, dtype=torch.float64)
    weights = {g.name: np.zeros(g.width) for g in groups}
    done, seen = 0, 0
    for inputs, labels in batches(samples, 1 if by == "fisher" else batch, module.device):
        gates.values = torch.ones(gates.count, device=module.device, requires_grad=True)
        for parameter in module.weights.values():
            parameter.grad = None
        lost = loss(module.run(inputs, names), {}, labels, draw)
        if lost.requires_grad:
            lost.backward()  # type: ignore[no-untyped-call]
        if gates.values.grad is not None:
            worth += gates.values.grad.double().cpu().abs() ** power
        _add_weights(weights, mine, module, power)
        done += 1
        seen += rows_in(samples, inputs)
        step(Count("gradients of samples", seen, len(samples)))
    found = Comparable(gates.of_groups(worth / max(done, 1)))
    for n, group in enumerate(groups):
        if by == "gradient" or n not in gates.gated:
            found[group.name] = weights[group.name] / max(done, 1)
    return found


def owned(groups: Groups, module: OnnxModule) -> dict[str, list[tuple[str, Span]]]:
    """By weight, the spans of units along it, the readers' side left out where something produces them."""
    found: dict[str, list[tuple[str, Span]]] = {}
    for group in groups:
        spans = [s for s in group.parameters if s.tensor in module.weights]
        produced = [s for s in spans if not s.contracted] or spans
        seen = set()
        for span in produced:
            if (span.tensor, span.axis) not in seen:
                seen.add((span.tensor, span.axis))
                found.setdefault(span.tensor, []).append((group.name, span))
    return found


def _add_weights(
    to: dict[str, NDArray[np.float64]], owned: dict[str, list[tuple[str, Span]]], module: OnnxModule, power: int
) -> None:
    """Add |w dL/dw|, or for squares (sum of w dL/dw)^2, of each unit."""
    weights = module.weights
    for tensor, spans in owned.items():
        weight = weights[tensor]
        if weight.grad is None:
            continue
        change = (weight.detach() * weight.grad).double()
        sum_over(to, spans, change if power == 2 else change.abs(), power)


def sum_over(
    to: dict[str, NDArray[np.float64]], spans: Sequence[tuple[str, Span]], values: Tensor, power: int = 1
) -> None:
    """Add what the elements of a weight sum to for each unit, to a power, to the numbers of its group."""
    for name, span in spans:
        others = [k for k in range(values.ndim) if k != span.axis]
        summed = values.sum(others) if others else values
        along = (summed**power).cpu().numpy()
        here = span.units >= 0
        np.add.at(to[name], span.units[here], along[here])
