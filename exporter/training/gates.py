"""Gates: a factor on every unit, in a torch module, at the places where the masked original hides it.

With gates of 0 and 1 the module computes what the masked original does; between them it is differentiable, so the
derivative by a gate says what the unit is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporter.autograd import OnnxModule
from exporter.groups import Groups
from exporter.training.sites import Place, Places, find_places, offsets_of

_MEANS = ("ReduceMean",)
_LEAST = 1e-6


class Gates:
    """Gates on the units of all groups.

    Attributes:
        groups: the analysis.
        places: where they stand.
        count: number of units.
        values: what is multiplied with, shape (units,), or (samples, units) for gates of each sample's own; set it
            before the module runs.
    """

    def __init__(self, groups: Groups, module: OnnxModule) -> None:
        """Put gates, all of them 1, into a module made of ``groups.graph``."""
        self.groups = groups
        self.places: Places = find_places(groups)
        self._offsets = offsets_of(groups)
        self.count = int(self._offsets[-1])
        self.values: Tensor = torch.ones(self.count, device=module.device)
        by_input: dict[tuple[str, int], list[Place]] = {}
        for place in self.places.inputs:
            by_input.setdefault((place.node, place.input), []).append(place)
        for where, places in by_input.items():
            module.before[where] = self._factor(places)
        for key, place in self.places.norms.items():
            module.instead[key] = self._norm(place)

    @property
    def gated(self) -> list[int]:
        """Numbers of the groups whose every reader has a gate."""
        seen: set[int] = set()
        for place in (*self.places.inputs, *self.places.norms.values()):
            real = np.unique(place.units[place.units < self.count])
            seen.update((np.searchsorted(self._offsets, real, side="right") - 1).tolist())
        return sorted(seen - self.places.bare)

    def of_groups(self, values: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        """Numbers of all units, shape (units,), by group name."""
        numbers = values.detach().double().cpu().numpy()
        return {g.name: numbers[self._offsets[n] : self._offsets[n + 1]] for n, g in enumerate(self.groups)}

    def from_groups(self, values: dict[str, np.ndarray[Any, Any]]) -> Tensor:
        """The inverse of ``of_groups``."""
        whole = np.concatenate([values[g.name] for g in self.groups]) if len(self.groups) else np.zeros(0)
        return torch.from_numpy(np.asarray(whole, np.float32))

    def _along(self, units: Tensor) -> Tensor:
        """The factor of every slot of an axis: the product of its units'; shape (slots,)."""
        values = torch.cat([self.values, self.values.new_ones(1)])
        picked = values[units]
        return picked[:, 0] if units.shape[1] == 1 else picked.prod(1)

    def _factor(self, places: list[Place]) -> Callable[[Tensor], Tensor]:
        held = [(torch.from_numpy(p.units), p) for p in places]

        def apply(x: Tensor) -> Tensor:
            for units, place in held:
                factor = self._along(units.to(x.device)).to(x.dtype)
                if place.op in _MEANS:  # the mean is over what stays
                    factor = factor * (factor.numel() / factor.sum().clamp(min=_LEAST))
                x = x * factor.reshape([-1 if k == place.axis else 1 for k in range(place.axis, place.rank)])
            return x

        return apply

    def _norm(self, place: Place) -> Callable[..., tuple[Tensor, ...]]:
        """A normalisation whose statistics weigh every slot with its gate."""
        units = torch.from_numpy(place.units)
        by_group = place.op == "GroupNormalization"
        centred = place.op in ("LayerNormalization", "GroupNormalization")

        def apply(
            x: Tensor,
            scale: Tensor,
            bias: Tensor | None = None,
            *,
            epsilon: float = 1e-5,
            num_groups: int = 1,
            **_: Any,
        ) -> tuple[Tensor, ...]:
            weight = self._along(units.to(x.device)).to(x.dtype)
            if by_group:
                y = _group_statistics(x, weight, num_groups, epsilon)
                per = [1, -1] + [1] * (x.ndim - 2)
                if scale.numel() != x.shape[1]:
                    scale, bias = (
                        t.repeat_interleave(x.shape[1] // num_groups) for t in (scale, bias) if t is not None
                    )
                y = y * scale.reshape(per)
                return (y if bias is None else y + bias.reshape(per),)
            weight = weight / weight.sum().clamp(min=_LEAST)
            mean = (x * weight).sum(-1, keepdim=True)
            value = x - mean if centred else x
            inverse = ((value.square() * weight).sum(-1, keepdim=True) + epsilon).rsqrt()
            y = value * inverse * scale
            return (y if bias is None else y + bias), *((mean, inverse) if centred else (inverse,))

        return apply


def _group_statistics(x: Tensor, weight: Tensor, groups: int, epsilon: float) -> Tensor:
    """``x`` normalised within groups of channels; a group whose gates are all 0 keeps the statistics of all."""
    apart = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    share = weight.reshape(groups, -1)
    share = torch.where(share.sum(1, keepdim=True) > _LEAST, share, torch.ones_like(share))
    share = (share / share.sum(1, keepdim=True) / apart.shape[3]).unsqueeze(-1)
    mean = (apart * share).sum((2, 3), keepdim=True)
    value = apart - mean
    variance = (value.square() * share).sum((2, 3), keepdim=True)
    return (value * (variance + epsilon).rsqrt()).reshape(x.shape)
