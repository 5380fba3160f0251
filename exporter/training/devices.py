"""What torch computes on."""

from __future__ import annotations

import torch

from exporter.autograd import OnnxModule
from exporter.errors import UsageError


def default_device() -> torch.device:
    """The first GPU that CUDA lets this process see, else the CPU (``CUDA_VISIBLE_DEVICES=`` asks for that)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def placed(module: OnnxModule, device: torch.device) -> OnnxModule:
    """A module on a device; on the CPU with weights of four axes in the order in which convolutions are fastest there
    (channels last: a step of training takes .73 to .96 of the time, see docs/decisions.md)."""
    module = module.to(device)
    if device.type == "cpu":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # in place; its stub lacks it
    return module


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
