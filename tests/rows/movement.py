"""Operators that move elements, select them, or set sizes."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, ints, node, weights
from tests.rows import Row

_IMAGE = {"x": ["N", 3, 6, 6]}


def _linear(name, covers, nodes, widths, *, opset=21, frozen="", inner=False, **constants):
    """``x[N, 5] -> w1 -> h[N, 8]``, the nodes, ``a[..., k] -> w2 -> y``."""
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {"w1": (5, 8), **{k: v for k, v in constants.items() if not isinstance(v, (np.ndarray, np.generic))}}
    return Row(
        name,
        covers,
        build(
            [node("MatMul", "x w1", "h"), *nodes, node("MatMul", "a w2", "y")],
            {"x": ["N", 5]},
            ["y"],
            {**weights(**shapes), **arrays},
            opset=opset,
        ),
        widths,
        frozen,
        inner,
    )


def _image(name, covers, nodes, widths, *, opset=21, frozen="", inner=False, **constants):
    """``x[N, 3, 6, 6] -> w1 -> h``, the nodes, ``a -> w2 -> y``."""
    arrays = {k: v for k, v in constants.items() if isinstance(v, (np.ndarray, np.generic))}
    shapes = {k: v for k, v in constants.items() if not isinstance(v, (np.ndarray, np.generic))}
    return Row(
        name,
        covers,
        build([node("Conv", "x w1", "h"), *nodes, node("Conv", "a w2", "y")], _IMAGE, ["y"],
              {**weights(**shapes), **arrays}, opset=opset),
        widths,
        frozen,
        inner,
    )


ROWS = [
    _linear("Reshape-heads", ("Reshape",),
            [node("Reshape", "h s1", "r"), node("Softmax", "r", "p", axis=0), node("Reshape", "p s2", "a")],
            (2, 4), s1=ints(0, 4, 2), s2=ints(-1, 8), w2=(8, 3)),
    _linear("Reshape-refined", ("Reshape",),  # 2 x 4 and 4 x 2 meet in 2 x 2 x 2
            [node("Reshape", "h s1", "r"), node("Softmax", "r", "p", axis=0), node("Reshape", "p s2", "q"),
             node("Reshape", "q s3", "t"), node("Softmax", "t", "u", axis=0), node("Reshape", "u s2", "a")],
            (2, 2, 2), s1=ints(-1, 2, 4), s2=ints(-1, 8), s3=ints(-1, 4, 2), w2=(8, 3)),
    Row("Reshape-incompatible", ("Reshape",),  # 2 x 3 and 3 x 2 share no grid: the axis stays
        build([node("MatMul", "x w1", "h"), node("Reshape", "h s1", "r"), node("MatMul", "r m1", "p"),
               node("Reshape", "p s2", "q"), node("MatMul", "q m2", "t"), node("Reshape", "t s3", "u"),
               node("MatMul", "u w2", "y")], {"x": ["N", 5]}, ["y"],
              {**weights(w1=(5, 6), m1=(3, 3), m2=(2, 2), w2=(6, 3)),
               "s1": ints(-1, 2, 3), "s2": ints(-1, 3, 2), "s3": ints(-1, 6)}),
        (2, 3)),
    _image("Flatten", ("Flatten",), [node("Flatten", "h", "f"), node("Gemm", "f g", "k", transB=1),
                                     node("Unsqueeze", "k u", "a")],
           (8, 5), w1=(8, 3, 3, 3), g=(5, 128), u=ints(2, 3), w2=(2, 5, 1, 1)),
    _linear("Squeeze-Unsqueeze", ("Squeeze", "Unsqueeze"),
            [node("Unsqueeze", "h u", "r"), node("Relu", "r", "p"), node("Squeeze", "p u", "a")],
            (8,), u=ints(1), w2=(8, 3)),
    _linear("Squeeze-all", ("Squeeze",),
            [node("Unsqueeze", "h u", "r"), node("Squeeze", "r", "a")], (8,), u=ints(1), w2=(8, 3)),
    _linear("Squeeze-attribute", ("Squeeze", "Unsqueeze"),
            [node("Unsqueeze", "h", "r", axes=[1]), node("Squeeze", "r", "a", axes=[1])], (8,), opset=11, w2=(8, 3)),
    _linear("Concat", ("Concat",),
            [node("MatMul", "x w3", "g"), node("Concat", "h g", "c", axis=1), node("Relu", "c", "a")],
            (8, 6), w3=(5, 6), w2=(14, 3)),
    _linear("Concat-rotary", ("Concat", "Slice", "Neg"),
            [node("Slice", "h zero four one", "p"), node("Slice", "h four eight one", "q"), node("Neg", "q", "n"),
             node("Concat", "n p", "r", axis=1), node("Mul", "r sin", "rs"), node("Mul", "h cos", "hc"),
             node("Add", "rs hc", "a")],
            (4,), zero=ints(0), four=ints(4), eight=ints(8), one=ints(1), sin=(8,), cos=(8,), w2=(8, 3)),
    _linear("Split", ("Split",),
            [node("Split", "h parts", "p q", axis=1), node("Sigmoid", "q", "g"), node("MatMul", "p m", "k"),
             node("Mul", "k g", "a")],
            (5, 3), parts=ints(5, 3), m=(5, 3), w2=(3, 3)),
    _linear("Split-equal", ("Split",),
            [node("Split", "h", "p q", axis=1, num_outputs=2), node("MatMul", "p m", "k"), node("MatMul", "q n", "l"),
             node("Add", "k l", "a")],
            (4, 4, 6), m=(4, 6), n=(4, 6), w2=(6, 3)),
    _linear("Split-attribute", ("Split",),
            [node("Split", "h", "p q", axis=1, split=[5, 3]), node("MatMul", "p m", "k"), node("Add", "k q", "a")],
            (5, 3), opset=11, m=(5, 3), w2=(3, 3)),
    _linear("Slice-middle", ("Slice",), [node("Slice", "h two six one", "a")], (4, 4),  # nobody reads the other four
            two=ints(2), six=ints(6), one=ints(1), w2=(4, 3)),
    _linear("Slice-step", ("Slice",),
            [node("Slice", "h zero end one step", "p"), node("Slice", "h one end one step", "q"),
             node("MatMul", "p m", "k"), node("Mul", "k q", "a")],
            (4, 4), zero=ints(0), one=ints(1), end=ints(8), step=ints(2), m=(4, 4), w2=(4, 3)),
    _linear("Slice-flip", ("Slice",),
            [node("Slice", "h last first one back", "f"), node("Add", "f h", "a")],
            (4,), last=ints(-1), first=ints(-9), one=ints(1), back=ints(-1), w2=(8, 3)),
    _linear("Slice-flip-of-two-axes", ("Slice",),  # the heads stay free, what lies within is turned round
            [node("Reshape", "h s1", "r"), node("Slice", "r start end axes back", "f"), node("Add", "r f", "g"),
             node("Reshape", "g s2", "a")],
            (4,), s1=ints(-1, 4, 2), s2=ints(-1, 8), start=ints(0, -1), end=ints(4, -9), axes=ints(1, 2),
            back=ints(1, -1), w2=(8, 3)),
    _linear("Slice-attribute", ("Slice",), [node("Slice", "h", "a", axes=[1], starts=[2], ends=[100])], (2, 6), opset=9,
            w2=(6, 3)),
    _image("Pad-channels", ("Pad",),  # the option-A shortcut of a ResNet
           [node("Pad", "h pads", "p"), node("Conv", "h w3", "c"), node("Add", "p c", "a")],
           (4, 4), pads=ints(0, 2, 0, 0, 0, 2, 0, 0), w1=(4, 3, 1, 1), w3=(8, 4, 1, 1), w2=(2, 8, 1, 1)),
    _image("Pad-spatial", ("Pad",), [node("Pad", "h pads", "a", mode="reflect")], (8,),
           pads=ints(0, 0, 1, 1, 0, 0, 1, 1), w1=(8, 3, 1, 1), w2=(2, 8, 3, 3)),
    _image("Pad-attribute", ("Pad",), [node("Pad", "h", "a", pads=[0, 0, 1, 1, 0, 0, 1, 1])], (8,), opset=9,
           w1=(8, 3, 1, 1), w2=(2, 8, 3, 3)),
    _image("DepthToSpace", ("DepthToSpace",), [node("DepthToSpace", "h", "a", blocksize=2)], (5,),
           w1=(20, 3, 1, 1), w2=(2, 5, 1, 1)),
    _image("DepthToSpace-CRD", ("DepthToSpace",), [node("DepthToSpace", "h", "a", blocksize=2, mode="CRD")], (5,),
           w1=(20, 3, 1, 1), w2=(2, 5, 1, 1)),
    _image("SpaceToDepth", ("SpaceToDepth",), [node("SpaceToDepth", "h", "a", blocksize=2)], (5,),
           w1=(5, 3, 1, 1), w2=(2, 20, 1, 1)),
    _image("Shuffle", ("Reshape", "Transpose"),  # two branches of a ShuffleNet unit
           [node("Conv", "x w3", "g"), node("Concat", "h g", "c", axis=1), node("Reshape", "c s1", "r"),
            node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]), node("Reshape", "t s2", "u"),
            node("Split", "u halves", "p q", axis=1), node("Conv", "q w4", "k"), node("Concat", "p k", "a", axis=1)],
           (2, 2, 2, 2, 4), s1=ints(0, 2, 4, 6, 6), s2=ints(0, 8, 6, 6), halves=ints(4, 4),
           w1=(4, 3, 1, 1), w3=(4, 3, 1, 1), w4=(4, 4, 1, 1), w2=(2, 8, 1, 1)),
    _image("Shuffle-grouped", ("Reshape", "Transpose"),  # a ShuffleNet-1 unit: three factors remain
           [node("Conv", "h w3", "c", group=2), node("Reshape", "c s1", "r"),
            node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]), node("Reshape", "t s2", "u"),
            node("Conv", "u w4", "a", group=2)],
           (2, 2, 2, 3, 3), s1=ints(0, 2, 4, 6, 6), s2=ints(0, 8, 6, 6),
           w1=(6, 3, 1, 1), w3=(8, 3, 1, 1), w4=(6, 4, 1, 1), w2=(2, 6, 1, 1)),
    _linear("Expand", ("Expand",),
            [node("MatMul", "x w3", "g"), node("Unsqueeze", "g u", "g1"), node("Expand", "g1 s1", "e"),
             node("Reshape", "e s2", "f"), node("Mul", "h f", "a")],
            (2, 4), u=ints(2), s1=ints(1, 4, 2), s2=ints(-1, 8), w3=(5, 4), w2=(8, 3)),
    _linear("Tile", ("Tile",),
            [node("MatMul", "x w3", "g"), node("Tile", "g r", "f"), node("Mul", "h f", "a")],
            (2, 4), r=ints(1, 2), w3=(5, 4), w2=(8, 3)),
    _linear("ConstantOfShape", ("ConstantOfShape",),
            [node("Shape", "x", "n", end=1), node("Concat", "n eight", "s", axis=0), node("ConstantOfShape", "s", "c"),
             node("Cos", "c", "d"), node("Sub", "h d", "a")],
            (8,), eight=ints(8), w2=(8, 3)),
    _linear("Shape-Size", ("Shape", "Size"),  # sizes read at run time must not see a cut
            [node("Size", "h", "n"), node("Cast", "n", "m", to=1), node("Div", "h m", "d"), node("Shape", "d", "s"),
             node("Cast", "s", "t", to=1), node("ReduceSum", "t", "k", keepdims=0), node("Div", "d k", "e"),
             node("MatMul", "e m2", "a")],
            (6,), m2=(8, 6), w2=(6, 3), frozen="read at run time"),
    _linear("Range", ("Range",),
            [node("Shape", "x", "n1", end=1), node("Squeeze", "n1", "n"), node("Range", "zero n one", "r"),
             node("Cast", "r", "c", to=1), node("Unsqueeze", "c u", "d"), node("Add", "h d", "a")],
            (8,), zero=np.array(0), one=np.array(1), u=ints(1), w2=(8, 3)),
    _linear("Constant", ("Constant",),
            [node("Constant", "", "c", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), node("Mul", "h c", "a")], (8,),
            w2=(8, 3)),
]
