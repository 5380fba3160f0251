"""Learned masks: gates trained to agree with the original, or to fit labels, while their cost is pushed to a budget.

l1-mask     gates in [0, 1], with their cost as penalty (Liu et al., "Network slimming", ICCV 2017)
l0-mask     hard-concrete gates (Louizos et al., "Learning sparse neural networks through L0 regularization", ICLR 2018)
topk-mask   the best units of a ranking that is learned with straight-through gradients
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exporter.autograd import to_torch
from exporter.cost import CostModel
from exporter.errors import ModelError
from exporter.groups import Groups
from exporter.importance import Comparable, Scores
from exporter.training.budget import Share, share_of
from exporter.training.choosing import choosers, choosing
from exporter.training.devices import default_device, placed
from exporter.training.gates import Gates
from exporter.training.labels import knowing
from exporter.training.losses import make_loss
from exporter.training.outputs import asked
from exporter.training.scores import Step, steps_of
from runtime.samples import Samples
from runtime.steps import Count

_STEPS = 300
_BATCH = 32
_RATE = 0.05
_PRESSURE = 1.0
"""How fast the weight of the budget grows while it is missed."""

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1
"""Of the hard-concrete distribution, as in its paper."""


@dataclass(frozen=True)
class MaskOptions:
    """How masks are learned.

    Attributes:
        kind: of the budget, ``macs``, ``params``, ``ratio`` or ``latency``.
        budget: the share to be left.
        steps: of the optimizer; 300 by default.
        seed: of the order of the samples and of what is drawn.
    """

    kind: str
    budget: float
    steps: int | None = None
    seed: int = 0


def mask_scores(
    groups: Groups,
    numbers: Sequence[int],
    samples: Samples,
    by: str,
    options: MaskOptions,
    step: Step,
    cost: CostModel | None = None,
) -> Scores:
    """Learn gates and take them for scores.

    The weights stay as they are. The loss is the labels' cross-entropy where there are labels, else disagreement with
    the original. The budget tightens from the whole to what is asked for over the first half; its weight grows as long
    as it is missed (dual ascent).

    Args:
        groups: the analysis.
        numbers: of the groups that may be cut; the gates of others stay 1.
        samples: inputs, with labels or without.
        by: ``l1-mask``, ``l0-mask`` or ``topk-mask``.
        options: budget and length.
        step: called with a line now and then.
        cost: what the budget is a share of; a ``LatencyCost`` for one of ``latency``. By default made of ``groups``.

    Returns:
        For each group name an array of shape (width,): how open the gate is. They mean the same in every group.

    Raises:
        ModelError: no group can be gated, or the loss is no number.
        Unsupported: an operator is not implemented in torch.
    """
    module = placed(to_torch(groups.graph, train=lambda _: False), default_device())
    gates = Gates(groups, module)
    free = torch.zeros(gates.count, dtype=torch.bool)
    offsets = np.cumsum([0, *(g.width for g in groups)])
    for n in sorted(set(numbers) & set(gates.gated)):
        free[offsets[n] : offsets[n + 1]] = True
    if not free.any():
        raise ModelError("no group that may be cut can be gated; choose another --score.")
    labelled = samples.answers is not None
    loss = knowing(make_loss(groups.graph, "auto", labelled), samples.labels)
    share = share_of(cost or CostModel(groups), options.kind)
    torch.manual_seed(options.seed)
    learner = _LEARNERS[by](free, share, module.device)
    optimizer = torch.optim.Adam([learner.parameter], lr=_RATE)
    names, weight, taken = asked(groups.graph), 0.0, 0
    chosen = choosers(groups.graph, groups.graph, labelled)
    length = options.steps or _STEPS
    while taken < length:
        for runs in steps_of(samples.shuffled(options.seed + taken), _BATCH, module.device):
            if taken == length:
                break
            part = min(2 * taken / length, 1.0)
            target = 1 - part * (1 - options.budget)
            with torch.no_grad():
                gates.values = torch.ones(gates.count, device=module.device)
                wants = [module.run(inputs, [*names, *chosen]) for inputs, _ in runs]
            gates.values, stay = learner.drawn(target)
            missed = share(stay) - target
            each = []
            for (inputs, labels), want in zip(runs, wants, strict=True):
                with choosing(module, {node: want[name] for name, node in chosen.items()}):
                    each.append(loss(module.run(inputs, names), want, inputs, labels))
            lost = torch.stack(each).mean()
            total = lost + (weight * missed.clamp(min=0).to(lost.dtype).to(lost.device) if learner.priced else 0.0)
            if not torch.isfinite(total):
                raise ModelError("the loss of the masks is not a number; choose another --score, or check the data.")
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            learner.clip()
            weight = max(weight + _PRESSURE * float(missed.detach()), 0.0)
            taken += 1
            if taken % 25 == 0:
                spent = float(missed.detach()) + target
                step(Count("learning masks", taken, length, note=f"loss {float(lost.detach()):.3g}, cost {spent:.2f}"))
    scores = Comparable()
    scores.update(gates.of_groups(learner.score()))
    return scores


class _L1:
    """Gates themselves."""

    priced = True

    def __init__(self, free: Tensor, cost: Share, device: torch.device) -> None:
        self.cost = cost
        self.free = free.to(device)
        self.parameter = torch.ones(len(free), device=device, requires_grad=True)

    def drawn(self, _: float) -> tuple[Tensor, Tensor]:
        """The gates, and what they cost as."""
        gates = torch.where(self.free, self.parameter, torch.ones_like(self.parameter))
        return gates, gates

    def clip(self) -> None:
        """Back between 0 and 1."""
        with torch.no_grad():
            self.parameter.clamp_(0.0, 1.0)

    def score(self) -> Tensor:
        """The gates."""
        return self.drawn(0.0)[0].detach()


class _L0(_L1):
    """Hard-concrete gates: stretched, clipped samples of a relaxed coin."""

    def __init__(self, free: Tensor, cost: Share, device: torch.device) -> None:
        super().__init__(free, cost, device)
        self.parameter = torch.full((len(free),), 2.5, device=device, requires_grad=True)

    def drawn(self, _: float) -> tuple[Tensor, Tensor]:
        noise = torch.rand_like(self.parameter).clamp(1e-6, 1 - 1e-6)
        relaxed = torch.sigmoid((noise.log() - (1 - noise).log() + self.parameter) / _BETA)
        gates = (relaxed * (_ZETA - _GAMMA) + _GAMMA).clamp(0.0, 1.0)
        ones = torch.ones_like(gates)
        return torch.where(self.free, gates, ones), torch.where(self.free, self._open(), ones)

    def _open(self) -> Tensor:
        """Probability that a gate is not closed."""
        return torch.sigmoid(self.parameter - _BETA * math.log(-_GAMMA / _ZETA))

    def clip(self) -> None:
        """Nothing is out of range."""

    def score(self) -> Tensor:
        return torch.where(self.free, self._open(), torch.ones_like(self.parameter)).detach()


class _TopK(_L1):
    """A ranking: what is above the threshold that meets the budget is 1, the rest 0; gradients pass through."""

    priced = False

    def __init__(self, free: Tensor, cost: Share, device: torch.device) -> None:
        super().__init__(free, cost, device)
        with torch.no_grad():
            self.parameter.add_(0.01 * torch.randn_like(self.parameter))

    def drawn(self, target: float) -> tuple[Tensor, Tensor]:
        hard = self._hard(target)
        gates = hard + self.parameter - self.parameter.detach()
        gates = torch.where(self.free, gates, torch.ones_like(gates))
        return gates, hard

    def _hard(self, target: float) -> Tensor:
        values = self.parameter.detach()
        order = torch.sort(values[self.free]).values
        low, high = 0, len(order) - 1
        ones = torch.ones_like(values)
        while low < high:
            middle = (low + high) // 2
            mask = torch.where(self.free, (values >= order[middle]).to(values.dtype), ones)
            if float(self.cost(mask)) <= target:
                high = middle
            else:
                low = middle + 1
        return torch.where(self.free, (values >= order[low]).to(values.dtype), ones)

    def clip(self) -> None:
        """A ranking has no bounds."""

    def score(self) -> Tensor:
        values = torch.where(self.free, self.parameter, self.parameter.max()).detach()
        return values - values.min()


_LEARNERS = {"l1-mask": _L1, "l0-mask": _L0, "topk-mask": _TopK}
