"""Quantized operators of ONNX Runtime (``com.microsoft``): codes are cut like the numbers they stand for.

Scales and zero points are one number, or one per slot of an axis. Where several slots share one (a block along the
summed axis), or one byte, they go together.
"""

from __future__ import annotations

import math

from exporter.rules.elementwise import broadcast
from exporter.rules.movement import join
from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis, SlotError

_BYTE = 8


@rule("com.microsoft::QLinearAdd", "com.microsoft::QLinearMul", "com.microsoft::QLinearWhere")
def n_ary(site: Site) -> None:
    """y[i] = f(a[i], b[i]) on codes, with broadcasting: the operands' slots are tied."""
    operands = (0, 1, 4) if site.node.op.endswith("Where") else (0, 3)
    site.give(0, broadcast(site, [site.axes(i) for i in operands], site.out_shape(0)))


@rule("com.microsoft::QLinearSigmoid", "com.microsoft::QLinearLeakyRelu")
def unary(site: Site) -> None:
    """y[i] = f(x[i]) on codes."""
    site.give(0, site.axes(0))


@rule("com.microsoft::QLinearSoftmax")
def softmax(site: Site) -> None:
    """Every output depends on the whole axis, which stays; before operator set 13 on all axes from it on."""
    axes = site.axes(0)
    old = int(site.attribute("opset")) < 13
    at = int(site.attribute("axis", -1)) % len(axes)
    for k in range(at, len(axes)) if old else (at,):
        site.freeze(axes[k], "axis of Softmax")
    site.give(0, axes)


@rule("com.microsoft::QLinearConcat")
def concat(site: Site) -> None:
    """Along its axis the operands' slots follow each other; along the others they are tied."""
    join(site, [site.axes(i) for i in range(2, len(site.node.inputs), 3)])


@rule("com.microsoft::QLinearAveragePool", "com.microsoft::QLinearGlobalAveragePool", "com.microsoft::NhwcMaxPool")
def pool(site: Site) -> None:
    """y[n, c] depends on x[n, c] alone; channels come second, or last."""
    axes, out = site.axes(0), site.out_shape(0)
    channels = _channels(site, len(axes))
    result: list[Axis] = []
    for k, axis in enumerate(axes):
        if k not in (0, channels):
            site.freeze(axis, "spatial axis")
        result.append(axis if k in (0, channels) else site.fixed(out[k], "spatial axis"))
    site.give(0, result)


def _channels(site: Site, rank: int) -> int:
    return rank - 1 if site.attribute("channels_last", 0) or site.node.op.endswith("NhwcMaxPool") else 1


@rule("com.microsoft::QLinearConv")
def conv(site: Site) -> None:
    """As QLinearConv of the standard, with x's channels second or last; w's axes stand as they do there."""
    x, w, out = site.axes(0), site.axes(3), site.out_shape(0)
    channels = _channels(site, len(x))
    groups = int(site.attribute("group", 1))
    for axis in w[2:]:
        site.freeze(axis, "kernel window")
    if groups == 1:
        site.tie(x[channels], w[1])
    else:
        group, inner = site.split(x[channels], [groups, x[channels].size // groups])
        outer, _ = site.split(w[0], [groups, w[0].size // groups])
        site.tie(group, outer)
        site.tie(inner, w[1])
        site.role("conv_group", group)
        site.resize_attribute("group", group)
    site.contract(0, channels)
    site.contract(3, 1)
    _per_column(site, (4, 5, 8), w[0])
    result: list[Axis] = []
    for k, axis in enumerate(x):
        if k == channels:
            result.append(w[0])
        elif k == 0:
            result.append(axis)
        else:
            site.freeze(axis, "spatial axis")
            result.append(site.fixed(out[k], "spatial axis"))
    site.give(0, result)
    area = math.prod(n for k, n in enumerate(out) if k not in (0, channels))
    site.work(area * math.prod(a.size for a in w[2:]), x[0], w[0], w[1])


def _per_column(site: Site, inputs: tuple[int, ...], columns: Axis) -> None:
    """Tie scales, zero points and biases that have one entry per output column."""
    for i in inputs:
        if site.has(i) and site.shape(i) and site.shape(i)[-1] == columns.size:
            site.tie(site.axes(i)[-1], columns)


@rule("com.microsoft::QGemm")
def gemm(site: Site) -> None:
    """y[m, n] = sum over k of a[m, k] b[k, n] + c[m, n], on codes."""
    a, b = site.axes(0), site.axes(3)
    left, right = int(bool(site.attribute("transA", 0))), int(bool(site.attribute("transB", 0)))
    m, k, n = a[left], a[1 - left], b[1 - right]
    site.tie(k, b[right])
    site.contract(0, 1 - left)
    site.contract(3, right)
    _per_column(site, (4, 5), n)
    result = [m, n]
    if site.has(6):
        result = broadcast(site, [result, site.axes(6)], site.out_shape(0))
    site.give(0, result)
    site.work(1, m, k, n)


@rule("com.microsoft::MatMulIntegerToFloat", "com.microsoft::DynamicQuantizeMatMul")
def matmul(site: Site) -> None:
    """y[..., n] = sum over k of a[..., k] b[k, n] + c[n], with b in codes and a in codes or made into them."""
    a, b = site.axes(0), site.axes(1)
    if len(b) != 2 or not a:
        raise SlotError("a second operand that is no matrix")
    to_float = site.node.op.endswith("ToFloat")
    site.tie(a[-1], b[0])
    site.contract(0, len(a) - 1)
    site.contract(1, 0)
    if to_float:
        for i in (2, 4):
            if site.has(i) and math.prod(site.shape(i)) > 1:
                raise SlotError("scales per row")
    _per_column(site, (3, 5, 6) if to_float else (2, 3, 4), b[1])
    site.give(0, [*a[:-1], b[1]])
    site.work(1, *a, b[1])


@rule("com.microsoft::MatMulNBits")
def matmul_nbits(site: Site) -> None:
    """y[..., n] = sum over k of a[..., k] w[n, k]: columns n are free, k goes in whole blocks that share a scale.

    Where zero points of several blocks share a byte, these go together.
    """
    a, codes = site.axes(0), site.axes(1)
    columns, bits, block = codes[0], int(site.attribute("bits", 4)), int(site.attribute("block_size"))
    width, count = a[-1], codes[1].size
    if site.attribute("weight_prepacked", 0):
        raise SlotError("weights packed for one device")
    blocks = _blocks(site, width, count, block)
    site.tie(blocks, codes[1])
    site.freeze(codes[2], "codes of one block")
    site.contract(0, len(a) - 1)
    site.contract(1, 1)
    site.resize_attribute("N", columns)
    site.resize_attribute("K", width)
    for i in (2, 3):
        if site.has(i):
            _grid(site, i, columns, blocks, bits)
    if site.has(4):
        site.freeze(site.axes(4)[0], "positions of blocks")
        site.freeze(width, "positions of blocks")
    if site.has(5):
        site.tie(site.axes(5)[0], columns)
    site.give(0, [*a[:-1], columns])
    site.work(1, *a, columns)


def _blocks(site: Site, axis: Axis, count: int, block: int) -> Axis:
    """Blocks of an axis, whose slots go together; where the last block is not full, all stay."""
    if axis.size != count * block:
        site.freeze(axis, "the last block of a quantized axis is not full")
        return site.fixed(count, "the last block of a quantized axis is not full")
    blocks, inner = site.split(axis, [count, block])
    site.freeze(inner, "a block of quantized weights")
    return blocks


def _grid(site: Site, i: int, columns: Axis, blocks: Axis, bits: int) -> None:
    """Scales or zero points per column and block: as a matrix or in one row, the latter packed into bytes or not."""
    axes = site.axes(i)
    total = math.prod(a.size for a in axes)
    per_column = total // columns.size
    if total != per_column * columns.size:
        raise SlotError("scales that do not fit the blocks")
    rows, packed = (axes[0], axes[1]) if len(axes) == 2 else site.split(axes[0], [columns.size, per_column])
    site.tie(rows, columns)
    if per_column == blocks.size:
        site.tie(packed, blocks)
        return
    shared = _BYTE // bits
    if per_column * shared != blocks.size:
        site.freeze(packed, "zero points of several blocks in a byte that is not full")
        site.freeze(blocks, "zero points of several blocks in a byte that is not full")
        return
    bytes_, inner = site.split(blocks, [per_column, shared])
    site.tie(packed, bytes_)
    site.freeze(inner, "zero points that share a byte")


@rule("com.microsoft::GatherBlockQuantized")
def gather(site: Site) -> None:
    """Rows of a quantized table, selected by data: its width is free in whole blocks that share a scale."""
    table, indices, scales = site.axes(0), site.axes(1), site.axes(2)
    rank = len(table)
    at = int(site.attribute("gather_axis", 0)) % rank
    along = int(site.attribute("quantize_axis", 1)) % rank
    block = int(site.attribute("block_size", 128))
    width = site.out_shape(0)[-1]
    if at == along or rank != 2 or at != 0 or not block:
        raise SlotError("a table that is not quantized along its rows")
    shared = width // table[1].size  # numbers in one byte
    if block % shared:
        raise SlotError("blocks that share a byte")
    blocks = _blocks(site, table[1], scales[1].size, block // shared)
    site.tie(blocks, scales[1])
    site.freeze(table[0], "selected by data", "vocabulary and table rows stay unless opted in")
    site.freeze(scales[0], "selected by data")
    if site.has(3):
        points = site.axes(3)
        site.freeze(points[0], "selected by data")
        if points[1].size == blocks.size:
            site.tie(points[1], blocks)
        else:
            bytes_, inner = site.split(blocks, [points[1].size, blocks.size // points[1].size])
            site.tie(points[1], bytes_)
            site.freeze(inner, "zero points that share a byte")
    site.give(0, [*indices, site.merge([blocks, site.fixed(block, "a block of quantized weights")])])
