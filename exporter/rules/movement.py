"""Operators that only move elements: numpy indexing on arrays of slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed, Reason, SlotError
from runtime.nouns import counted


@rule("Transpose")
def transpose(site: Site) -> None:
    """y[i, j] = x[j, i]: the axes change places."""
    axes = site.axes(0)
    order = site.attribute("perm", list(range(len(axes)))[::-1])
    site.give(0, [axes[k] for k in order])


@rule("Reshape")
def reshape(site: Site) -> None:
    """Runs of axes with equal element count are flattened and taken apart; the target's numbers follow the cut.

    An element of -1 or 0 adapts by itself; a number is resized.
    """
    sizes = site.out_shape(0)
    result = site.facts.regroup(site.axes(0), sizes, site.where)
    for axis in site.axes(0):
        site.mention(axis)
    if len(site.node.inputs) < 2:
        raise SlotError("Reshape without a target")
    target = site.known(1)
    if target is None:
        target = [None] * len(sizes)
    for k, (axis, element) in enumerate(zip(result, target, strict=True)):
        copied = element == 0 and not site.attribute("allowzero", 0)
        if element == -1 or (copied and axis is site.axes(0)[k]):
            continue
        if copied:
            site.freeze(axis, "Reshape copies the size of an axis that is not this one")
        else:
            site.resize(1, k, axis)
    site.give(0, result)


@rule("Flatten")
def flatten(site: Site) -> None:
    """Axes before ``axis`` become one, those from it on the other."""
    axes = site.axes(0)
    at = int(site.attribute("axis", 1))
    at += len(axes) if at < 0 else 0
    one: list[Axis] = [Fixed(1, ONE)]
    site.give(0, [site.merge(axes[:at] or one), site.merge(axes[at:] or one)])


@rule("Squeeze")
def squeeze(site: Site) -> None:
    """Axes of size one go."""
    axes = site.axes(0)
    gone = site.integers(1, "axes")
    if gone is None:
        gone = [k for k, a in enumerate(axes) if a.size == 1]
    dropped = {g % len(axes) for g in gone}
    site.give(0, [a for k, a in enumerate(axes) if k not in dropped])


@rule("Unsqueeze")
def unsqueeze(site: Site) -> None:
    """Axes of size one come."""
    added = site.integers(1, "axes") or []
    rank = len(site.out_shape(0))
    new = {a % rank for a in added}
    rest = iter(site.axes(0))
    site.give(0, [Fixed(1, ONE) if k in new else next(rest) for k in range(rank)])


@rule("Concat")
def concat(site: Site) -> None:
    """Along its axis the operands' slots follow each other; along the others they are tied."""
    join(site, [site.axes(i) for i in range(len(site.node.inputs))])


def join(site: Site, operands: Sequence[list[Axis]]) -> None:
    """State the facts of a concatenation of operands, given by their axes."""
    at = int(site.attribute("axis", 1)) % len(operands[0])
    result: list[Axis] = []
    for k in range(len(operands[0])):
        if k == at:
            result.append(site.concatenate([o[k] for o in operands]))
            for o in operands:
                site.mention(o[k])
            continue
        lead = next((o[k] for o in operands if not isinstance(o[k], Fixed)), operands[0][k])
        for o in operands:
            site.tie(lead, o[k])
        result.append(lead)
    site.give(0, result)


@rule("Split")
def split(site: Site) -> None:
    """Each output holds a run of slots; the sizes of the runs follow the cut."""
    axes = list(site.axes(0))
    at = int(site.attribute("axis", 0)) % len(axes)
    outputs = range(len(site.node.outputs))
    sizes = [site.out_shape(o)[at] for o in outputs]
    if sum(sizes) != axes[at].size:
        raise SlotError(f"parts of {sizes} do not make up {axes[at].size}")
    if site.has(1) and (site.known(1) is None or None in (site.known(1) or [])):
        site.freeze(axes[at], "split at sizes known only at run time")
        axes[at] = Fixed(axes[at].size, Reason("split at sizes known only at run time", site.where))
    start = 0
    for o in outputs:
        whole = axes[at]
        part: Axis
        if isinstance(whole, Fixed):
            part = Fixed(sizes[o], whole.why if sizes[o] > 1 else ONE)
        else:
            part = whole[start : start + sizes[o]]
            if site.opset >= 13 or ("split" not in site.node.attributes and site.has(1)):
                site.resize(1, o, part, default=sizes)
            else:
                site.resize_attribute("split", part, element=o, default=sizes)
        start += sizes[o]
        site.give(o, [part if k == at else a for k, a in enumerate(axes)])


@rule("Slice")
def slice_(site: Site) -> None:
    """A run of slots, its bounds following the cut; with a step, a constant selection of slots.

    Bounds that are known only at run time freeze the axis they cut, and no other; so does a step along one of several.
    """
    axes = list(site.axes(0))
    starts, ends = _numbers(site, 1, "starts"), _numbers(site, 2, "ends")
    along = site.integers(3, "axes") or list(range(len(starts)))
    steps = site.integers(4) or [1] * len(along)
    out = site.out_shape(0)
    for k, (at, step) in enumerate(zip(along, steps, strict=True)):
        at %= len(axes)
        start, end, whole = starts[k], ends[k], axes[at]
        if isinstance(whole, Fixed):
            axes[at] = Fixed(out[at], whole.why if out[at] > 1 else ONE)
            continue
        site.mention(whole)
        if start is None or end is None:
            site.freeze(whole, "sliced at bounds known only at run time")
            axes[at] = site.fixed(out[at], "sliced at bounds known only at run time")
            continue
        stop = None if step < 0 and end < -whole.size else end
        chosen = range(*slice(start, stop, step).indices(whole.size))
        if step != 1:
            if len(along) > 1:  # a node selects along one axis
                site.freeze(whole, "a step along one of several sliced axes")
                axes[at] = site.fixed(out[at], "a step along one of several sliced axes")
                continue
            axes[at] = site.take(at, np.array(chosen, dtype=np.int64))
            continue
        if chosen.start > 0:
            _bound(site, 1, "starts", k, whole[: chosen.start])
        written = end == whole.size and (site.is_constant(2) or "ends" in site.node.attributes)
        if chosen.stop < whole.size or written:
            _bound(site, 2, "ends", k, whole[: chosen.stop])
        axes[at] = whole[chosen.start : chosen.stop]
    site.give(0, axes)


def _numbers(site: Site, i: int, attribute: str) -> list[int | None]:
    """Integers of an attribute or input, None for each that is known only at run time."""
    if attribute in site.node.attributes:
        return list(site.attribute(attribute))
    known = site.known(i)
    return known if known is not None else [None] * max(site.shape(i)[0], 1)


def _bound(site: Site, i: int, attribute: str, element: int, before: Axis) -> None:
    """A bound of a run is the number of slots that survive before it."""
    if attribute in site.node.attributes:
        site.resize_attribute(attribute, before, element=element)
    else:
        site.resize(i, element, before)


@rule("Pad", "com.microsoft::Pad")
def pad(site: Site) -> None:
    """New slots before and after; padded channels are slots like others (option-A shortcuts of ResNets)."""
    axes = list(site.axes(0))
    out = site.out_shape(0)
    padded = site.integers(3) if site.has(3) else None
    along = [a % len(axes) for a in padded] if padded is not None else list(range(len(axes)))
    pads = _numbers(site, 1, "pads")
    if len(pads) != 2 * len(along):
        raise SlotError(f"{counted(len(pads), 'pad')} for {counted(len(along), 'axis')}")
    constant = str(site.attribute("mode", "constant")) == "constant"
    for k, at in enumerate(along):
        before, after = pads[k], pads[k + len(along)]
        whole = axes[at]
        if before == after == 0:
            continue
        if isinstance(whole, Fixed) or not constant or before is None or after is None or min(before, after) < 0:
            site.freeze(whole, "padded axis")
            axes[at] = site.fixed(out[at], "padded axis")
            continue
        head, tail = site.facts.fresh(before), site.facts.fresh(after)
        for element, ids in ((k, head), (k + len(along), tail)):
            if ids.size:
                if "pads" in site.node.attributes:
                    site.resize_attribute("pads", ids, element=element)
                else:
                    site.resize(1, element, ids)
        site.mention(whole)
        axes[at] = np.concatenate([head, whole, tail])
    site.give(0, axes)


@rule("DepthToSpace")
def depth_to_space(site: Site) -> None:
    """Channels (b, b, c), or (c, b, b) in CRD mode, become c channels and b times the height and width."""
    axes, block = site.axes(0), int(site.attribute("blocksize"))
    depth = axes[1].size // (block * block)
    crd = str(site.attribute("mode", "DCR")) == "CRD"
    parts = site.split(axes[1], [depth, block, block] if crd else [block, block, depth])
    for part in parts[1:] if crd else parts[:2]:
        site.freeze(part, "block of DepthToSpace")
    out = site.out_shape(0)
    for axis in axes[2:]:
        site.freeze(axis, "spatial axis")
    channels = parts[0] if crd else parts[2]
    site.give(0, [axes[0], channels, *(site.fixed(s, "spatial axis") for s in out[2:])])


@rule("SpaceToDepth")
def space_to_depth(site: Site) -> None:
    """Blocks of b x b pixels become channels (b, b, c), or (c, b, b) in CRD mode."""
    axes, block = site.axes(0), int(site.attribute("blocksize"))
    out = site.out_shape(0)
    for axis in axes[2:]:
        site.freeze(axis, "spatial axis")
    window = [site.fixed(block, "block of SpaceToDepth") for _ in range(2)]
    crd = str(site.attribute("mode", "DCR")) == "CRD"
    channels = site.merge([axes[1], *window] if crd else [*window, axes[1]])
    site.give(0, [axes[0], channels, *(site.fixed(s, "spatial axis") for s in out[2:])])
