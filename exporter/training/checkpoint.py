"""Checkpoints of a training run: written so that a kill leaves the last one whole, read without unpickling code."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.atomic import replacing
from exporter.errors import UsageError


@dataclass(frozen=True)
class Checkpoint:
    """A run after an epoch.

    Attributes:
        identity: what a run must have in common with it, by what that is.
        step: steps done.
        best, best_step: lowest loss on the samples held out, and when.
        history: (steps, loss, loss held out) after each epoch.
        optimizer: its state.
        weights: present ones, by name.
        best_weights: those of the best step.
    """

    identity: dict[str, str]
    step: int
    best: float
    best_step: int
    history: list[tuple[int, float, float]]
    optimizer: dict[str, Any]
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the last one.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            torch.save(vars(checkpoint), temporary)
    except OSError as error:
        raise UsageError(f"the checkpoint {path} cannot be written: {error.strerror or error}.") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UsageError: the file is none.
    """
    try:
        found = torch.load(path, weights_only=True)
        checkpoint = Checkpoint(**found)
        if not isinstance(checkpoint.identity, dict):
            raise TypeError("an earlier version made it")
        return Checkpoint(**{**vars(checkpoint), "history": [tuple(row) for row in checkpoint.history]})
    except (OSError, RuntimeError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UsageError(
            f"{path} is not a checkpoint of 'secateur tune': {reason}. Delete it, or name another."
        ) from error
