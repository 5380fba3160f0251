"""Operators that select by index: constant indices move slots, indices from data freeze the axis they select from."""

from __future__ import annotations

import numpy as np

from exporter.rules import positions
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed, SlotError


@rule("Gather")
def gather(site: Site) -> None:
    """Y = take(x, indices, axis). Constant indices select slots; others may select any, so all must stay.

    Selecting rows of a table by data is an embedding: its other axis, the embedding's width, is free.
    """
    axes, indices = site.axes(0), site.node.inputs[1]
    at = int(site.attribute("axis", 0)) % len(axes)
    whole = axes[at]
    values = site.graph.array(indices) if indices in site.graph.constants else site.graph.static.known.get(indices)
    shape = site.shape(1)
    if values is None:
        if not positions.follow(site, 1, whole):
            site.freeze(whole, "selected by data")
        chosen: list[Axis] = list(site.axes(1))
        site.give(0, [*axes[:at], *chosen, *axes[at + 1 :]])
        return
    if isinstance(whole, Fixed):
        chosen = [Fixed(s, whole.why if s > 1 else ONE) for s in shape]
    elif len(shape) == 0:
        place = int(values) % whole.size
        site.freeze(whole[place : place + 1], "selected by itself")
        if place:
            site.resize(1, 0, whole[:place])  # its index is the number of slots that survive before it
        chosen = []
    elif len(shape) == 1:
        chosen = [site.take(at, values.astype(np.int64) % whole.size)]
    else:
        site.freeze(whole, "selected into a grid")
        chosen = [site.fixed(s, "selected into a grid") for s in shape]
    site.mention(whole)
    site.give(0, [*axes[:at], *chosen, *axes[at + 1 :]])


@rule("GatherElements")
def gather_elements(site: Site) -> None:
    """y[i, j] = x[indices[i, j], j]: the selected axis stays, the others are tied where the sizes agree."""
    axes, indices = site.axes(0), site.axes(1)
    at = int(site.attribute("axis", 0)) % len(axes)
    result: list[Axis] = []
    for k, (data, index) in enumerate(zip(axes, indices, strict=True)):
        if k == at:
            if not positions.follow(site, 1, data):
                site.freeze(data, "selected by data")
            result.append(index)
        elif data.size == index.size:
            site.tie(data, index)
            result.append(index if isinstance(data, Fixed) else data)
        else:
            site.freeze(data, "cut short by a smaller index")
            site.freeze(index, "cut short by a smaller index")
            result.append(Fixed(index.size, ONE) if index.size == 1 else site.fixed(index.size, "cut short"))
    site.give(0, result)


@rule("GatherND", "com.microsoft::GatherND")
def gather_nd(site: Site) -> None:
    """y[i..., rest] = x[indices[i...], rest]: the leading axes are selected by data, the trailing ones pass through."""
    axes, indices = site.axes(0), site.axes(1)
    batch = int(site.attribute("batch_dims", 0))
    depth = batch + indices[-1].size
    for a, b in zip(axes[:batch], indices[:batch], strict=True):
        site.tie(a, b)
    if depth - batch != 1 or not positions.follow(site, 1, axes[batch]):
        for axis in axes[batch:depth]:
            site.freeze(axis, "selected by data")
    site.freeze(indices[-1], "selected by data")
    site.give(0, [*indices[:-1], *axes[depth:]])


@rule("ScatterElements", "Scatter")
def scatter(site: Site) -> None:
    """Y = x, then y[indices[i, j], j] = updates[i, j]: the axis written by index stays, the others are tied.

    An axis of which the indices cover a part stays too.
    """
    axes, indices, updates = site.axes(0), site.axes(1), site.axes(2)
    at = int(site.attribute("axis", 0)) % len(axes)
    for k, (data, index, update) in enumerate(zip(axes, indices, updates, strict=True)):
        if k == at or data.size != index.size:
            for axis in (data, index, update):
                site.freeze(axis, "written by index")
        else:
            site.tie(data, index)
            site.tie(data, update)
    site.give(0, axes)


@rule("ScatterND")
def scatter_nd(site: Site) -> None:
    """Y = x, then y[indices[i...], rest] = updates[i..., rest]: leading axes are written by index, the rest is tied."""
    axes, indices, updates = site.axes(0), site.axes(1), site.axes(2)
    depth = indices[-1].size
    for axis in (*axes[:depth], *indices, *updates[: len(indices) - 1]):
        site.freeze(axis, "written by index")
    for own, update in zip(axes[depth:], updates[len(indices) - 1 :], strict=True):
        site.tie(own, update)
    site.give(0, axes)


@rule("TensorScatter")
def tensor_scatter(site: Site) -> None:
    """A cache into which a run of positions is written: the axis of positions stays, the others are tied."""
    axes, updates = site.axes(0), site.axes(1)
    at = int(site.attribute("axis", -2)) % len(axes)
    for k, (own, update) in enumerate(zip(axes, updates, strict=True)):
        if k == at:
            site.freeze(own, "written by index")
            site.freeze(update, "written by index")
        else:
            site.tie(own, update)
    if site.has(2):
        site.tie(site.axes(2)[0], axes[0])
    site.give(0, axes)


@rule("TopK")
def top_k(site: Site) -> None:
    """The k largest along one axis, and their positions.

    Where the positions are used, and used only to select from tables, slots of the axis may go: whole experts. As many
    as are taken have to be left.
    """
    axes = site.axes(0)
    at = int(site.attribute("axis", -1)) % len(axes)
    whole, taken = axes[at], site.out_shape(0)[at]
    why = "order along the axis of TopK"
    if site.has_output(1) and site.graph.users.get(site.node.outputs[1]):
        positions.count(site, 1, whole)
        site.role("expert", whole)
        if not isinstance(whole, Fixed):
            site.freeze(whole[: taken - 1], f"TopK takes {taken} of them")
        site.mention(whole)
    else:
        site.freeze(whole, why)
    for o in range(2):
        if site.has_output(o):
            site.give(o, [site.fixed(taken, why) if k == at else a for k, a in enumerate(axes)])


@rule("Hardmax", "CumProd")
def along_axis(site: Site) -> None:
    """Depends on the positions along one axis, which stays; the others pass through."""
    axes = list(site.axes(0))
    default = 1 if site.node.op == "Hardmax" and site.opset < 13 else -1
    at = int(site.attribute("axis", default)) % len(axes)
    if site.node.op == "CumProd":
        position = site.integers(1)
        if not position:
            raise SlotError("the axis is known only at run time")
        at = position[0] % len(axes)
    later = range(at, len(axes)) if site.node.op == "Hardmax" and site.opset < 13 else (at,)
    for o in range(len(site.node.outputs)):
        if not site.has_output(o):
            continue
        out = site.out_shape(o)
        result = list(axes)
        for k in later:
            site.freeze(axes[k], f"order along the axis of {site.node.op}")
            result[k] = site.fixed(out[k], f"order along the axis of {site.node.op}")
        site.give(o, result)


@rule("CumSum")
def cumsum(site: Site) -> None:
    """y[i] = sum of x[j] for j <= i: a removed slot adds nothing to those that stay."""
    position = site.integers(1)
    if not position:
        raise SlotError("the axis is known only at run time")
    site.give(0, site.axes(0))


@rule("OneHot")
def one_hot(site: Site) -> None:
    """A new axis counts the classes; it stays."""
    axes = site.axes(0)
    out = site.out_shape(0)
    at = int(site.attribute("axis", -1)) % len(out)
    result = [site.fixed(out[at], "classes of OneHot") if k == at else axes[k - (k > at)] for k in range(len(out))]
    site.give(0, result)


@rule("Trilu", "ReverseSequence")
def positional(site: Site) -> None:
    """Depends on positions along two axes, which stay; the others pass through."""
    axes = site.axes(0)
    if site.node.op == "Trilu":
        fixed = {len(axes) - 2, len(axes) - 1}
    else:
        fixed = {int(site.attribute("batch_axis", 1)), int(site.attribute("time_axis", 0))}
    for k in fixed:
        site.freeze(axes[k], f"position along an axis of {site.node.op}")
    site.give(0, axes)
