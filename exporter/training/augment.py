"""Images changed at random: mirrored or moved by a few pixels, which leaves their meaning; or blended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from exporter.training.options import MIX

_SHARE = 8
"""Images move by at most one part in so many of their size."""

_MOST_CHANNELS = 4


Feeds = Mapping[str, Tensor]


def augmented(runs: Sequence[Feeds], kinds: Sequence[str], draw: torch.Generator) -> list[Feeds]:
    """The inputs of a step with every image (floating point, four axes) changed, all images of a sample alike.

    Args:
        runs: inputs by name, of one run or of several.
        kinds: ``flip`` mirrors every other image from left to right, ``shift`` moves it by up to an eighth of its size,
            with zeros where it came from, ``mix`` blends it with that of another sample of the step, in shares drawn
            evenly from 0 to 1 (Zhang et al., "mixup", ICLR 2018; for a teacher to answer: Beyer et al., "Knowledge
            distillation: A good teacher is patient and consistent", CVPR 2022).
        draw: source of randomness.
    """
    names = [name for name, x in runs[0].items() if x.is_floating_point() and x.ndim == 4]
    if not kinds or not names:
        return list(runs)
    if any(run[name].shape != runs[0][name].shape for run in runs for name in names):  # as large as each sample is
        return [augmented([run], kinds, draw)[0] for run in runs]
    sizes = [len(run[names[0]]) for run in runs]
    chances = torch.rand(4, sum(sizes), generator=draw)
    other = torch.randperm(sum(sizes), generator=draw)
    parts = {
        name: torch.split(_changed(torch.cat([run[name] for run in runs]), kinds, chances, other), sizes)
        for name in names
    }
    return [{**run, **{name: parts[name][k] for name in names}} for k, run in enumerate(runs)]


def _changed(x: Tensor, kinds: Sequence[str], chances: Tensor, other: Tensor) -> Tensor:
    last = x.shape[-1] <= _MOST_CHANNELS < x.shape[1]  # NHWC
    x = x.movedim(-1, 1) if last else x
    flip, down, right, share = chances.to(x.device)
    if "flip" in kinds:
        x = torch.where((flip < 0.5)[:, None, None, None], x.flip(-1), x)
    if "shift" in kinds:
        x = _moved(_moved(x, 2, down), 3, right)
    if MIX in kinds:
        x = torch.lerp(x[other.to(x.device)], x, share.to(x.dtype)[:, None, None, None])
    return x.movedim(1, -1) if last else x


def _moved(x: Tensor, axis: int, chance: Tensor) -> Tensor:
    size = x.shape[axis]
    most = max(size // _SHARE, 1)
    by = (chance * (2 * most + 1)).long().clamp(max=2 * most) - most
    at = torch.arange(size, device=x.device)[None] + by[:, None]
    inside = (at >= 0) & (at < size)
    shape = [len(x), 1, 1, 1]
    shape[axis] = size
    index = at.clamp(0, size - 1).reshape(shape).expand_as(x)
    return x.gather(axis, index) * inside.reshape(shape)
