"""Operators over image axes: every channel is treated alike, the spatial axes stay."""

from __future__ import annotations

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis, Fixed, SlotError

_DFT_AXIS_INPUT_OPSET = 20


def _channels_pass(site: Site, through: int, why: str) -> list[Axis]:
    """Slots of the result when the first ``through`` axes pass and the others are spatial."""
    axes, out = site.axes(0), site.out_shape(0)
    for axis in axes[through:]:
        site.freeze(axis, why)
    return [*axes[:through], *(site.fixed(s, why) for s in out[through:])]


@rule("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(site: Site) -> None:
    """y[n, c] depends on x[n, c] alone: channels pass through, image axes stay.

    An axis with a window of one passes too (pooling over the sequence only).
    """
    for o in range(len(site.node.outputs)):
        if site.has_output(o) and o == 0:
            axes, out = site.axes(0), site.out_shape(0)
            still = [k for k in range(2, len(axes)) if _stands_still(site, k - 2) and axes[k].size == out[k]]
            for k in range(2, len(axes)):
                if k not in still:
                    site.freeze(axes[k], "spatial axis")
            moved = range(2, len(axes))
            site.give(0, [*axes[:2], *(axes[k] if k in still else site.fixed(out[k], "spatial axis") for k in moved)])
        elif site.has_output(o):  # MaxPool's indices point into the flattened input, which a cut would renumber
            for axis in site.axes(0):
                site.freeze(axis, "indices of MaxPool")


def _stands_still(site: Site, k: int) -> bool:
    """Say whether a pooling window sees one position at a time along spatial axis ``k``."""
    window, strides, pads = (site.attribute(name) for name in ("kernel_shape", "strides", "pads"))
    if not window or window[k] != 1 or (strides and strides[k] != 1):
        return False
    return not pads or pads[k] == pads[k + len(window)] == 0


@rule("Resize", "Upsample")
def resize(site: Site) -> None:
    """Axes that keep their size pass through, the others are spatial.

    Where the image is cropped, or its sizes follow from each other to keep its proportions, every axis stays.
    """
    axes, out = site.axes(0), site.out_shape(0)
    if str(site.attribute("coordinate_transformation_mode", "")) == "tf_crop_and_resize":
        raise SlotError("a resize that crops")
    if str(site.attribute("keep_aspect_ratio_policy", "stretch")) != "stretch":
        for axis in axes if site.attribute("axes") is None else [axes[a] for a in site.attribute("axes")]:
            site.freeze(axis, "resized in proportion")
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


@rule("GridSample", "com.microsoft::GridSample")
def grid_sample(site: Site) -> None:
    """Samples every channel at the same places: channels pass through, grid and image axes stay."""
    for axis in site.axes(1)[1:]:
        site.freeze(axis, "sampling grid")
    batch = site.axes(1)[0]
    site.tie(site.axes(0)[0], batch)
    site.give(0, _channels_pass(site, 2, "spatial axis"))


@rule("RoiAlign", "MaxRoiPool")
def roi(site: Site) -> None:
    """Samples every channel in the same boxes: channels pass through, boxes and image axes stay."""
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


@rule("CausalConvWithState")
def causal_conv(site: Site) -> None:
    """y[n, c, t] = sum over k of w[c, 0, k] x[n, c, t + k] + b[c], with past positions in a state: channels pass."""
    x, w = site.axes(0), site.axes(1)
    site.freeze(w[2], "kernel window")
    site.freeze(x[2], "position along a convolution")
    site.tie(x[1], w[0])
    if site.has(2):
        site.tie(x[1], site.axes(2)[0])
    if site.has(3):
        past = site.axes(3)
        site.tie(past[0], x[0])
        site.tie(past[1], x[1])
        site.freeze(past[2], "position along a convolution")
    site.give(0, x)
    if site.has_output(1):
        site.give(1, [x[0], x[1], site.fixed(site.out_shape(1)[2], "position along a convolution")])
    site.work(w[2].size * x[2].size, x[0], x[1])


@rule("Col2Im")
def col2im(site: Site) -> None:
    """Adds up the windows of an image: channels (c, window) become c, each by itself."""
    axes, out = site.axes(0), site.out_shape(0)
    channels, window = site.split(axes[1], [out[1], axes[1].size // out[1]])
    site.freeze(window, "kernel window")
    site.freeze(axes[2], "spatial axis")
    site.give(0, [axes[0], channels, *(site.fixed(s, "spatial axis") for s in out[2:])])


@rule("DFT", "Det")
def transform(site: Site) -> None:
    """A Fourier transform along one axis, a determinant over two: those stay, the others pass through."""
    axes, out = site.axes(0), site.out_shape(0)
    gone = {len(axes) - 1, len(axes) - 2}
    if site.node.op == "DFT":
        position = site.integers(2) or [-2]
        at = int(site.attribute("axis", 1)) if site.opset < _DFT_AXIS_INPUT_OPSET else position[0]
        gone = {len(axes) - 1, at % len(axes)}
    for k in gone:
        site.freeze(axes[k], f"axis of {site.node.op}")
    if site.node.op == "Det":
        site.give(0, axes[:-2])
    else:
        site.give(0, [site.fixed(out[k], "axis of DFT") if k in gone else a for k, a in enumerate(axes)])
