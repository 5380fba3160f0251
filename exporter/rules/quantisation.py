"""Quantisation: element by element, with scales that may have an axis of their own."""

from __future__ import annotations

from exporter.rules.elementwise import broadcast
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import SlotError


@rule("QuantizeLinear", "DequantizeLinear")
def linear(site: Site) -> None:
    """y[i] = f(x[i]; scale, zero point): one scale for all, or one per slot of ``axis``."""
    axes = site.axes(0)
    if int(site.attribute("block_size", 0)):
        raise SlotError("blocked quantisation")
    for i in (1, 2):
        if not site.has(i):
            continue
        own = site.axes(i)
        if len(own) == 1 and own[0].size > 1:
            at = int(site.attribute("axis", 1)) % len(axes)
            site.tie(axes[at], own[0])
        elif len(own) > 1:
            broadcast(site, [axes, own], site.out_shape(0))
    site.give(0, axes)


@rule("DynamicQuantizeLinear")
def dynamic(site: Site) -> None:
    """One scale for the whole tensor, from its extreme values: after a cut, from those that stay."""
    site.give(0, site.axes(0))
    for o in (1, 2):
        if site.has_output(o):
            site.give(o, [])
