"""What a backend is: the Session protocol, the options every backend knows, and the registry it enters itself in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BadRequest

Array = NDArray[np.generic]

LEVELS = ("off", "basic", "extended", "all")
"""How far a backend may rewrite a graph before it runs it."""


@dataclass(frozen=True)
class TensorSpec:
    """Signature of one model input or output.

    Attributes:
        name: tensor name.
        dtype: numpy dtype; None for what numpy cannot hold (sequences, maps).
        shape: int for a fixed axis, str for a named dynamic one, None for an unnamed one.
        classes: what the columns of an output [N, classes] stand for, where the model hands out a dictionary for each
            sample; see ``runtime.backends.maps``.
    """

    name: str
    dtype: np.dtype[np.generic] | None
    shape: tuple[int | str | None, ...]
    classes: tuple[int | str, ...] = ()


class Session(Protocol):
    """A model loaded on a device, ready to run."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; returns the outputs asked for (all of them by default) by name."""
        ...

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], None]:
        """Fix the inputs and return a call that runs the model once, with as little overhead as the backend allows."""
        ...


@runtime_checkable
class TimedSession(Protocol):
    """A session whose device has a clock of its own. Offering it is optional; latency is then reported by both."""

    def bind_timed(self, feeds: Mapping[str, Array]) -> Callable[[], float]:
        """As ``bind``; the call returns the seconds the run took on the device, without transfers and the host."""
        ...


@dataclass(frozen=True)
class SessionOptions:
    """How to load a model.

    Attributes:
        threads: threads inside one operator; 0 lets the backend choose.
        optimize: graph optimisation; off gives the file's own arithmetic, which proofs need.
        level: how far to optimise, one of ``LEVELS``; ``optimize=False`` is ``off``.
        spinning: idle threads wait busily for work. Off costs a little latency and leaves the processor to others.
        packing: weights are laid out anew when the model is loaded. Off saves that time and memory where runs are few.
        reuse: tensors may lie where others lay that nobody reads any more. Off takes more memory, and runs models whose
            declared shapes are wrong: by these it is decided what fits where.
        rounding: float weights of layers between quantized tensors may be rounded too, as ONNX Runtime does. Off keeps
            what the file holds.
        dequantize: floats of integer weights are made once, as the model is loaded, instead of in every run; all layers
            then compute in float.
        binding: timed calls keep inputs and outputs where they are (I/O binding); off copies them on every run.
        capture: record the run once and replay it (CUDA graphs), where the backend can.
        profile: write a profile whose name begins so.
        save: write the model as the backend optimised it.
        folder: where the external data of a model given as bytes lie.
        seconds: stop a run after so long, between two nodes; it then counts as failed. 0 for no limit.
    """

    threads: int = 0
    optimize: bool = True
    level: str = "all"
    spinning: bool = True
    packing: bool = True
    reuse: bool = True
    rounding: bool = True
    dequantize: bool = False
    binding: bool = True
    capture: bool = False
    profile: Path | None = None
    save: Path | None = None
    folder: Path | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise BadRequest(f"--level {self.level}: choose from {', '.join(LEVELS)}.")
        if self.threads < 0:
            raise BadRequest(f"--threads {self.threads}: must be a number of threads, or 0 for the backend's choice.")


Opener = Callable[[Path | bytes, SessionOptions], Session]


@dataclass(frozen=True)
class Availability:
    """Whether this machine can use a backend.

    Attributes:
        device: what it runs on.
        version: of the package behind it; empty where it is not installed.
        missing: what is lacking and the line that adds it; empty where the backend can be tried.
    """

    device: str
    version: str
    missing: str


BACKENDS: dict[str, Opener] = {}

ABOUT: dict[str, Callable[[], Availability]] = {}
"""For each backend that can tell, whether this machine can use it."""


def backend(name: str, about: Callable[[], Availability] | None = None) -> Callable[[Opener], Opener]:
    """Register a function that opens sessions under ``name``, and what tells whether it would."""

    def register(opener: Opener) -> Opener:
        if name in BACKENDS:
            raise ValueError(f"backend '{name}' is registered twice")
        BACKENDS[name] = opener
        if about is not None:
            ABOUT[name] = about
        return opener

    return register
