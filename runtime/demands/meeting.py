"""Operators in which an axis of a tensor meets one of a weight: convolutions, products, norms, recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.demands.facts import Dims, Node, broadcast, fixed, follows, known
from runtime.demands.terms import Extent, minus, over, plus, times


def window(node: Node, size: Extent, axis: int, kernel: int) -> Extent:
    """What a window that moves along a spatial axis leaves of it.

    ``(size + pads - dilation (kernel - 1) - 1) // stride + 1``, rounded up with ``ceil_mode``.
    """
    stride, dilation, pads = (_along(node, name, axis) for name in ("strides", "dilations", "pads"))
    auto = bytes(node.attributes.get("auto_pad", b"NOTSET"))
    reach = dilation * (kernel - 1) + 1
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        return over(plus(size, stride - 1), stride)
    added = 0 if auto == b"VALID" else pads
    rounded = stride - 1 if node.attributes.get("ceil_mode") else 0
    return plus(over(plus(size, added - reach + rounded), stride), 1)


def _along(node: Node, name: str, axis: int) -> int:
    """What an attribute says of a spatial axis; both pads together."""
    values = node.attributes.get(name)
    if name == "pads":
        return 0 if not values else values[axis] + values[len(values) // 2 + axis]
    return int(values[axis]) if values else 1


def _spatial(node: Node, weight: int) -> list[int]:
    return [fixed(size) for size in node.attributes.get("kernel_shape") or known(node.dims(weight))[2:]]


@follows("Conv", "FusedConv", "ConvInteger", "QLinearConv")
def convolution(node: Node) -> Sequence[Dims]:
    """Input [N, group C, ...], weight [M, C, ...]."""
    if node.attributes.get("channels_last"):
        return []
    weight = 3 if node.proto.op_type == "QLinearConv" else 1
    node.facts.ask((node.axis(0, 1), times(node.axis(weight, 1), node.attributes.get("group", 1))))
    batch, _, *sizes = known(node.dims())
    kernel = _spatial(node, weight)
    moved = [window(node, size, k, kernel[k]) for k, size in enumerate(sizes)]
    return [(batch, node.axis(weight, 0), *moved)]


@follows("ConvTranspose")
def transposed_convolution(node: Node) -> Sequence[Dims]:
    """Input [N, C, ...], weight [C, M / group, ...]."""
    node.facts.ask((node.axis(0, 1), node.axis(1, 0)))
    batch, _, *sizes = known(node.dims())
    given = "output_shape" in node.attributes or node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
    more, kernel, moved = node.attributes.get("output_padding"), _spatial(node, 1), list[Extent]()
    for k, size in enumerate(sizes):
        stride, dilation, pads = (_along(node, name, k) for name in ("strides", "dilations", "pads"))
        reach = dilation * (kernel[k] - 1) + 1 + (more[k] if more else 0)
        moved.append(None if given else plus(times(minus(size, 1), stride), reach - pads))
    return [(batch, times(node.axis(1, 1), node.attributes.get("group", 1)), *moved)]


@follows("MaxPool", "AveragePool", "LpPool", "NhwcMaxPool", "QLinearAveragePool")
def pooling(node: Node) -> Sequence[Dims]:
    """A window over every spatial axis."""
    if node.proto.op_type == "NhwcMaxPool" or node.attributes.get("channels_last"):
        return []
    batch, channels, *sizes = known(node.dims())
    kernel = _spatial(node, 0)
    found = (batch, channels, *(window(node, size, k, kernel[k]) for k, size in enumerate(sizes)))
    return [found, found]


@follows("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "QLinearGlobalAveragePool")
def global_pooling(node: Node) -> Sequence[Dims]:
    """[N, C, 1, ...]."""
    if node.attributes.get("channels_last"):
        return []
    batch, channels, *sizes = known(node.dims())
    return [(batch, channels, *(1 for _ in sizes))]


@follows("MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
def product_of_matrices(node: Node) -> Sequence[Dims]:
    """[..., M, K] times [..., K, N]; a vector has no M, or no N."""
    if node.attributes.get("transBatchA") or node.attributes.get("transBatchB"):
        return []
    left, right = node.dims(), node.dims(3 if node.proto.op_type == "QLinearMatMul" else 1)
    if left is None or right is None:  # the inner axis of one is not known; ask nothing
        return []
    if len(left) > 1 and node.attributes.get("transA"):
        left = (*left[:-2], left[-1], left[-2])
    if len(right) > 1 and node.attributes.get("transB"):
        right = (*right[:-2], right[-1], right[-2])
    node.facts.ask((left[-1], right[-2] if len(right) > 1 else right[0]))
    outer = known(broadcast(node.facts, left[:-2], right[:-2]))
    return [(*outer, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))]


@follows("Gemm", "FusedGemm")
def product_and_sum(node: Node) -> Sequence[Dims]:
    """[M, K] times [K, N], either of them transposed, plus what broadcasts."""
    (m, k), (inner, n) = (
        known(node.dims(place))[:: -1 if node.attributes.get(name) else 1]
        for place, name in ((0, "transA"), (1, "transB"))
    )
    node.facts.ask((k, inner))
    return [(m, n)]


@follows("MatMulNBits", "MatMulBnb4")
def product_with_packed(node: Node) -> Sequence[Dims]:
    """[..., K] times a weight of K N numbers in a few bits each."""
    node.facts.ask((node.axis(0, -1), node.attributes["K"]))
    return [(*known(node.dims())[:-1], node.attributes["N"])]


@follows("BatchNormalization", "InstanceNormalization", "GroupNormalization")
def norm_of_channels(node: Node) -> Sequence[Dims]:
    """One factor for each channel (for each group of them, before opset 21)."""
    if node.proto.op_type != "GroupNormalization":
        node.facts.ask((node.axis(0, 1), node.axis(1, 0)))
    return [node.dims()]


@follows("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
def norm_of_last(node: Node) -> Sequence[Dims]:
    """Factors broadcast to the input."""
    scale = node.dims(1)
    return [broadcast(node.facts, node.dims(), scale) if scale is not None else node.dims()]


@follows("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def norm_of_sum(node: Node) -> Sequence[Dims]:
    """Two tensors are added, and the sum normalised; it is the fourth output."""
    node.facts.ask((node.axis(0, -1), node.axis(2, 0)))
    found = node.dims() or node.dims(1)
    return [found, None, None, found]


@follows("LSTM", "GRU", "RNN")
def recurrent(node: Node) -> Sequence[Dims]:
    """X [T, B, I], W [directions, gates H, I], R [directions, gates H, H], states [directions, B, H]."""
    directions, hidden, across = node.axis(1, 0), node.axis(2, 2), node.attributes.get("layout", 0)
    node.facts.ask((node.axis(0, -1), node.axis(1, 2)))
    batch, length = node.axis(0, 0 if across else 1), node.axis(0, 1 if across else 0)
    for place in (5, 6):
        node.facts.ask((node.axis(place, 0 if across else 1), batch))
        node.facts.ask((node.axis(place, 2), hidden))
    state = (batch, directions, hidden) if across else (directions, batch, hidden)
    return [(batch, length, directions, hidden) if across else (length, directions, batch, hidden), state, state]
