"""What a proof found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """What a proof found. All errors are relative to the signal: the standard deviation of the dense output.

    Attributes:
        error: largest difference between the pruned graph and the masked original, over outputs and runs.
        outputs: the same per output.
        tolerance: what was accepted.
        change: how far the pruned outputs moved away from the dense ones; tiny where the outputs do not react to the
            cut; None where the proof went piece by piece.
        inner: number of inner tensors compared as well, in one of the runs.
        runs: number of input sets.
        shapes: input shapes of each run.
        warnings: what the reader should know.
        pieces: in how many pieces the models ran; see ``exporter.piecewise``.
    """

    error: float
    outputs: Mapping[str, float]
    tolerance: float
    change: float | None
    inner: int
    runs: int
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    warnings: tuple[str, ...] = ()
    pieces: int = 1
