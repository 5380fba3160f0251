"""GraSP: what units do for the flow of gradients, for networks that are not trained yet.

The flow is the square of the loss's gradient by all weights, G = |g|^2. Taking a weight w away changes it by -2 w (H g)
to first order, H being the Hessian; those whose removal lowers it most are kept (Wang et al., "Picking winning tickets
before training by preserving gradient flow", ICLR 2020). A unit has the sum of w (H g) over the weights it owns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from exporter.autograd import to_torch
from exporter.errors import UsageError
from exporter.groups import Groups
from exporter.importance import Comparable, Scores
from exporter.score_names import FLOW
from exporter.training.devices import default_device, placed
from exporter.training.losses import probe
from exporter.training.outputs import asked
from exporter.training.scores import Step, batches, owned, rows_in, sum_over
from runtime.nouns import counted
from runtime.samples import Samples


def flow_scores(groups: Groups, samples: Samples, batch: int, step: Step, seed: int = 0) -> Scores:
    """Score every unit by the flow of gradients.

    Two passes over the samples: the gradient g of their mean loss, and its product with the Hessian, which is the
    gradient of (g' dL/dw) where g is held.

    Args:
        groups: the analysis.
        samples: inputs, with labels or without; see ``losses.probe`` for what is differentiated then.
        batch: samples in one run.
        step: called with a line now and then.
        seed: of drawn classes and signs.

    Returns:
        For each group name an array of shape (width,), of either sign; higher means keep. They mean the same in every
        group.

    Raises:
        Unsupported: an operator is not implemented in torch.
        UsageError: an operator has no second derivative in torch.
    """
    module = placed(to_torch(groups.graph), default_device())
    loss, names = probe(groups.graph, labels=samples.labels), asked(groups.graph)
    weights = list(module.weights.values())

    def mean(of: str, held: list[Tensor]) -> list[Tensor]:
        """The gradient of the loss, or that of its product with what is held, mean over all samples."""
        draw = torch.Generator().manual_seed(seed)  # both passes draw the same
        found, seen = [torch.zeros_like(w) for w in weights], 0
        for number, (inputs, labels) in enumerate(batches(samples, batch, module.device), 1):
            size = rows_in(samples, inputs)
            lost = loss(module.run(inputs, names), {}, labels, draw)
            first = _gradients(lost, weights, bool(held))
            if held:
                first = _gradients(
                    torch.stack([(g * h).sum() for g, h in zip(first, held, strict=True)]).sum(), weights
                )
            found = [f + size * g.detach() for f, g in zip(found, first, strict=True)]
            seen += size
            if number % 16 == 0:
                step(f"{of} of {counted(number, 'batch')}")
        return [f / max(seen, 1) for f in found]

    gradient = mean("gradients", [])
    curved = mean("second derivatives", gradient)
    scores = {g.name: np.zeros(g.width) for g in groups}
    spans = owned(groups, module)
    for (name, weight), product in zip(module.weights.items(), curved, strict=True):
        sum_over(scores, spans.get(name, ()), (weight.detach() * product).double())
    return Comparable(scores)


def _gradients(of: Tensor, weights: Sequence[Tensor], again: bool = False) -> list[Tensor]:
    """Derivatives by the weights, which can be differentiated ``again``; zero where there is none."""
    if not of.requires_grad:
        return [torch.zeros_like(w) for w in weights]
    try:
        found = torch.autograd.grad(of, weights, create_graph=again, allow_unused=True)
    except RuntimeError as error:
        raise UsageError(
            f"--score {FLOW} needs second derivatives, and torch fails to give them: {str(error).splitlines()[0]}. "
            "Choose another score, such as gradient."
        ) from error
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
