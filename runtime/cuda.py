"""CUDA through cuda-bindings: every call is checked, and what is missing on this machine is said once."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from runtime.errors import BackendMissing, RunError

INSTALL = "pip install cuda-bindings"


@dataclass(frozen=True)
class Gpu:
    """The GPU of this machine.

    Attributes:
        name: as the driver calls it.
        capability: compute capability, ``8.6``.
        driver: the newest CUDA version the driver understands, ``13.0``.
        memory: its bytes.
    """

    name: str
    capability: str
    driver: str
    memory: int


class CudaError(RunError):
    """A call of CUDA failed."""


def library() -> Any:
    """The CUDA runtime's functions.

    Raises:
        BackendMissing: the package is not installed, or does not load.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        raise BackendMissing(f"engines run through the package cuda-bindings: {INSTALL}") from None
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendMissing(f"cuda-bindings does not load: {error}\nInstall it again: {INSTALL}") from error


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; returns what it gives, without the status.

    Raises:
        BackendMissing: there is no driver or no GPU.
        CudaError: it failed; the message holds CUDA's name and words for it.
    """
    lib = library()
    try:
        status, *found = getattr(lib, name)(*arguments)
    except RuntimeError as error:  # cuda-bindings finds no library to call
        raise BackendMissing(f"CUDA does not start here: {error}") from error
    if int(status) != 0:
        title, text = _told(lib, status)
        if title in _ABSENT:
            raise BackendMissing(f"there is no GPU here that CUDA can use, or its driver is missing: {title}: {text}")
        raise CudaError(f"{name} failed: {title}: {text}{_FIXES.get(title, '')}")
    return found[0] if len(found) == 1 else tuple(found) if found else None


_ABSENT = frozenset(
    {"cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorInitializationError", "cudaErrorSystemNotReady"}
    | {"cudaErrorStubLibrary", "cudaErrorDevicesUnavailable", "cudaErrorSystemDriverMismatch"}
)
_FIXES = {"cudaErrorMemoryAllocation": "\nUse a smaller batch or smaller sizes (--shape), or free memory of the GPU."}


def _told(lib: Any, status: Any) -> tuple[str, str]:
    texts = []
    for name in ("cudaGetErrorName", "cudaGetErrorString"):
        _, text = getattr(lib, name)(status)
        texts.append(text.decode() if isinstance(text, bytes) else str(text))
    return texts[0], texts[1]


def need_gpu() -> Gpu:
    """The GPU that runs engines, the first one CUDA shows.

    Raises:
        BackendMissing: there is none; the message says what is lacking.
    """
    count = call("cudaGetDeviceCount")
    if not count:
        raise BackendMissing("there is no GPU here that CUDA can use.")
    facts, driver = call("cudaGetDeviceProperties", 0), int(call("cudaDriverGetVersion"))
    name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
    return Gpu(
        name.rstrip("\0"),
        f"{facts.major}.{facts.minor}",
        f"{driver // 1000}.{driver % 1000 // 10}",
        int(facts.totalGlobalMem),
    )


def gpu() -> Gpu | None:
    """As ``need_gpu``; None where there is none."""
    try:
        return need_gpu()
    except RunError:
        return None
