"""Scores of single weights from gradients: what the loss says of each element of a constant.

gradient    |w dL/dw|, mean over batches (SNIP: Lee et al., ICLR 2019, at the trained weights)
taylor      (w dL/dw)^2, mean over batches: the square of the first-order change when the element goes (Molchanov et
            al., "Importance estimation for neural network pruning", CVPR 2019)
fisher      w^2 (dL/dw)^2, mean over single samples: the second-order change, with the diagonal of the Fisher
            information for the Hessian (LeCun et al., "Optimal brain damage", 1989)
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.autograd import to_torch
from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.importance import refuse_mute
from exporter.training.devices import default_device, placed
from exporter.training.losses import probe
from exporter.training.outputs import asked
from exporter.training.scores import FISHER_SAMPLES, Step, batches, rows_in
from runtime.samples import Samples
from runtime.steps import Count

_FLOATS = ("float16", "float32", "float64", "bfloat16")


def weight_scores(
    graph: Graph, names: Collection[str], samples: Samples, batch: int, by: str, step: Step, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Score every element of some constants.

    Args:
        graph: the graph.
        names: of the constants.
        samples: inputs, with labels or without; see ``losses.probe`` for what is differentiated then.
        batch: samples in one run.
        by: ``gradient``, ``taylor`` or ``fisher``.
        step: called with a line now and then.
        seed: of drawn classes and signs.

    Returns:
        For each constant its scores in one row, as it is stored; they mean the same in every constant, and are zero
        where an element is.

    Raises:
        Unsupported: an operator is not implemented in torch.
        UsageError: a constant holds no floating-point numbers, or no gradient reaches it.
        ModelError: the scores say nothing: they are zero, or no numbers.
    """
    chosen = {n for n in names if graph.array(n).dtype.name in _FLOATS}
    _refuse(set(names) - chosen, by)
    module = placed(to_torch(graph, train=chosen.__contains__), default_device())
    loss, read = probe(graph, labels=samples.labels), asked(graph)
    draw = torch.Generator().manual_seed(seed)
    samples = samples.first(FISHER_SAMPLES) if by == "fisher" else samples
    found: dict[str, torch.Tensor] = {}
    done, seen = 0, 0
    for inputs, labels in batches(samples, 1 if by == "fisher" else batch, module.device):
        for parameter in module.weights.values():
            parameter.grad = None
        lost = loss(module.run(inputs, read), {}, labels, draw)
        if lost.requires_grad:
            lost.backward()  # type: ignore[no-untyped-call]
        for name, parameter in module.weights.items():
            if parameter.grad is not None:
                change = (parameter.detach() * parameter.grad).double()
                change = change.abs() if by == "gradient" else change.square()
                found[name] = found[name] + change if name in found else change
        done += 1
        seen += rows_in(samples, inputs)
        step(Count("gradients of samples", seen, len(samples)))
    _refuse(chosen - found.keys(), by)
    means = {n: (s / max(done, 1)).reshape(-1).cpu().numpy() for n, s in found.items()}
    refuse_mute(means.values(), f"--method {by}")
    return {n: s.astype(np.float32) for n, s in means.items()}


def _refuse(missing: Collection[str], by: str) -> None:
    if missing:
        raise UsageError(
            f"--method {by}: no gradient reaches '{min(missing)}'; leave it out with --keep, or choose another method."
        )
