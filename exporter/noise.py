"""How far tensors of a model move when weights and inputs are rounded otherwise: nothing finer can be told of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from exporter.graph import Graph
from exporter.masked import masked_original
from exporter.plan import Plan
from exporter.protos import all_nodes
from exporter.relative_difference import Array, difference, is_float
from exporter.rounding import given, hand_over
from exporter.sessions import open_own, run_own, with_outputs
from runtime import feeds

NOISE_FACTOR = 10.0
"""Differences up to so many times the noise may be rounding: sums have more of it than one for each weight."""

_DRAWS = 3
"""How often that is tried: where a result is all but divided by zero, most changes do little."""
_EXACT = {"ConstantOfShape": 0, "Expand": 1, "Pad": 1, "Pow": 1, "Range": 0, "Reshape": 1, "Resize": 1, "Slice": 1,
          "Tile": 1, "TopK": 1, "Upsample": 1}  # fmt: skip
"""Operators and the first of their inputs that mean what they are: sizes, and the power of a number below zero."""
_SMALL = 16
"""Elements of a constant up to which it may be there for such an input; weights are larger."""


def rounding_noise(
    graph: Graph,
    plan: Plan,
    codes: Sequence[str],
    scales: Mapping[str, float],
    want: Mapping[str, Array],
    feed: feeds.Feeds,
    inputs: bool = True,
) -> dict[str, float]:
    """How far tensors of the masked original move when its weights and inputs change by one in the last place.

    Some tensors are so ill-conditioned (a softmax over large scores, the outputs of a deep network) that the order of a
    sum changes them by more than a proof's tolerance.

    Args:
        graph: the dense graph.
        plan: what was carried out.
        codes: tensors that are handed over, see ``exporter.rounding``.
        scales: the signal of each tensor that is asked for.
        want: values of these, and of the codes, in the masked original.
        feed: its inputs.
        inputs: change these too, and try it several times; else weights alone, once.

    Returns:
        The largest difference of each tensor of ``scales``, relative to its signal.
    """

    def make() -> onnx.ModelProto:
        model = masked_original(graph, plan)
        hand_over(model, codes, graph)
        return model

    handed = given({name: want[name] for name in codes})
    return noise_of(make, "the masked original", scales, want, feed, handed, inputs)


def noise_of(
    make: Callable[[], onnx.ModelProto],
    what: str,
    scales: Mapping[str, float],
    want: Mapping[str, Array],
    feed: feeds.Feeds,
    handed: Mapping[str, Array],
    inputs: bool = True,
) -> dict[str, float]:
    """``rounding_noise`` of any model.

    Args:
        make: gives the model, to be changed.
        what: how messages call it.
        scales, want, feed, inputs: as for ``rounding_noise``.
        handed: more inputs, which stay as they are.
    """
    found = dict.fromkeys(scales, 0.0)
    for draw in range(_DRAWS if inputs else 1):
        rng = np.random.default_rng(draw)
        model = make()
        exact = _exact(model)
        for tensor in model.graph.initializer:
            stays = tensor.name in exact and math.prod(tensor.dims) <= _SMALL
            if tensor.data_type == onnx.TensorProto.FLOAT and not stays:
                moved = jittered(onnx.numpy_helper.to_array(tensor), rng)
                tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
        moving = [n for n, v in feed.items() if inputs and v.dtype == np.float32 and n not in exact]
        fed = {**feed, **{n: jittered(feed[n], rng) for n in moving}, **handed}
        other = run_own(open_own(with_outputs(model, list(scales)), what), fed, what, list(scales))
        found = {name: max(found[name], difference(other[name], want[name], scale)) for name, scale in scales.items()}
    return found


def jittered(values: Array, rng: np.random.Generator) -> Array:
    """Floating-point values, each moved by one in the last place."""
    if not is_float(values):
        return values
    kind = np.finfo(values.dtype.name)
    wide = values.astype(np.float64)
    moved = wide * (1 + rng.choice([-1.0, 1.0], values.shape) * float(kind.eps))
    most = float(kind.max)  # as some masks are
    return np.where(np.isfinite(wide), moved.clip(-most, most), wide).astype(values.dtype)


def _exact(model: onnx.ModelProto) -> set[str]:
    """Tensors that sizes and exponents are computed from: a step that is a little shorter would be one step more."""
    found: set[str] = set()
    for node in reversed(list(all_nodes(model.graph))):
        if node.op_type in _EXACT:
            found.update(node.input[_EXACT[node.op_type] :])
        if node.op_type not in ("Shape", "Size") and not found.isdisjoint(node.output):
            found.update(node.input)
    return found
