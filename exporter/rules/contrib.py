"""Operators ONNX Runtime's optimisers write (``com.microsoft``): fused norms, matrix products, experts."""

from __future__ import annotations

from exporter.rules.elementwise import broadcast
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed, SlotError


@rule("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
def skip_layer_norm(site: Site) -> None:
    """Y = g normalise over the last axis (x + skip + bias) + b: all are tied; statistics are of the slots that stay."""
    axes = site.axes(0)
    for i in range(1, len(site.node.inputs)):
        if site.has(i):
            own = site.axes(i)
            for a, b in zip(axes[len(axes) - len(own) :], own, strict=True):
                if b.size == a.size:
                    site.tie(a, b)
                else:
                    site.mention(b)
    site.give(0, axes)
    if site.has_output(3):
        site.give(3, axes)


@rule("com.microsoft::EmbedLayerNormalization", "com.microsoft::QEmbedLayerNormalization")
def embed_layer_norm(site: Site) -> None:
    """Y = g normalise(word + position + segment) + b: the width of the tables is free, their rows stay."""
    tokens, word = site.axes(0), site.axes(2)
    width = word[1]
    for i in (2, 3, 4):
        if site.has(i):
            table = site.axes(i)
            site.freeze(table[0], "selected by data", "vocabulary and table rows stay unless opted in")
            site.tie(table[1], width)
    for i in (5, 6):
        site.tie(site.axes(i)[0], width)
    site.give(0, [*tokens, width])
    if site.has_output(2):  # not of the quantized form
        site.give(2, [*tokens, width])


@rule("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def fused_matmul(site: Site) -> None:
    """Y = alpha a b with either operand transposed in its last two axes, or its first behind the other batch axes."""
    a, rows = _operand(site, 0, "A")
    b, columns = _operand(site, 1, "B")
    site.tie(a[-1], b[-2])
    site.contract(0, rows)
    site.contract(1, columns)
    out = site.out_shape(0)
    batch = broadcast(site, [a[:-2], b[:-2]], out[:-2])
    if not site.from_constant(0) and not site.from_constant(1):
        for axis in batch:
            site.role("batch", axis)
        for axis in (a[-1], a[-2], b[-1]):
            site.role("inner", axis)
    site.give(0, [*batch, a[-2], b[-1]])
    site.work(1, *batch, a[-2], a[-1], b[-1])


def _operand(site: Site, i: int, side: str) -> tuple[list[Axis], int]:
    """Axes of an operand as they are multiplied, and which of its own axes is summed over."""
    axes = site.axes(i)
    if len(axes) < 2:
        raise SlotError("a vector operand")
    order = list(range(len(axes)))
    if site.attribute(f"transBatch{side}", 0):
        order = [*order[1:-1], order[0], order[-1]]
    if site.attribute(f"trans{side}", 0):
        order[-2:] = order[:-3:-1]
    return [axes[k] for k in order], order[-1] if side == "A" else order[-2]


@rule("com.microsoft::MoE")
def experts(site: Site) -> None:
    """Y = sum over chosen experts e of p[e] w2[e] f(w1[e] x): the width inside the experts and that of x are free.

    Where w1 holds the gate of a SwiGLU too, its rows are (width, 2) or (2, width). All experts stay, as data choose
    among them.
    """
    if site.has(6):
        raise SlotError("ONNX Runtime runs experts of three matrices on no CPU, so a cut could not be proved")
    x, first, second = site.axes(0), site.axes(2), site.axes(4)
    for i in range(1, 6):
        if site.has(i):
            site.freeze(site.axes(i)[-1 if i == 1 else 0], "experts are chosen by data")
    site.tie(x[-1], first[2])
    site.contract(0, len(x) - 1)
    site.contract(2, 2)
    site.contract(4, 2)
    for i, at in ((2, 1), (3, 1)):
        if site.has(i):
            site.tie(_inside(site, site.axes(i)[at], second[2].size), second[2])
    if site.has(5):
        site.tie(site.axes(5)[1], second[1])
    site.give(0, [*x[:-1], second[1]])
    chosen = int(site.attribute("k", 1))
    site.work(chosen, *x[:-1], first[1], first[2])
    site.work(chosen, *x[:-1], second[1], second[2])


def _inside(site: Site, axis: Axis, width: int) -> Axis:
    """The width inside an expert, of an axis that may hold it twice."""
    if axis.size == width:
        return axis
    parts = site.split(axis, [width, 2] if site.attribute("swiglu_fusion", 0) == 1 else [2, width])
    double, inner = (parts[1], parts[0]) if site.attribute("swiglu_fusion", 0) == 1 else (parts[0], parts[1])
    site.freeze(double, "the two halves of a SwiGLU")
    return inner


@rule("com.microsoft::Trilu")
def trilu(site: Site) -> None:
    """Depends on positions along the last two axes, which stay; the others pass through."""
    axes = site.axes(0)
    for axis in axes[-2:]:
        site.freeze(axis, "position along an axis of Trilu")
    site.give(0, axes)


@rule("com.microsoft::ExpandDims")
def expand_dims(site: Site) -> None:
    """An axis of size one comes."""
    added = site.integers(1)
    if not added:
        raise SlotError("the axis is known only at run time")
    axes = site.axes(0)
    at = added[0] % (len(axes) + 1)
    site.give(0, [*axes[:at], Fixed(1, ONE), *axes[at:]])
