"""What runs a model: one Session protocol, and a registry of the backends that offer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendMissing

Array = NDArray[np.generic]


@dataclass(frozen=True)
class TensorSpec:
    """Signature of one model input or output.

    Attributes:
        name: tensor name.
        dtype: numpy dtype; None for what numpy cannot hold (sequences, maps).
        shape: int for a fixed axis, str for a named dynamic one, None for an unnamed one.
    """

    name: str
    dtype: np.dtype[np.generic] | None
    shape: tuple[int | str | None, ...]


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


@dataclass(frozen=True)
class SessionOptions:
    """How to load a model.

    Attributes:
        threads: threads inside one operator; 0 lets the backend choose.
        optimize: graph optimisation; off gives the file's own arithmetic, which proofs need.
        spinning: threads wait for work without giving up the processor: faster, at the cost of others.
    """

    threads: int = 0
    optimize: bool = True
    spinning: bool = True


Opener = Callable[[Path | bytes, SessionOptions], Session]

BACKENDS: dict[str, Opener] = {}


def backend(name: str) -> Callable[[Opener], Opener]:
    """Register a function that opens sessions under ``name``."""

    def register(opener: Opener) -> Opener:
        if name in BACKENDS:
            raise ValueError(f"backend '{name}' is registered twice")
        BACKENDS[name] = opener
        return opener

    return register


def open_session(model: Path | str | bytes, backend: str = "ort-cpu", options: SessionOptions | None = None) -> Session:
    """Load a model on a backend.

    Args:
        model: path of the file, or its bytes.
        backend: a name in ``BACKENDS``.
        options: threads and optimisation.

    Raises:
        BackendMissing: no such backend, or its package is not installed.
        RunError: the backend refuses the model.
    """
    import runtime.backends.ort  # noqa: F401  (registers itself; imported here to keep start-up fast)

    if backend not in BACKENDS:
        raise BackendMissing(f"there is no backend '{backend}'. Available: {', '.join(sorted(BACKENDS))}.")
    source = model if isinstance(model, bytes) else Path(model)
    return BACKENDS[backend](source, options or SessionOptions())


__all__: Sequence[str] = ["BACKENDS", "Session", "SessionOptions", "TensorSpec", "backend", "open_session"]
