"""Operators over image axes: every channel is treated alike, the spatial axes stay."""

from __future__ import annotations

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis, Fixed, SlotError


def _channels_pass(site: Site, through: int, why: str) -> list[Axis]:
    """Slots of the result when the first ``through`` axes pass and the others are spatial."""
    axes, out = site.axes(0), site.out_shape(0)
    for axis in axes[through:]:
        site.freeze(axis, why)
    return [*axes[:through], *(site.fixed(s, why) for s in out[through:])]


@rule("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(site: Site) -> None:
    """y[n, c] depends on x[n, c] alone."""
    for o in range(len(site.node.outputs)):
        if site.has_output(o) and o == 0:
            site.give(0, _channels_pass(site, 2, "spatial axis"))
        elif site.has_output(o):  # MaxPool's indices point into the flattened input, which a cut would renumber
            for axis in site.axes(0):
                site.freeze(axis, "indices of MaxPool")


@rule("MaxUnpool")
def max_unpool(site: Site) -> None:
    """Writes at flattened positions: nothing is cut."""
    site.freeze_inputs("indices of MaxUnpool")


@rule("Resize", "Upsample")
def resize(site: Site) -> None:
    """Axes that keep their size pass through, the others are spatial."""
    axes, out = site.axes(0), site.out_shape(0)
    sizes_at = 3 if site.opset >= 11 else None
    along = site.attribute("axes")
    along = [a % len(axes) for a in along] if along else list(range(len(axes)))
    result: list[Axis] = []
    for k, axis in enumerate(axes):
        if axis.size != out[k]:
            site.freeze(axis, "resized axis")
            result.append(site.fixed(out[k], "resized axis"))
            continue
        if sizes_at is not None and site.has(sizes_at) and k in along:
            site.resize(sizes_at, along.index(k), axis)
        if str(site.attribute("mode", "nearest")) != "nearest" and k >= 2 and not isinstance(axis, Fixed):
            site.freeze(axis, "resized axis")
        site.mention(axis)
        result.append(axis)
    site.give(0, result)


@rule("GridSample")
def grid_sample(site: Site) -> None:
    """Samples every channel at the same places."""
    for axis in site.axes(1)[1:]:
        site.freeze(axis, "sampling grid")
    batch = site.axes(1)[0]
    site.tie(site.axes(0)[0], batch)
    site.give(0, _channels_pass(site, 2, "spatial axis"))


@rule("RoiAlign", "MaxRoiPool")
def roi(site: Site) -> None:
    """Samples every channel in the same boxes; boxes become the first axis."""
    for i in range(1, len(site.node.inputs)):
        for axis in site.axes(i):
            site.freeze(axis, "boxes")
    axes, out = site.axes(0), site.out_shape(0)
    for k, axis in enumerate(axes):
        if k != 1:
            site.freeze(axis, "spatial axis")
    site.mention(axes[1])
    site.give(0, [site.fixed(out[0], "boxes"), axes[1], *(site.fixed(s, "spatial axis") for s in out[2:])])


@rule("LRN")
def lrn(site: Site) -> None:
    """y[c] = x[c] / (k + a sum of x[c']^2 over the neighbours c' of c)^b: a cut would change who is a neighbour."""
    axes = site.axes(0)
    if len(axes) < 2:
        raise SlotError("no channel axis")
    site.freeze(axes[1], "LRN sums over neighbouring channels")
    site.give(0, axes)


@rule("CenterCropPad")
def center_crop_pad(site: Site) -> None:
    """Axes that keep their size pass through, the others stay."""
    axes, out = site.axes(0), site.out_shape(0)
    along = [a % len(axes) for a in site.attribute("axes", list(range(len(axes))))]
    result: list[Axis] = []
    for k, axis in enumerate(axes):
        if k in along:
            site.freeze(axis, "cropped axis")
            result.append(site.fixed(out[k], "cropped axis"))
        else:
            result.append(axis)
    site.give(0, result)
