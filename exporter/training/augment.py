"""Images changed at random: mirrored or moved by a few pixels, which leaves their meaning; or blended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exporter.training.options import MIX

_SHARE = 8
"""Images move by at most one part in so many of their size."""

_MOST_CHANNELS = 4


def augmented(inputs: dict[str, Tensor], kinds: Sequence[str], draw: torch.Generator) -> dict[str, Tensor]:
    """Inputs with every image (floating point, four axes) changed; the same for all images of a sample.

    Args:
        inputs: by name.
        kinds: ``flip`` mirrors every other image from left to right, ``shift`` moves it by up to an eighth of its size,
            with zeros where it came from, ``mix`` blends it with that of another sample of the batch, in shares drawn
            evenly from 0 to 1 (Zhang et al., "mixup", ICLR 2018; for a teacher to answer: Beyer et al., "Knowledge
            distillation: A good teacher is patient and consistent", CVPR 2022).
        draw: source of randomness.
    """
    images = {name for name, x in inputs.items() if x.is_floating_point() and x.ndim == 4 and kinds}
    changed = {name: _changed(x, kinds, draw) if name in images else x for name, x in inputs.items()}
    return _blended(changed, images, draw) if MIX in kinds and images else changed


def _blended(inputs: dict[str, Tensor], images: set[str], draw: torch.Generator) -> dict[str, Tensor]:
    count = len(inputs[min(images)])
    other, share = torch.randperm(count, generator=draw), torch.rand(count, 1, 1, 1, generator=draw)
    return {
        name: torch.lerp(x[other.to(x.device)], x, share.to(x)) if name in images else x for name, x in inputs.items()
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
