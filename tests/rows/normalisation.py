"""Normalisations, reductions and quantisation."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row


def _image(name, covers, nodes, widths, *, opset=21, frozen="", inner=False, **constants):
    """``x[N, 3, 6, 6] -> w1 -> h[N, 8, 6, 6]``, the nodes, ``a -> w2 -> y``."""
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {"w1": (8, 3, 1, 1)} | {k: v for k, v in constants.items() if k not in arrays}
    return Row(
        name,
        covers,
        build([node("Conv", "x w1", "h"), *nodes, node("Conv", "a w2", "y")], {"x": ["N", 3, 6, 6]}, ["y"],
              {**weights(**shapes), **arrays}, opset=opset),
        widths,
        frozen,
        inner,
    )


def _linear(name, covers, nodes, widths, *, opset=21, frozen="", inner=False, **constants):
    """``x[N, S, 5] -> w1 -> h[N, S, 8]``, the nodes, ``a -> w2 -> y``."""
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {"w1": (5, 8)} | {k: v for k, v in constants.items() if k not in arrays}
    return Row(
        name,
        covers,
        build([node("MatMul", "x w1", "h"), *nodes, node("MatMul", "a w2", "y")], {"x": ["N", "S", 5]}, ["y"],
              {**weights(**shapes), **arrays}, opset=opset),
        widths,
        frozen,
        inner,
    )


_POSITIVE = np.linspace(0.5, 2, 8).astype(np.float32)


def _reduce(op, opset=21, **options):
    """Reduce the cut axis: what stays is one number per position, which joins the next layer by an addition."""
    pre = [node("Abs", "h", "h0"), node("Add", "h0 half", "h1")]
    axes = [node(op, "h1 last", "m")] if opset >= 18 or op == "ReduceSum" else [node(op, "h1", "m", axes=[-1])]
    return _linear(f"{op}-{opset}", (op,), [*pre, *axes, node("MatMul", "h w3", "k"), node("Mul", "k m", "a")], (8, 6),
                   opset=opset, half=np.float32(0.5), last=ints(-1), w3=(8, 6), w2=(6, 3), **options)


_REDUCTIONS = (
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare"
).split()

ROWS = [
    _image("BatchNormalization", ("BatchNormalization",), [node("BatchNormalization", "h g b m v", "a")], (8,),
           g=(8,), b=(8,), m=(8,), v=_POSITIVE, w2=(2, 8, 1, 1)),
    _image("BatchNormalization-training", ("BatchNormalization",),
           [node("BatchNormalization", "h g b m v", "a mean var", training_mode=1), node("ReduceSum", "mean", "s"),
            node("Add", "h s", "unread")], (8,),
           g=(8,), b=(8,), m=(8,), v=_POSITIVE, w2=(2, 8, 1, 1)),
    _image("BatchNormalization-of-weights", ("BatchNormalization",),  # standardised, and with a Tanh, which is not folded
           [node("Reshape", "w3 s1", "r"), node("BatchNormalization", "r g b m v", "n mean var", training_mode=1, momentum=1.0),
            node("Tanh", "n", "t"), node("Reshape", "t s2", "w"), node("Conv", "h w", "k"), node("Relu", "k", "a")], (6, 8),
           s1=ints(1, 6, -1), s2=ints(6, 8, 1, 1), w3=(6, 8, 1, 1), g=(6,), b=(6,), m=(6,), v=_POSITIVE[:6], w2=(2, 6, 1, 1)),
    _image("InstanceNormalization", ("InstanceNormalization",), [node("InstanceNormalization", "h g b", "a")], (8,),
           g=(8,), b=(8,), w2=(2, 8, 1, 1)),
    _image("InstanceNormalization-as-groups", ("InstanceNormalization",),  # how exporters write GroupNorm
           [node("Reshape", "h s1", "r"), node("InstanceNormalization", "r one zero", "n"), node("Reshape", "n s2", "q"),
            node("Mul", "q g", "p"), node("Add", "p b", "a")],
           (2, 4), s1=ints(0, 4, -1), s2=ints(0, 8, 6, 6), one=np.ones(4, np.float32), zero=np.zeros(4, np.float32),
           g=(8, 1, 1), b=(8, 1, 1), w2=(2, 8, 1, 1)),
    _image("GroupNormalization-21", ("GroupNormalization",),
           [node("GroupNormalization", "h g b", "a", num_groups=4)], (2, 4), g=(8,), b=(8,), w2=(2, 8, 1, 1)),
    _image("GroupNormalization-18", ("GroupNormalization",),
           [node("GroupNormalization", "h g b", "a", num_groups=4)], (2, 4), opset=18, g=(4,), b=(4,), w2=(2, 8, 1, 1)),
    _image("GroupNormalization-of-a-concatenation",  # the up path of a diffusion U-Net: groups of 4, of 2 and of 6 share 2
           ("GroupNormalization", "Concat"),
           [node("GroupNormalization", "h g b", "p", num_groups=2), node("Conv", "p w3", "k"),
            node("GroupNormalization", "k g3 b3", "q", num_groups=2), node("Conv", "q w4", "r"), node("Concat", "h k", "c", axis=1),
            node("GroupNormalization", "c g4 b4", "n", num_groups=2), node("Conv", "n w5", "s"), node("Add", "r s", "a")],
           (2, 5), g=(8,), b=(8,), w3=(4, 8, 1, 1), g3=(4,), b3=(4,), g4=(12,), b4=(12,), w4=(5, 4, 1, 1), w5=(5, 12, 1, 1),
           w2=(2, 5, 1, 1)),
    _linear("LayerNormalization", ("LayerNormalization",),
            [node("LayerNormalization", "h g b", "a")], (8,), g=(8,), b=(8,), w2=(8, 3)),
    _linear("LayerNormalization-no-bias", ("LayerNormalization",),
            [node("LayerNormalization", "h g", "a", axis=2, epsilon=1e-3)], (8,), g=(8,), w2=(8, 3)),
    _image("LayerNormalization-channels-first", ("LayerNormalization",),
           [node("LayerNormalization", "h g b", "a", axis=1)], (8,), g=(8, 6, 6), b=(8, 6, 6), w2=(2, 8, 1, 1)),
    _linear("LayerNormalization-decomposed", ("ReduceMean", "Pow", "Sqrt"),
            [node("ReduceMean", "h last", "m"), node("Sub", "h m", "d"), node("Pow", "d two", "s"),
             node("ReduceMean", "s last", "v"), node("Add", "v eps", "e"), node("Sqrt", "e", "r"), node("Div", "d r", "n"),
             node("Mul", "n g", "a")],
            (8,), last=ints(-1), two=np.float32(2), eps=np.float32(1e-5), g=(8,), w2=(8, 3)),
    _linear("RMSNormalization", ("RMSNormalization",), [node("RMSNormalization", "h g", "a")], (8,), opset=23,
            g=(8,), w2=(8, 3)),
    _linear("SimplifiedLayerNormalization", ("SimplifiedLayerNormalization",),
            [node("SimplifiedLayerNormalization", "h g", "a", epsilon=1e-5, axis=-1)], (8,), opset=17, g=(8,), w2=(8, 3)),
    _linear("LpNormalization", ("LpNormalization",), [node("LpNormalization", "h", "a")], (8,), w2=(8, 3)),
    _image("MeanVarianceNormalization", ("MeanVarianceNormalization",),
           [node("MeanVarianceNormalization", "h", "a", axes=[1, 2, 3])], (8,), w2=(2, 8, 1, 1)),
    _linear("Softmax", ("Softmax",), [node("Softmax", "h", "a")], (), w2=(8, 3), frozen="axis of Softmax"),
    _linear("LogSoftmax", ("LogSoftmax",), [node("LogSoftmax", "h", "a")], (), w2=(8, 3), frozen="axis of LogSoftmax"),
    _linear("Softmax-other-axis", ("Softmax",), [node("Softmax", "h", "a", axis=1)], (8,), w2=(8, 3)),
    _linear("Softmax-11-flattens", ("Softmax",), [node("Softmax", "h", "a", axis=1)], (), opset=11, w2=(8, 3),
            frozen="axis of Softmax"),
    _image("LRN", ("LRN",), [node("LRN", "h", "a", size=3)], (), w2=(2, 8, 1, 1), frozen="neighbouring channels"),
    *(_reduce(op) for op in _REDUCTIONS),
    *(_reduce(op, 13) for op in ("ReduceMean", "ReduceMax")),
    _linear("ReduceMax-whole-numbers", ("ReduceMax", "ReduceMin"),
            [node("Mul", "h big", "h0"), node("Cast", "h0", "i", to=6), node("ReduceMax", "i last", "p"),
             node("ReduceMin", "i last", "n"), node("Sub", "p n", "r"), node("Cast", "r", "f", to=1),
             node("MatMul", "h w3", "k"), node("Mul", "k f", "a")],
            (8, 6), big=np.float32(50), last=ints(-1), w3=(8, 6), w2=(6, 3)),
    _linear("ReduceMax-truth-values", ("ReduceMax", "ReduceMin"),
            [node("Greater", "h g", "i"), node("ReduceMax", "i last", "p"), node("ReduceMin", "i last", "n"),
             node("Cast", "p", "p1", to=1), node("Cast", "n", "n1", to=1), node("Sub", "p1 n1", "f"), node("Add", "f one", "f1"),
             node("MatMul", "h w3", "k"), node("Mul", "k f1", "a")],
            (8, 6), g=np.linspace(-3, 9, 8).astype(np.float32), last=ints(-1), one=np.float32(1), w3=(8, 6), w2=(6, 3)),
    _linear("ReduceLogSum-empty-axes", ("ReduceLogSum",),
            [node("Abs", "h", "p"), node("ReduceLogSum", "p none", "m"), node("MatMul", "h w3", "k"), node("Mul", "k m", "a")],
            (8, 6), none=ints(), w3=(8, 6), w2=(6, 3)),
    _linear("ReduceMean-all", ("ReduceMean",),
            [node("ReduceMean", "h", "m", keepdims=0), node("MatMul", "h w3", "k"), node("Add", "k m", "a")],
            (8, 6), w3=(8, 6), w2=(6, 3)),
    _linear("ArgMax", ("ArgMax",), [node("ArgMax", "h", "i", axis=-1), node("Cast", "i", "f", to=1),
                                    node("MatMul", "h w3", "k"), node("Mul", "k f", "a")],
            (6,), w3=(8, 6), w2=(6, 3), frozen="ArgMax"),
    _linear("ArgMin-other-axis", ("ArgMin",),
            [node("ArgMin", "h", "i", axis=1), node("Cast", "i", "f", to=1), node("Mul", "h f", "a")],
            (8,), w2=(8, 3)),
    _linear("QuantizeLinear", ("QuantizeLinear", "DequantizeLinear"),
            [node("QuantizeLinear", "h scale zero", "q"), node("DequantizeLinear", "q scale zero", "a")],
            (8,), scale=np.float32(0.05), zero=np.int8(3), w2=(8, 3)),
    _linear("DequantizeLinear-per-channel-weight", ("DequantizeLinear",),
            [node("DequantizeLinear", "codes scales zeros", "w3", axis=1), node("MatMul", "h w3", "a")],
            (8, 6), codes=np.random.default_rng(2).integers(-99, 99, (8, 6)).astype(np.int8),
            scales=np.linspace(0.01, 0.03, 6).astype(np.float32), zeros=np.zeros(6, np.int8), w2=(6, 3)),
    _linear("DynamicQuantizeLinear", ("DynamicQuantizeLinear",),
            [node("DynamicQuantizeLinear", "h", "q s z"), node("DequantizeLinear", "q s z", "a")], (8,), w2=(8, 3)),
]
