"""Open a model on a backend. What a backend is stands in ``protocol``, and can be imported from here too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.backends.custom_ops import use_custom_ops
from runtime.backends.protocol import (
    ABOUT,
    BACKENDS,
    LEVELS,
    Array,
    Availability,
    Session,
    SessionOptions,
    TensorSpec,
    TimedSession,
    backend,
)
from runtime.errors import BackendMissing


def _register() -> None:
    """Let the backends that ship register themselves; here, to keep start-up fast."""
    import runtime.backends.ort
    import runtime.backends.tensorrt  # noqa: F401


def open_session(model: Path | str | bytes, backend: str = "ort-cpu", options: SessionOptions | None = None) -> Session:
    """Load a model on a backend.

    Args:
        model: path of the file, or its bytes.
        backend: a name in ``BACKENDS``.
        options: threads, optimisation and the rest.

    Raises:
        BackendMissing: no such backend, or its package is not installed.
        BadRequest: the backend lacks what an option asks for.
        RunError: the backend refuses the model.
    """
    check_backend(backend)
    source = model if isinstance(model, bytes) else Path(model)
    return BACKENDS[backend](source, options or SessionOptions())


def check_backend(backend: str) -> None:
    """Refuse a name that no backend has, whatever this machine can do, with a BackendMissing."""
    _register()
    if backend not in BACKENDS:
        raise BackendMissing(
            f"there is no backend '{backend}'. Available: {', '.join(sorted(BACKENDS))}.\n"
            "See what this machine can do with: secateur backends"
        )


def need_backend(backend: str) -> None:
    """Make sure that this machine can use a backend, before any work is done for it.

    Raises:
        BackendMissing: it cannot; the message says what is lacking.
    """
    check_backend(backend)
    missing = ABOUT[backend]().missing if backend in ABOUT else ""
    if missing:
        raise BackendMissing(f"backend {backend}: {missing}")


def available() -> dict[str, Availability]:
    """Every backend by name, those first that this machine can use."""
    _register()
    unknown = Availability("", "", "")
    found = {name: ABOUT[name]() if name in ABOUT else unknown for name in BACKENDS}
    return dict(sorted(found.items(), key=lambda item: bool(item[1].missing)))


__all__: Sequence[str] = [
    "ABOUT",
    "BACKENDS",
    "LEVELS",
    "Array",
    "Availability",
    "Session",
    "SessionOptions",
    "TensorSpec",
    "TimedSession",
    "available",
    "backend",
    "need_backend",
    "open_session",
    "use_custom_ops",
]
