"""Images changed at random in ways that leave their meaning: mirrored, moved by a few pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exporter.errors import UsageError

KINDS = ("flip", "shift")
_SHARE = 8
"""Images move by at most one part in so many of their size."""

_MOST_CHANNELS = 4


def check(kinds: Sequence[str]) -> None:
    """Refuse unknown kinds.

    Raises:
        UsageError: there is one.
    """
    unknown = [k for k in kinds if k not in KINDS]
    if unknown:
        raise UsageError(f"--augment {unknown[0]}: choose from {', '.join(KINDS)}.")


def augmented(inputs: dict[str, Tensor], kinds: Sequence[str], draw: torch.Generator) -> dict[str, Tensor]:
    """Inputs with every image (floating point, four axes) changed; the same for all images of a sample.

    Args:
        inputs: by name.
        kinds: ``flip`` mirrors every other image from left to right, ``shift`` moves it by up to an eighth of its size,
            with zeros where it came from.
        draw: source of randomness.
    """
    return {
        name: _changed(x, kinds, draw) if x.is_floating_point() and x.ndim == 4 and kinds else x
        for name, x in inputs.items()
    }


def _changed(x: Tensor, kinds: Sequence[str], draw: torch.Generator) -> Tensor:
    last = x.shape[-1] <= _MOST_CHANNELS < x.shape[1]  # NHWC
    x = x.movedim(-1, 1) if last else x
    if "flip" in kinds:
        chosen = torch.rand(len(x), generator=draw) < 0.5
        x = torch.where(chosen.to(x.device)[:, None, None, None], x.flip(-1), x)
    if "shift" in kinds:
        for axis in (2, 3):
            x = _moved(x, axis, draw)
    return x.movedim(1, -1) if last else x


def _moved(x: Tensor, axis: int, draw: torch.Generator) -> Tensor:
    size = x.shape[axis]
    most = max(size // _SHARE, 1)
    by = torch.randint(-most, most + 1, (len(x), 1), generator=draw)
    at = torch.arange(size)[None] + by
    inside = ((at >= 0) & (at < size)).to(x.device)
    shape = [len(x), 1, 1, 1]
    shape[axis] = size
    index = at.clamp(0, size - 1).to(x.device).reshape(shape).expand_as(x)
    return x.gather(axis, index) * inside.reshape(shape)
