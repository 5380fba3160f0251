"""Operators that multiply and sum: the summed axis of both operands is tied, and ends there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exporter.rules.elementwise import broadcast
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed, SlotError


@rule("Conv", "ConvInteger", "QLinearConv", "DeformConv", "com.microsoft::FusedConv")
def conv(site: Site) -> None:
    """y[n, o, s] = sum over c, k of w[o, c, k] x[n, c, s + k] + b[o]: c is tied in x and w and ends here, k and s stay.

    With g groups, x's channel axis is (g, c), w's first axis and y's channel axis are (g, o). Scales, zero points and
    biases with one entry per output channel are tied to w's first axis.
    """
    at = 3 if site.node.op == "QLinearConv" else 1
    x, w = site.axes(0), site.axes(at)
    groups = int(site.attribute("group", 1))
    for axis in w[2:]:
        site.freeze(axis, "kernel window")
    if groups == 1:
        site.tie(x[1], w[1])
    else:
        group, inner = _grouped(site, x[1], groups)
        outer, _ = _grouped(site, w[0], groups)
        site.tie(group, outer)
        site.tie(inner, w[1])
        site.resize_attribute("group", group)
    site.contract(0, 1)
    site.contract(at, 1)
    for i in _PER_OUTPUT[site.node.op]:
        if site.has(i) and site.shape(i) == (w[0].size,):
            site.tie(site.axes(i)[0], w[0])
    if site.node.op == "DeformConv":
        _offsets(site, x)
    if site.node.op == "com.microsoft::FusedConv" and site.has(3):  # the residual input z is added to y
        for k, axis in enumerate(site.axes(3)):
            if k == 1:
                site.tie(axis, w[0])
            else:
                site.freeze(axis, "spatial axis")
    out = site.out_shape(0)
    spatial = [site.fixed(s, "spatial axis") for s in out[2:]]
    for axis in x[2:]:
        site.freeze(axis, "spatial axis")
    site.give(0, [x[0], w[0], *spatial])
    site.work(math.prod(out[2:]) * math.prod(a.size for a in w[2:]), x[0], w[0], w[1])


_PER_OUTPUT = {
    "Conv": (2,),
    "ConvInteger": (3,),
    "QLinearConv": (4, 5, 8),
    "DeformConv": (3,),
    "com.microsoft::FusedConv": (2,),
}
"""Inputs of convolutions that hold one number per output channel, or one for all."""


def _grouped(site: Site, channels: Axis, groups: int) -> tuple[Axis, Axis]:
    outer, inner = site.split(channels, [groups, channels.size // groups])
    site.role("conv_group", outer)
    return outer, inner


def _offsets(site: Site, x: list[Axis]) -> None:
    """Offsets and mask of a DeformConv have axes (groups, window); each of these groups serves a run of channels."""
    groups = int(site.attribute("offset_group", 1))
    shared, _ = site.split(x[1], [groups, x[1].size // groups])
    site.resize_attribute("offset_group", shared)
    for i in (2, 4):
        if site.has(i):
            axes = site.axes(i)
            outer, window = site.split(axes[1], [groups, axes[1].size // groups])
            site.tie(outer, shared)
            site.tie(axes[0], x[0])
            for axis in (window, *axes[2:]):
                site.freeze(axis, "kernel window")


@rule("ConvTranspose")
def conv_transpose(site: Site) -> None:
    """y[n, o, s + k] += sum over c of w[c, o, k] x[n, c, s] + b[o]: c is tied in x and w and ends here, k and s stay.

    With g groups, x's channel axis and w's first axis are (g, c), y's channel axis is (g, o).
    """
    x, w = site.axes(0), site.axes(1)
    groups = int(site.attribute("group", 1))
    for axis in w[2:]:
        site.freeze(axis, "kernel window")
    for axis in x[2:]:
        site.freeze(axis, "spatial axis")
    site.tie(x[1], w[0])
    out_axis: Axis = w[1]
    if groups > 1:
        group, _ = _grouped(site, w[0], groups)
        site.mention(w[1])
        out_axis = site.merge([group, w[1]])
        site.resize_attribute("group", group)
    site.contract(0, 1)
    site.contract(1, 0)
    if site.has(2):
        site.tie(site.axes(2)[0], out_axis)
    out = site.out_shape(0)
    site.give(0, [x[0], out_axis, *(site.fixed(s, "spatial axis") for s in out[2:])])
    site.work(math.prod(site.shape(0)[2:]) * math.prod(site.shape(1)[2:]), x[0], w[0], w[1])


@rule("Gemm", "com.microsoft::FusedGemm")
def gemm(site: Site) -> None:
    """y[m, n] = sum over k of a[m, k] b[k, n] + c[m, n]: k is tied in a and b and ends here, m and n pass through."""
    a, b = site.axes(0), site.axes(1)
    left, right = int(bool(site.attribute("transA", 0))), int(bool(site.attribute("transB", 0)))
    m, k = a[left], a[1 - left]
    n = b[1 - right]
    site.tie(k, b[right])
    site.contract(0, 1 - left)
    site.contract(1, right)
    result = [m, n]
    if site.has(2):
        result = broadcast(site, [result, site.axes(2)], site.out_shape(0))
    site.give(0, result)
    site.work(1, m, k, n)


@rule("MatMul", "MatMulInteger", "QLinearMatMul")
def matmul(site: Site) -> None:
    """y[..., m, n] = sum over k of a[..., m, k] b[..., k, n]: k is tied in a and b and ends here.

    Leading axes are matched element by element. Where both operands are activations (attention), the leading axes are
    heads and k, m, n are inner axes. Scales and zero points of a may have one entry per row m, those of b one per
    column n.
    """
    second, per_row, per_column = _OPERANDS[site.node.op]
    if site.node.op == "QLinearMatMul" and any(math.prod(site.shape(i)) > 1 for i in (6, 7)):
        raise SlotError("a scale for each part of the result")
    a, b = list(site.axes(0)), list(site.axes(second))
    if not a or not b:
        raise SlotError("a scalar operand")
    row, column = len(a) == 1, len(b) == 1
    if row:
        a = [Fixed(1, ONE), *a]
    if column:
        b = [*b, Fixed(1, ONE)]
    m, k, n = a[-2], a[-1], b[-1]
    site.tie(k, b[-2])
    site.contract(0, len(site.axes(0)) - 1)
    site.contract(second, max(len(site.axes(second)) - 2, 0))
    out = list(site.out_shape(0))
    lead = len(out) - (not row) - (not column)
    batch = broadcast(site, [a[:-2], b[:-2]], out[:lead])
    if not site.from_constant(0) and not site.from_constant(second):
        for axis in batch:
            site.role("batch", axis)
        for axis in (k, m, n):
            site.role("inner", axis)
    for i in per_row:
        _along(site, i, [*a[:-1], Fixed(1, ONE)], m)
    for i in per_column:
        _along(site, i, [*b[:-2], Fixed(1, ONE), n], n)
    site.give(0, [*batch, *([] if row else [m]), *([] if column else [n])])
    site.work(1, *batch, m, k, n)


_OPERANDS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "MatMul": (1, (), ()),
    "MatMulInteger": (1, (2,), (3,)),
    "QLinearMatMul": (3, (1, 2), (4, 5)),
}
"""Where b is, and which inputs hold numbers per row of a or per column of b."""


def _along(site: Site, i: int, like: Sequence[Axis], line: Axis) -> None:
    """Tie scales or zero points to the rows or columns they are for: a vector, or of the operand's rank."""
    if not site.has(i):
        return
    own = site.axes(i)
    if len(own) == 1 and own[0].size == line.size:
        site.tie(own[0], line)
    elif len(own) == len(like):
        for axis, wide in zip(own, like, strict=True):
            if axis.size == wide.size:
                site.tie(axis, wide)


@rule("Einsum")
def einsum(site: Site) -> None:
    """Axes with the same letter are tied; letters missing from the result are summed over."""
    terms, result = _parse_einsum(str(site.attribute("equation", "")), [len(site.axes(i)) for i in _inputs(site)])
    letters: dict[str, Axis] = {}
    for i, term in zip(_inputs(site), terms, strict=True):
        for k, (letter, axis) in enumerate(zip(term, site.axes(i), strict=True)):
            if term.count(letter) > 1:
                site.freeze(axis, "diagonal of Einsum")
            known = letters.get(letter)
            site.mention(axis)
            if known is None or known.size == 1:
                letters[letter] = axis
            elif axis.size != 1:
                site.tie(known, axis)
            if letter not in result:
                site.contract(i, k)
    activations = [i for i in _inputs(site) if not site.from_constant(i)]
    if len(activations) > 1:
        for letter, axis in letters.items():
            everywhere = letter in result and all(letter in t for t in terms)
            site.role("batch" if everywhere else "inner", axis)
    site.give(0, [letters[c] for c in result])
    if len(terms) > 1:
        site.work(1, *letters.values())


def _inputs(site: Site) -> range:
    return range(len(site.node.inputs))


def _parse_einsum(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Terms and result of an equation, the ellipsis replaced by capital letters no term uses.

    Raises:
        SlotError: the equation does not fit the operands.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    if len(terms) != len(ranks):
        raise SlotError(f"equation '{equation}' does not fit its operands")
    dots = max((r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True) if "..." in t), default=0)
    if dots < 0 or dots > len(spare):
        raise SlotError(f"equation '{equation}' does not fit its operands")
    ellipsis = "".join(spare[:dots])
    full = []
    for term, rank in zip(terms, ranks, strict=True):
        own = rank - len(term.replace("...", ""))
        full.append(term.replace("...", ellipsis[dots - own :] if own else ""))
        if len(full[-1]) != rank:
            raise SlotError(f"equation '{equation}' does not fit its operands")
    if arrow:
        return full, right.replace("...", ellipsis)
    once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
    return full, (ellipsis if "..." in left else "") + "".join(once)
