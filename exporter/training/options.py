"""How to train: what can be asked for. It needs no torch, so that a recipe is checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import UsageError
from runtime.plugins import PLUGIN

OPTIMIZERS = ("adamw", "adam", "sgd")

AGREEMENT = ("kl", "mse")
"""Losses that compare with a teacher."""
LOSSES = ("auto", "cross-entropy", "kl", "mse", "next-id", f"{PLUGIN}package.module:callable")

MIX = "mix"
CHANGES = ("flip", "shift", MIX)
"""What can be done to images at random."""


@dataclass(frozen=True)
class TuneOptions:
    """How to train.

    Attributes:
        epochs: passes over the data; ``steps`` overrides it.
        steps: of the optimizer.
        lr: highest learning rate; it warms up over the first twentieth and falls to zero along a cosine.
        optimizer: a name of ``OPTIMIZERS``.
        decay: weight decay.
        batch: samples in a step; in several runs where the file fixes how many go into one.
        augment: names of ``CHANGES``; see ``exporter.training.augment``.
        hold: share of the samples held out for the choice of the best weights.
        patience: epochs without an improvement after which training stops; 0 never stops.
        amp: compute in bfloat16 where torch deems it safe.
        seed: of the order of the samples and of augmentation.
        checkpoint: file to write after every epoch, and to go on from where it exists.
    """

    epochs: int = 10
    steps: int | None = None
    lr: float = 1e-3
    optimizer: str = "adamw"
    decay: float = 1e-4
    batch: int = 64
    augment: tuple[str, ...] = ()
    hold: float = 0.1
    patience: int = 0
    amp: bool = False
    seed: int = 0
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        wrong = {
            "--epochs": self.epochs < 1,
            "--steps": self.steps is not None and self.steps < 1,
            "--lr": not 0 < self.lr < math.inf,
            "--batch": self.batch < 1,
            "--hold": not 0 < self.hold < 1,
            "--patience": self.patience < 0,
            "--weight-decay": self.decay < 0,
        }
        for name, bad in wrong.items():
            if bad:
                raise UsageError(f"{name}: the value is out of range.")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"--optimizer {self.optimizer}: choose from {', '.join(OPTIMIZERS)}.")
        unknown = [k for k in self.augment if k not in CHANGES]
        if unknown:
            raise UsageError(f"--augment {unknown[0]}: choose from {', '.join(CHANGES)}.")


def check_target(loss: str, labelled: bool, taught: bool, share: float, temperature: float, match: bool) -> None:
    """Refuse a loss that there is not, or one of what is not given.

    Args:
        loss: a name of ``LOSSES``.
        labelled, taught: whether there are labels, and a teacher.
        share: of the distillation.
        temperature: of KL.
        match: whether inner tensors are compared.

    Raises:
        UsageError: in words of the command's options.
    """
    if loss not in LOSSES[:-1] and not loss.startswith(PLUGIN):
        raise UsageError(f"there is no loss '{loss}'. Choose from: {', '.join(LOSSES)}.")
    if not 0 <= share <= 1:
        raise UsageError(f"--distil-share {share:g}: must be between 0 and 1.")
    if not 0 < temperature < math.inf:
        raise UsageError(f"--temperature {temperature:g}: must be a finite number above zero.")
    if loss in AGREEMENT and not taught:
        raise UsageError(f"--loss {loss} compares with the original: give it with --teacher.")
    if not (taught or labelled or loss != "auto"):
        raise UsageError(
            "there is nothing to learn from: name labels with --labels, give the original with --teacher, or a loss of "
            "your own with --loss plugin:package.module:callable."
        )
    if match and not taught:
        raise UsageError("--match compares with the original: give it with --teacher.")


def check_blends(changes: Sequence[str], labelled: bool, taught: bool) -> None:
    """Refuse to blend images where nobody says what the blend should give.

    Raises:
        UsageError: images are blended, and there are labels, or no teacher.
    """
    if MIX in changes and (labelled or not taught):
        why = "labels say nothing of a blend of two images: leave out --labels" if labelled else "a blend has no label"
        raise UsageError(f"--augment {MIX}: {why}{'' if taught else '; give the original with --teacher'}.")
