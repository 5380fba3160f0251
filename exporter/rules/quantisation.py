"""Quantisation: element by element, with scales that may have an axis of their own."""

from __future__ import annotations

from exporter.rules.elementwise import broadcast
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis


@rule("QuantizeLinear", "DequantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear")
def linear(site: Site) -> None:
    """y[i] = f(x[i]; scale, zero point): one scale for all, one per slot of ``axis``, or one per block of slots.

    Blocks go whole: the axis is the product of its blocks, tied to the axis of the scales, and the places within.
    """
    axes = site.axes(0)
    at = int(site.attribute("axis", 1)) % max(len(axes), 1)
    block = int(site.attribute("block_size", 0))
    for i in (1, 2):
        if not site.has(i):
            continue
        own = site.axes(i)
        if block and len(own) == len(axes):
            for k, (axis, scale) in enumerate(zip(axes, own, strict=True)):
                if k == at:
                    _blocks(site, axis, scale, block)
                else:
                    site.tie(axis, scale)
        elif len(own) == 1 and own[0].size > 1:
            site.tie(axes[at], own[0])
        elif len(own) > 1:
            broadcast(site, [axes, own], site.out_shape(0))
    site.give(0, axes)


def _blocks(site: Site, axis: Axis, scale: Axis, block: int) -> None:
    if axis.size != scale.size * block:
        site.freeze(axis, "the last block of the quantised axis is not full")
        site.freeze(scale, "the last block of the quantised axis is not full")
        return
    outer, inner = site.split(axis, [scale.size, block])
    site.tie(outer, scale)
    site.freeze(inner, "block of a quantised axis")


@rule("DynamicQuantizeLinear")
def dynamic(site: Site) -> None:
    """One scale for the whole tensor, from its extreme values: after a cut, from those that stay."""
    site.give(0, site.axes(0))
    for o in (1, 2):
        if site.has_output(o):
            site.give(o, [])
