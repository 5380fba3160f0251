"""Operators that multiply and sum."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, node, weights
from tests.rows import Row

_IMAGE = {"x": ["N", 3, 9, 9]}


def _image(name, covers, nodes, widths, constants, **options):
    """Convolutions over ``x[N, 3, 9, 9]``; every constant is standard normal of the given shape."""
    extra = {k: options.pop(k) for k in ("frozen", "inner") if k in options}
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {k: v for k, v in constants.items() if not isinstance(v, (np.ndarray, np.generic))}
    return Row(name, covers, build(nodes, _IMAGE, ["y"], {**weights(**shapes), **arrays}, **options), widths, **extra)


ROWS = [
    _image("Conv", ("Conv",), [node("Conv", "x w1 b1", "h"), node("Relu", "h", "a"), node("Conv", "a w2", "y")],
           (8,), {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 8, 3, 3)}),
    _image("Conv-strided-dilated", ("Conv",),
           [node("Conv", "x w1", "h", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Conv", "h w2", "y", dilations=[2, 2], pads=[2, 2, 2, 2])],
           (8,), {"w1": (8, 3, 3, 3), "w2": (4, 8, 3, 3)}),
    _image("Conv-depthwise", ("Conv",),
           [node("Conv", "x w1", "h"), node("Conv", "h w2 b2", "d", group=8), node("Conv", "d w3", "y")],
           (8,), {"w1": (8, 3, 1, 1), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (4, 8, 1, 1)}),
    _image("Conv-depthwise-multiplier", ("Conv",),
           [node("Conv", "x w1", "h"), node("Conv", "h w2", "d", group=4), node("Conv", "d w3", "y")],
           (2, 4), {"w1": (4, 3, 1, 1), "w2": (8, 1, 3, 3), "w3": (4, 8, 1, 1)}),
    _image("Conv-grouped", ("Conv",),
           [node("Conv", "x w1", "h"), node("Conv", "h w2", "d", group=4), node("Relu", "d", "e"),
            node("Conv", "e w3", "y")],
           (2, 3, 4), {"w1": (8, 3, 1, 1), "w2": (12, 2, 3, 3), "w3": (4, 12, 1, 1)}),
    _image("Conv-inverted-residual", ("Conv",),
           [node("Conv", "x w0", "s"), node("Conv", "s w1", "h"), node("Clip", "h low high", "a"),
            node("Conv", "a w2", "d", group=12, pads=[1, 1, 1, 1]), node("Clip", "d low high", "e"),
            node("Conv", "e w3", "p"), node("Add", "s p", "r"), node("Conv", "r w4", "y")],
           (6, 12), {"w0": (6, 3, 1, 1), "w1": (12, 6, 1, 1), "w2": (12, 1, 3, 3), "w3": (6, 12, 1, 1),
                     "w4": (2, 6, 1, 1), "low": np.float32(0), "high": np.float32(6)}),
    _image("Conv-dense-block", ("Conv",),
           [node("Conv", "x w1", "a"), node("Conv", "a w2", "b"), node("Concat", "a b", "ab", axis=1),
            node("Conv", "ab w3", "c"), node("Concat", "a b c", "abc", axis=1), node("Conv", "abc w4", "y")],
           (3, 4, 5), {"w1": (5, 3, 1, 1), "w2": (3, 5, 1, 1), "w3": (4, 8, 1, 1), "w4": (2, 12, 1, 1)}),
    _image("Conv-shared-by-two-levels", ("Conv",),
           [node("Conv", "x w1 b1", "a"), node("MaxPool", "x", "p", kernel_shape=[3, 3]), node("Conv", "p w1 b1", "b"),
            node("Conv", "a w2", "c"), node("Conv", "b w2", "d"), node("GlobalAveragePool", "c", "e"),
            node("GlobalAveragePool", "d", "f"), node("Add", "e f", "y")],
           (8,), {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (4, 8, 1, 1)}),
    Row("Conv-1d", ("Conv",),
        build([node("Conv", "x w1", "h"), node("Conv", "h w2", "y")], {"x": ["N", 3, 16]}, ["y"],
              weights(w1=(8, 3, 5), w2=(4, 8, 3))), (8,)),
    Row("Conv-3d", ("Conv",),
        build([node("Conv", "x w1", "h"), node("Conv", "h w2", "y")], {"x": ["N", 2, 5, 6, 7]}, ["y"],
              weights(w1=(8, 2, 3, 3, 3), w2=(4, 8, 1, 1, 1))), (8,)),
    Row("FusedConv", ("com.microsoft::FusedConv",),
        build([node("Conv", "x w0", "z"), node("com.microsoft::FusedConv", "x w1 b1 z", "h", activation="Relu"),
               node("Conv", "h w2", "y")], _IMAGE, ["y"],
              weights(w0=(8, 3, 1, 1), w1=(8, 3, 1, 1), b1=(8,), w2=(4, 8, 3, 3)), since="1.27"), (8,)),
    Row("ConvInteger", ("ConvInteger", "DynamicQuantizeLinear"),
        build([node("Conv", "x w0", "h"), node("DynamicQuantizeLinear", "h", "q s z"),
               node("ConvInteger", "q w1 z", "i"), node("Cast", "i", "f", to=1), node("Mul", "f s", "g"),
               node("Conv", "g w2", "y")], _IMAGE, ["y"],
              {**weights(w0=(8, 3, 1, 1), w2=(4, 6, 1, 1)),
               "w1": np.random.default_rng(1).integers(-9, 9, (6, 8, 3, 3)).astype(np.int8)}), (6, 8)),
    _image("ConvTranspose", ("ConvTranspose",),
           [node("Conv", "x w1", "h"), node("ConvTranspose", "h w2 b2", "d", strides=[2, 2]), node("Conv", "d w3", "y")],
           (5, 8), {"w1": (8, 3, 1, 1), "w2": (8, 5, 2, 2), "b2": (5,), "w3": (4, 5, 1, 1)}),
    _image("ConvTranspose-grouped", ("ConvTranspose",),
           [node("Conv", "x w1", "h"), node("ConvTranspose", "h w2", "d", group=4, strides=[2, 2]),
            node("Conv", "d w3", "y")],
           (2, 3, 4), {"w1": (8, 3, 1, 1), "w2": (8, 3, 2, 2), "w3": (4, 12, 1, 1)}),
    Row("Gemm", ("Gemm",),
        build([node("Gemm", "x w1 b1", "h", transB=1), node("Relu", "h", "a"), node("Gemm", "a w2 b2", "y")],
              {"x": ["N", 5]}, ["y"], weights(w1=(8, 5), b1=(8,), w2=(8, 3), b2=(3,))), (8,)),
    Row("Gemm-transposed-input", ("Gemm",),
        build([node("Gemm", "x w1", "h", transB=1), node("Transpose", "h", "t"),
               node("Gemm", "t w2 b2", "y", transA=1, alpha=0.5)],
              {"x": ["N", 5]}, ["y"], weights(w1=(8, 5), w2=(8, 3), b2=(1, 3))), (8,)),
    Row("MatMul-batched", ("MatMul",),
        build([node("MatMul", "x w1", "h"), node("Add", "h b1", "a"), node("MatMul", "a w2", "y")],
              {"x": ["N", "S", 5]}, ["y"], weights(w1=(5, 8), b1=(8,), w2=(8, 3))), (8,)),
    Row("MatMul-left-weight", ("MatMul",),
        build([node("MatMul", "w1 x", "h"), node("Relu", "h", "a"), node("MatMul", "w2 a", "y")],
              {"x": [5, 7]}, ["y"], weights(w1=(8, 5), w2=(3, 8))), (8,)),
    Row("MatMul-vectors", ("MatMul",),
        build([node("MatMul", "x w1", "h"), node("MatMul", "h v", "s"), node("Mul", "s u", "y")],
              {"x": [4, 5]}, ["y"], weights(w1=(5, 8), v=(8,), u=(4,))), (8,)),
    Row("MatMul-transposed-weight", ("MatMul", "Transpose"),
        build([node("Transpose", "w1", "w1t"), node("MatMul", "x w1t", "h"), node("MatMul", "h w2", "y")],
              {"x": ["N", 5]}, ["y"], weights(w1=(8, 5), w2=(8, 3))), (8,)),
    Row("MatMulInteger", ("MatMulInteger",),
        build([node("MatMul", "x w0", "h"), node("DynamicQuantizeLinear", "h", "q s z"),
               node("MatMulInteger", "q w1 z", "i"), node("Cast", "i", "f", to=1), node("Mul", "f s", "g"),
               node("MatMul", "g w2", "y")], {"x": ["N", 5]}, ["y"],
              {**weights(w0=(5, 8), w2=(6, 3)),
               "w1": np.random.default_rng(1).integers(-9, 9, (8, 6)).astype(np.int8)}), (6, 8)),
    Row("Einsum", ("Einsum",),
        build([node("Einsum", "x w1", "h", equation="bsd,df->bsf"), node("Relu", "h", "a"),
               node("Einsum", "a w2", "y", equation="...f,fd->...d")],
              {"x": ["N", "S", 5]}, ["y"], weights(w1=(5, 8), w2=(8, 3))), (8,)),
    Row("Einsum-attention", ("Einsum",),
        build([node("Einsum", "x wq", "q", equation="bsd,dhe->bshe"), node("Einsum", "x wk", "k", equation="bsd,dhe->bshe"),
               node("Einsum", "q k", "s", equation="bshe,bthe->bhst"), node("Softmax", "s", "p"),
               node("Einsum", "x wv", "v", equation="bsd,dhf->bshf"), node("Einsum", "p v", "o", equation="bhst,bthf->bshf"),
               node("Einsum", "o wo", "y", equation="bshf,hfd->bsd")],
              {"x": ["N", "S", 5]}, ["y"], weights(wq=(5, 4, 6), wk=(5, 4, 6), wv=(5, 4, 3), wo=(4, 3, 5))), (3, 4, 6)),
]
