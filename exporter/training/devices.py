"""What torch computes on."""

from __future__ import annotations

import torch

from exporter.errors import UsageError


def default_device() -> torch.device:
    """The first GPU that CUDA lets this process see, else the CPU (``CUDA_VISIBLE_DEVICES=`` asks for that)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(name: str) -> torch.device:
    """The device a user named; ``auto`` is the default one.

    Raises:
        UsageError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        return default_device()
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds no CUDA device here; leave it out, or use cpu."
        )
    try:
        return torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: torch knows no such device. Use auto, cpu or cuda.") from None
