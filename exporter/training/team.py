"""Processes that train one model together, each on its own device, with its share of every batch.

``accelerate launch -m exporter tune ...`` and ``torchrun`` start them. Every process goes through the same samples in
the same order, takes its rows of each batch, and adds its gradients to those of the others; so all have the same
weights after every step, and what comes out is what one process makes, up to rounding. Sums go through Accelerate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.errors import UsageError
from exporter.torch_source import MissingPackage


@dataclass(frozen=True)
class Team:
    """Where a process stands among those that train together.

    Attributes:
        count: of processes.
        rank: number of this one; 0 alone writes and prints.
        device: what it computes on; None leaves the choice to the user.
        sum: adds up a tensor over all processes; each gets the sum.
    """

    count: int = 1
    rank: int = 0
    device: torch.device | None = None
    sum: Callable[[Tensor], Tensor] = lambda x: x

    def share(
        self, inputs: Mapping[str, Tensor], labels: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None, float]:
        """The rows of a batch that are this process's, and what part of it they are.

        Where there are fewer rows than processes some get the first row and the part 0, because all must take part.
        """
        if self.count == 1:
            return dict(inputs), labels, 1.0
        rows = len(next(iter(inputs.values())))
        first, last = (rows * k // self.count for k in (self.rank, self.rank + 1))
        part = (last - first) / rows
        last = max(last, first + 1)
        mine = {name: x[first:last] for name, x in inputs.items()}
        return mine, None if labels is None else labels[first:last], part

    def add_gradients(self, weights: Iterable[Tensor]) -> None:
        """Replace gradients by their sums over all processes."""
        held = [w for w in weights if w.grad is not None]
        if self.count == 1 or not held:
            return
        flat = self.sum(torch.cat([w.grad.float().reshape(-1) for w in held if w.grad is not None]))
        at = 0
        for weight in held:
            weight.grad = flat[at : at + weight.numel()].reshape(weight.shape).to(weight.dtype)
            at += weight.numel()

    def agreed(self, step: int) -> None:
        """Refuse to go on where processes stand at different steps.

        Raises:
            UsageError: they do.
        """
        found = torch.tensor([float(step), float(step) ** 2], dtype=torch.float64)
        total = self.sum(found.to(self.device) if self.device is not None and self.device.type != "mps" else found)
        if self.count * float(total[1]) != float(total[0]) ** 2:
            raise UsageError(
                "the processes found checkpoints of different steps. --checkpoint must name one file that all machines "
                "share; or delete it."
            )


ALONE = Team()


def team_of(device: str = "auto") -> Team:
    """The team that a launcher put this process into; ``ALONE`` where none did.

    Args:
        device: what the user asked for; the launcher chooses where there are several processes.

    Raises:
        MissingPackage: there are several processes, and Accelerate is not installed.
        UsageError: there are several, and a device was asked for.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdigit() or int(count) < 2:
        return ALONE
    if device != "auto":
        raise UsageError(f"--device {device}: the launcher of {count} processes chooses; leave it out.")
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingPackage(
            f"{count} processes were started to train together, which takes Accelerate ({error}).\n"
            'Install it with: pip install "secateur[accelerate]"\nOr start one process.'
        ) from error
    accelerator = Accelerator()
    return Team(
        accelerator.num_processes,
        accelerator.process_index,
        accelerator.device,
        lambda x: accelerator.reduce(x, reduction="sum"),
    )
