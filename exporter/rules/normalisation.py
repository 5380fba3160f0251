"""Normalisation: per channel, or over a group of slots whose statistics are then those of the slots that stay."""

from __future__ import annotations

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis, Fixed, Reason


@rule("BatchNormalization")
def batch_norm(site: Site) -> None:
    """y[c] = s[c] (x[c] - m[c]) / sqrt(v[c] + e) + b[c]: one entry of every constant per channel.

    In training mode, by which exporters write the standardisation of weights, m and v are computed over the other axes:
    after a cut, over the slots that stay.
    """
    axes = site.axes(0)
    channels = axes[1] if len(axes) > 1 else axes[0]
    for i in range(1, 5):
        site.tie(channels, site.axes(i)[0])
    site.give(0, axes)
    for o in range(1, len(site.node.outputs)):
        if site.has_output(o):
            site.give(o, [channels])


@rule("InstanceNormalization")
def instance_norm(site: Site) -> None:
    """y[n, c, s] = g[c] normalise over s (x[n, c, s]) + b[c]: g and b are tied to the channels.

    Exporters write group normalisation as a Reshape to [n, groups, rest] around it: then the rest is cut like the last
    axis of a layer normalisation.
    """
    axes = site.axes(0)
    site.tie(axes[1], site.axes(1)[0])
    site.tie(axes[1], site.axes(2)[0])
    site.give(0, axes)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(site: Site) -> None:
    """Y = g normalise over the trailing axes (x) + b: g and b are tied to x; statistics are of the slots that stay."""
    axes = site.axes(0)
    at = int(site.attribute("axis", -1)) % len(axes)
    for i in (1, 2):
        if site.has(i):
            _tie_trailing(site, axes, site.axes(i))
    site.give(0, axes)
    for o in range(1, len(site.node.outputs)):
        if site.has_output(o):
            kept: list[Axis] = [
                Fixed(1, site.fixed(2, "reduced axis").why) if k >= at else a for k, a in enumerate(axes)
            ]
            site.give(o, kept)


def _tie_trailing(site: Site, axes: list[Axis], affine: list[Axis]) -> None:
    for own, given in zip(axes[len(axes) - len(affine) :], affine, strict=True):
        if given.size == own.size:
            site.tie(own, given)
        else:
            site.mention(given)


@rule("GroupNormalization")
def group_norm(site: Site) -> None:
    """Channels are (groups, inner); each group is normalised by itself, so whole groups or inner slots may go.

    Before operator set 21, scale and bias have one entry per group, later one per channel.
    """
    axes = site.axes(0)
    groups = int(site.attribute("num_groups", 1))
    outer, _ = site.split(axes[1], [groups, axes[1].size // groups])
    site.role("norm_group", outer)
    for axis in axes[2:]:
        site.freeze(axis, "spatial axis")
    site.resize_attribute("num_groups", outer)
    for i in (1, 2):
        affine = site.axes(i)[0]
        site.tie(affine, outer if affine.size == groups and site.opset < 21 else axes[1])
    site.give(0, axes)


@rule("LpNormalization", "MeanVarianceNormalization")
def whole_norm(site: Site) -> None:
    """Normalises over axes: every slot passes through; the norm, or the statistics, are of the slots that stay."""
    site.give(0, site.axes(0))


@rule("Softmax", "LogSoftmax")
def softmax(site: Site) -> None:
    """Every output depends on the whole axis, and a removed slot would raise the others: the axis stays.

    Unless its slots are experts: a router that has fewer to choose from shares its attention among them.

    Before operator set 13, all axes from ``axis`` on are flattened into one.
    """
    axes = site.axes(0)
    old = site.opset < 13
    at = int(site.attribute("axis", 1 if old else -1)) % len(axes)
    why = f"axis of {site.node.op}"
    whole = axes[at]
    if old:
        for axis in axes[at:]:
            site.freeze(axis, why)
    elif not isinstance(whole, Fixed):
        site.mention(whole)
        site.analysis.compared.append((whole, Reason(why, site.where)))
    site.give(0, axes)
