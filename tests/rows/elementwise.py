"""Element-wise operators between two linear layers: the hidden width of 8 is one group."""

from __future__ import annotations

import numpy as np

from tests.onnx_builder import build, node, weights
from tests.rows import Row

# input range for operators that are not defined, or not alive, everywhere: (scale, shift) after a sigmoid
_RANGES = {
    "Acos": (1.6, -0.8), "Acosh": (2.0, 1.1), "Asin": (1.6, -0.8), "Atanh": (1.6, -0.8), "Log": (2.0, 0.5),
    "Sqrt": (2.0, 0.5), "Reciprocal": (2.0, 0.5), "Tan": (1.0, 0.0), "Ceil": (9.0, -4.5), "Floor": (9.0, -4.5),
    "Round": (9.0, -4.5), "Cosh": (4.0, -2.0), "Sinh": (4.0, -2.0),
}
_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Log "
    "Mish Neg Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh"
).split()
_LATER = {"Gelu": 21, "Swish": 24, "Mish": 21}
_WEIGHTS = weights(w1=(5, 8), w2=(8, 3), v=(8,), scalar=())


def _between(name, covers, *nodes, opset=21, constants=None, **options):
    """``x[4, 5] -> w1 -> h[4, 8] -> the operator -> a[4, 8] -> w2 -> y``."""
    return Row(
        name,
        covers,
        build(
            [node("MatMul", "x w1", "h"), *nodes, node("MatMul", "a w2", "y")],
            {"x": ["N", 5]},
            ["y"],
            {**_WEIGHTS, **(constants or {})},
            opset=opset,
        ),
        (8,),
        **options,
    )


def _unary(op, opset=21, **attributes):
    scale, shift = _RANGES.get(op, (1.0, 0.0))
    pre = []
    if op in _RANGES:
        pre = [node("Sigmoid", "h", "h0"), node("Mul", "h0 scale", "h1"), node("Add", "h1 shift", "h2")]
    constants = {"scale": np.float32(scale), "shift": np.float32(shift)}
    return _between(
        op, (op,), *pre, node(op, "h2" if pre else "h", "a", **attributes), opset=opset, constants=constants
    )


def _to_bool_and_back(name, covers, *nodes):
    return _between(name, covers, node("Greater", "h zero", "p"), node("Less", "h v", "q"), *nodes,
                    node("Cast", "r", "a", to=1), constants={"zero": np.float32(0)})


def _to_integers_and_back(name, covers, *nodes, constants=None):
    return _between(
        name, covers, node("Mul", "h four", "h0"), node("Abs", "h0", "h1"), node("Cast", "h1", "p", to=12), *nodes,
        node("Cast", "r", "a", to=1), constants={"four": np.float32(4), **(constants or {})},
    )


_MASK = np.arange(1, 9, dtype=np.uint32)

ROWS = [
    *(_unary(op, _LATER.get(op, 21)) for op in _UNARY),
    _unary("Gelu"),
    _unary("Swish", 24, alpha=1.5),
    _unary("Shrink", lambd=0.3, bias=0.1),
    _unary("ThresholdedRelu", alpha=0.3),
    _between("Cast", ("Cast",), node("Cast", "h", "d", to=11), node("Cast", "d", "a", to=1)),
    _between("CastLike", ("CastLike",), node("Cast", "h", "d", to=11), node("CastLike", "d h", "a")),
    _between("Clip", ("Clip",), node("Clip", "h low high", "a"),
             constants={"low": np.float32(-0.5), "high": np.float32(0.5)}),
    _between("Dropout", ("Dropout",), node("Dropout", "h ratio", "a"), constants={"ratio": np.float32(0.5)}),
    *(_between(op, (op,), node(op, "h v", "a")) for op in ("Add", "Sub", "Mul", "Div", "Max", "Mean", "Min", "Sum")),
    _between("Add-scalar", ("Add",), node("Add", "h scalar", "a")),
    _between("Add-two-branches", ("Add",), node("Relu", "h", "p"), node("Tanh", "h", "q"), node("Add", "p q", "a")),
    _between("Mul-squeeze-excite", ("Mul",), node("MatMul", "h s", "g0"), node("Sigmoid", "g0", "g"),
             node("Mul", "h g", "a"), constants=weights(s=(8, 8))),
    _between("Pow", ("Pow",), node("Abs", "h", "p"), node("Pow", "p v", "a"),
             constants={"v": np.linspace(0.5, 2, 8).astype(np.float32)}),
    _between("Mod", ("Mod",), node("Mod", "h v", "a", fmod=1)),
    _between("PRelu", ("PRelu",), node("PRelu", "h v", "a")),
    *(_to_bool_and_back(op, (op,), node(op, "p q", "r")) for op in ("And", "Or", "Xor")),
    _to_bool_and_back("Not", ("Not",), node("Not", "p", "r")),
    *(_between(op, (op,), node(op, "h v", "r"), node("Cast", "r", "a", to=1))
      for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    _between("Equal", ("Equal",), node("Greater", "h v", "p"), node("Equal", "p pattern", "r"),
             node("Cast", "r", "a", to=1), constants={"pattern": np.arange(8) % 2 == 0}),
    _between("Where", ("Where",), node("Greater", "h v", "p"), node("Where", "p h v", "a")),
    _between("IsNaN", ("IsNaN",), node("Sqrt", "h", "s"), node("IsNaN", "s", "r"), node("Cast", "r", "a", to=1)),
    _between("IsInf", ("IsInf",), node("Relu", "h", "p"), node("Reciprocal", "p", "s"), node("IsInf", "s", "r"),
             node("Cast", "r", "a", to=1)),
    *(_to_integers_and_back(op, (op,), node(op, "p mask", "r"), constants={"mask": _MASK})
      for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    _to_integers_and_back("BitwiseNot", ("BitwiseNot",), node("BitwiseNot", "p", "q"),
                          node("BitwiseAnd", "q mask", "r"), constants={"mask": _MASK}),
    _to_integers_and_back("BitShift", ("BitShift",), node("BitShift", "p bits", "r", direction="LEFT"),
                          constants={"bits": (_MASK % 3).astype(np.uint32)}),
    _between("BitCast", ("BitCast",), node("BitCast", "h", "d", to=6), node("BitCast", "d", "a", to=1), opset=26),
    *(_between(f"com.microsoft.{op}", (f"com.microsoft::{op}",), node(f"com.microsoft::{op}", "h", "a"))
      for op in ("Gelu", "QuickGelu", "FastGelu")),
    _between("FastGelu-bias", ("com.microsoft::FastGelu",), node("com.microsoft::FastGelu", "h v", "a")),
    _between("BiasGelu", ("com.microsoft::BiasGelu",), node("com.microsoft::BiasGelu", "h v", "a")),
    _between("Binarizer", ("ai.onnx.ml::Binarizer",), node("ai.onnx.ml::Binarizer", "h", "a", threshold=0.2)),
]
