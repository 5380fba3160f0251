"""Normalisations: statistics over the slots that stay.

They are taken in 32 bits at least, as the standard has it (``stash_type``) and runtimes do: an epsilon of 1e-12 is zero
in 16, and squares overflow. MeanVarianceNormalization alone is a function of operators in its own type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from exporter.gates.masker import Cut, Masker, gate, mask_of

_AFFINE_PER_CHANNEL_OPSET = 21


def normalise(
    masker: Masker, node: gs.Node, axes: Sequence[int], affine: Sequence[gs.Tensor], centred: bool = True
) -> bool:
    """Replace a normalisation over cut axes by one over the slots that stay."""
    cut = _cut_along(masker, node, axes)
    if not cut:
        return True
    value, mean, _, deviation = _normalised(masker, node, axes, affine, cut, centred)
    results = [value, *((mean, masker.op("Reciprocal", [deviation])) if mean is not None else ())]
    _give(masker, node, results)
    return False


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that statistics of a type are taken in."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def _cut_along(masker: Masker, node: gs.Node, axes: Sequence[int]) -> Cut:
    rank = masker.rank(node.inputs[0])
    return {a: t for a, t in masker.cut_of(node, 0).items() if a in {k % rank for k in axes}}


def _normalised(
    masker: Masker, node: gs.Node, axes: Sequence[int], affine: Sequence[gs.Tensor], cut: Cut, centred: bool = True
) -> tuple[gs.Tensor, gs.Tensor | None, gs.Tensor, gs.Tensor]:
    """The first input normalised over some axes, mean (None if not centred), variance and deviation: of kept slots.

    The last three are in the type of the statistics.
    """
    rank = masker.rank(node.inputs[0])
    share = math.prod(len(t.keep) / t.size for t in cut.values())
    own = masker.dtype(node.inputs[0])
    dtype = own if node.op == "MeanVarianceNormalization" else _wide(own)
    x = masker.cast(node.inputs[0], own, dtype)
    rescale = masker.constant(np.array(1 / share, dtype))

    def hidden(value: gs.Tensor) -> gs.Tensor:
        for axis, take in cut.items():
            value = masker.gated(value, dtype, mask_of(take, axis, rank))
        return value

    value, mean = hidden(x), None
    if centred:
        mean = masker.op("Mul", [masker.mean(value, axes), rescale])
        value = hidden(masker.op("Sub", [x, mean]))
    square = masker.op("Mul", [value, value])
    variance = masker.op("Mul", [masker.mean(square, axes), rescale])
    epsilon = masker.constant(np.array(node.attrs.get("epsilon", 1e-5), dtype))
    deviation = masker.op("Sqrt", [masker.op("Add", [variance, epsilon])])
    value = masker.cast(masker.op("Div", [value, deviation]), dtype, own)
    for op, tensor in zip(("Mul", "Add"), affine, strict=False):
        value = masker.op(op, [value, tensor])
    return value, mean, variance, deviation


def _give(masker: Masker, node: gs.Node, results: Sequence[gs.Tensor]) -> None:
    """Let results stand for the outputs of a node that goes, in the types of these."""
    for result, output in zip(results, node.outputs, strict=False):
        if output.name:
            to = masker.source.inferred.dtype[output.name]
            masker.nodes.append(gs.Node("Cast", masker.fresh(), {"to": to}, [result], [output]))


@gate("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_norm(masker: Masker, node: gs.Node) -> bool:
    rank = masker.rank(node.inputs[0])
    axes = list(range(int(node.attrs.get("axis", -1)) % rank, rank))
    affine = [t for t in node.inputs[1:3] if t.name]
    return normalise(masker, node, axes, affine, node.op == "LayerNormalization")


@gate("BatchNormalization")
def _batch_norm(masker: Masker, node: gs.Node) -> bool:
    """In training mode statistics are over all axes but that of the channels, and enter the running ones."""
    rank = masker.rank(node.inputs[0])
    axes = [k for k in range(rank) if k != 1]
    cut = _cut_along(masker, node, axes)
    if not node.attrs.get("training_mode", 0) or not cut:
        return True
    to = masker.constant(np.array([-1] + [1] * (rank - 2), np.int64))
    affine = [masker.op("Reshape", [t, to]) for t in node.inputs[1:3]]
    value, mean, variance, _ = _normalised(masker, node, axes, affine, cut)
    momentum = float(node.attrs.get("momentum", 0.9))
    results = [value]
    wide = _wide(masker.dtype(node.inputs[0]))
    for before, now in zip(node.inputs[3:5], (mean, variance), strict=True):
        dtype = masker.dtype(before)
        flat = masker.op("Reshape", [now, masker.constant(np.array([-1], np.int64))])
        flat = masker.cast(flat, wide, dtype)
        shares = (momentum, 1 - momentum)
        parts = [
            masker.op("Mul", [t, masker.constant(np.array(f, dtype))])
            for t, f in zip((before, flat), shares, strict=True)
        ]
        results.append(masker.op("Add", parts))
    _give(masker, node, results)
    return False


@gate("InstanceNormalization")
def _instance_norm(masker: Masker, node: gs.Node) -> bool:
    rank = masker.rank(node.inputs[0])
    if not any(a >= 2 for a in masker.cut_of(node, 0)):
        return True
    to = masker.constant(np.array([-1] + [1] * (rank - 2), np.int64))
    affine = [masker.op("Reshape", [t, to]) for t in node.inputs[1:3]]
    return normalise(masker, node, list(range(2, rank)), affine)


@gate("MeanVarianceNormalization")
def _mean_variance(masker: Masker, node: gs.Node) -> bool:
    node.attrs["epsilon"] = 1e-9
    stays = normalise(masker, node, list(node.attrs.get("axes", [0, 2, 3])), [])
    del node.attrs["epsilon"]
    return stays


@gate("GroupNormalization")
def _group_norm(masker: Masker, node: gs.Node) -> bool:
    """Statistics of each group over its slots that stay; a group that is hidden whole keeps its own."""
    cut = masker.cut_of(node, 0).get(1)
    if cut is None:
        return True
    x, scale, bias = node.inputs[:3]
    groups = int(node.attrs["num_groups"])
    inner = cut.size // groups
    mask = np.isin(np.arange(cut.size), cut.keep).reshape(groups, inner)
    mask[~mask.any(1)] = True
    own = masker.dtype(x)
    dtype = _wide(own)
    rescale = masker.constant((inner / mask.sum(1)).astype(dtype).reshape(1, groups, 1, 1))
    gate = mask.reshape(groups, inner, 1)
    apart = masker.op("Reshape", [x, masker.constant(np.array([0, groups, inner, -1], np.int64))])
    apart = masker.cast(apart, own, dtype)
    mean = masker.op("Mul", [masker.mean(masker.gated(apart, dtype, gate), [2, 3]), rescale])
    value = masker.gated(masker.op("Sub", [apart, mean]), dtype, gate)
    square = masker.op("Mul", [value, value])
    variance = masker.op("Mul", [masker.mean(square, [2, 3]), rescale])
    epsilon = masker.constant(np.array(node.attrs.get("epsilon", 1e-5), dtype))
    value = masker.op("Div", [value, masker.op("Sqrt", [masker.op("Add", [variance, epsilon])])])
    value = masker.cast(value, dtype, own)
    per_channel = masker.opset >= _AFFINE_PER_CHANNEL_OPSET
    to = masker.constant(np.array([groups, inner if per_channel else 1, 1], np.int64))
    value = masker.op("Mul", [value, masker.op("Reshape", [scale, to])])
    value = masker.op("Add", [value, masker.op("Reshape", [bias, to])])
    shape = masker.op("Shape", [x])
    masker.nodes.append(gs.Node("Reshape", masker.fresh(), {}, [value, shape], [node.outputs[0]]))
    return False
