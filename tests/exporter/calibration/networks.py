"""Small networks and inputs for the tests of calibration."""

from __future__ import annotations

import numpy as np

from exporter.model_file import from_model
from exporter.normalise import input_specs
from runtime.samples import samples_of
from tests.onnx_builder import build, ints, node, weights


def scaled(seed=0, **shapes):
    """Constants that keep the size of the signal: matrices by their fan-in, biases small."""
    made = weights(seed, **shapes)
    for name, values in made.items():
        fan = values.shape[0] if values.ndim == 2 else np.prod(values.shape[1:])
        made[name] = np.asarray(values / np.sqrt(fan) if values.ndim > 1 else 0.3 * values, np.float32)
    return made


def conv_net(dtype=np.float32):
    """Two hidden layers of channels, the second wide and redundant."""
    constants = scaled(w1=(10, 3, 3, 3), b1=(10,), w2=(24, 10, 3, 3), b2=(24,), w3=(6, 24, 3, 3), b3=(6,))
    nodes = [
        node("Conv", "x w1 b1", "h1", pads=[1, 1, 1, 1]), node("Relu", "h1", "a1"),
        node("Conv", "a1 w2 b2", "h2", strides=[2, 2]), node("Relu", "h2", "a2"),
        node("Conv", "a2 w3 b3", "h3"), node("GlobalAveragePool", "h3", "p"), node("Flatten", "p", "y"),
    ]  # fmt: skip
    kind = "h" if dtype == np.float16 else "f"
    constants = {k: v.astype(dtype) for k, v in constants.items()}
    return build(nodes, {"x": ["N", 3, 12, 12]}, ["y"], constants, kinds={"x": kind, "y": kind})


def normalised_net(fold=False):
    """Convolutions without biases, BatchNormalization behind each, or folded into them."""
    constants = scaled(w1=(20, 3, 3, 3), w2=(12, 20, 3, 3), w3=(5, 12, 3, 3), m1=(20,), m2=(12,), s1=(20,), s2=(12,))
    rng = np.random.default_rng(5)
    constants |= {
        k: rng.uniform(0.5, 2, n).astype(np.float32) for k, n in (("g1", 20), ("v1", 20), ("g2", 12), ("v2", 12))
    }
    if fold:
        for i in "12":
            factor = constants.pop(f"g{i}") / np.sqrt(constants.pop(f"v{i}") + np.float32(1e-5))
            constants[f"w{i}"] = constants[f"w{i}"] * factor[:, None, None, None]
            constants[f"s{i}"] = constants[f"s{i}"] - constants.pop(f"m{i}") * factor
        nodes = [
            node("Conv", "x w1 s1", "n1"), node("Relu", "n1", "a1"), node("Conv", "a1 w2 s2", "n2"),
            node("Relu", "n2", "a2"), node("Conv", "a2 w3", "h3"), node("GlobalAveragePool", "h3", "p"),
            node("Flatten", "p", "y"),
        ]  # fmt: skip
        return build(nodes, {"x": ["N", 3, 12, 12]}, ["y"], constants)
    nodes = [
        node("Conv", "x w1", "h1"), node("BatchNormalization", "h1 g1 s1 m1 v1", "n1"), node("Relu", "n1", "a1"),
        node("Conv", "a1 w2", "h2"), node("BatchNormalization", "h2 g2 s2 m2 v2", "n2"), node("Relu", "n2", "a2"),
        node("Conv", "a2 w3", "h3"), node("GlobalAveragePool", "h3", "p"), node("Flatten", "p", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 3, 12, 12]}, ["y"], constants)


def residual_mlp():
    """A stream with two blocks; what is added is added again."""
    constants = scaled(w0=(6, 16), b0=(16,), w1=(16, 40), b1=(40,), w2=(40, 16), b2=(16,), w3=(16, 32), b3=(32,),
                       w4=(32, 16), w5=(16, 5), b5=(5,))  # fmt: skip
    nodes = [
        node("Gemm", "x w0 b0", "s0"),
        node("Gemm", "s0 w1 b1", "h1"), node("Relu", "h1", "a1"), node("Gemm", "a1 w2 b2", "f1"),
        node("Add", "s0 f1", "s1"),
        node("MatMul", "s1 w3", "m2"), node("Add", "m2 b3", "h2"), node("Gelu", "h2", "a2"),
        node("MatMul", "a2 w4", "f2"), node("Add", "f2 s1", "s2"),
        node("Gemm", "s2 w5 b5", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 6]}, ["y"], constants)


def depthwise_net():
    """An inverted residual."""
    constants = scaled(w0=(8, 3, 1, 1), w1=(24, 8, 1, 1), b1=(24,), w2=(24, 1, 3, 3), b2=(24,), w3=(8, 24, 1, 1),
                       b3=(8,), w4=(4, 8, 3, 3), b4=(4,))  # fmt: skip
    nodes = [
        node("Conv", "x w0", "s"), node("Conv", "s w1 b1", "h"), node("Relu", "h", "a"),
        node("Conv", "a w2 b2", "d", group=24, pads=[1, 1, 1, 1]), node("Relu", "d", "e"), node("Conv", "e w3 b3", "f"),
        node("Add", "s f", "r"), node("Conv", "r w4 b4", "g"), node("GlobalAveragePool", "g", "p"),
        node("Flatten", "p", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 3, 10, 10]}, ["y"], constants)


def flattened_net(how="conv"):
    """Channels at 4x4 positions before a dense layer: a kernel of that size, or flattened channel by channel ("nchw")
    or position by position ("nhwc"); all are the same function."""
    constants = scaled(w1=(10, 3, 3, 3), b1=(10,), w2=(6, 10, 4, 4), b2=(6,))
    nodes = [node("Conv", "x w1 b1", "h1"), node("Relu", "h1", "a1")]
    if how == "conv":
        nodes += [node("Conv", "a1 w2 b2", "h2"), node("Flatten", "h2", "y")]
        return build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)
    if how == "nchw":
        constants["w2"] = constants["w2"].reshape(6, -1)
        nodes += [node("Flatten", "a1", "f"), node("Gemm", "f w2 b2", "y", transB=1)]
    else:
        constants["w2"] = np.ascontiguousarray(constants["w2"].transpose(2, 3, 1, 0).reshape(-1, 6))
        nodes += [node("Transpose", "a1", "t", perm=[0, 2, 3, 1]), node("Flatten", "t", "f"),
                  node("Gemm", "f w2 b2", "y")]  # fmt: skip
    return build(nodes, {"x": ["N", 3, 6, 6]}, ["y"], constants)


def transformer(fixed=None):
    """One block of two heads of four dimensions and a wide middle, before which LayerNorm stands."""
    constants = scaled(we=(6, 8), wqkv=(8, 24), bqkv=(24,), wo=(8, 8), bo=(8,), w1=(8, 32), b1=(32,), w2=(32, 8),
                       b2=(8,), wy=(8, 3), by=(3,))  # fmt: skip
    constants |= {"g": np.ones(8, np.float32), "b": np.zeros(8, np.float32), "heads": ints(0, 0, 2, 4),
                  "flat": ints(0, 0, 8), "root": np.float32(0.5)}  # fmt: skip
    nodes = [
        node("MatMul", "x we", "s0"), node("LayerNormalization", "s0 g b", "n0"),
        node("MatMul", "n0 wqkv", "m0"), node("Add", "m0 bqkv", "qkv"),
        node("Split", "qkv", "q k v", axis=-1, num_outputs=3),
        *(node("Reshape", f"{t} heads", f"{t}r") for t in "qkv"),
        node("Transpose", "qr", "qt", perm=[0, 2, 1, 3]), node("Transpose", "kr", "kt", perm=[0, 2, 3, 1]),
        node("Transpose", "vr", "vt", perm=[0, 2, 1, 3]),
        node("MatMul", "qt kt", "qk"), node("Mul", "qk root", "z"), node("Softmax", "z", "p", axis=-1),
        node("MatMul", "p vt", "o"), node("Transpose", "o", "ot", perm=[0, 2, 1, 3]), node("Reshape", "ot flat", "of"),
        node("MatMul", "of wo", "mo"), node("Add", "mo bo", "f0"), node("Add", "s0 f0", "s1"),
        node("LayerNormalization", "s1 g b", "n1"), node("MatMul", "n1 w1", "m1"), node("Add", "m1 b1", "h1"),
        node("Gelu", "h1", "a1"), node("MatMul", "a1 w2", "m2"), node("Add", "m2 b2", "f1"),
        node("Add", "s1 f1", "s2"), node("MatMul", "s2 wy", "my"), node("Add", "my by", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": [fixed or "N", 5, 6]}, ["y"], constants)


def choosing_net(values=False):
    """Sixty rows, of which a decoder reads the eight whose scores are best, multiplied by these if asked for."""
    constants = scaled(w0=(6, 16), w1=(16, 64), b1=(64,), w2=(64, 16), ws=(16, 1), w3=(16, 64), b3=(64,), w4=(64, 16),
                       w5=(16, 4), b5=(4,))  # fmt: skip
    constants |= {"k": ints(8), "last": ints(-1), "shape": ints(1, 1, 16)}
    nodes = [
        node("MatMul", "x w0", "s0"), node("MatMul", "s0 w1", "h0"), node("Add", "h0 b1", "h1"),
        node("Relu", "h1", "a1"), node("MatMul", "a1 w2", "m"), node("Add", "s0 m", "s1"),
        node("MatMul", "s1 ws", "sc"), node("Squeeze", "sc last", "score"), node("TopK", "score k", "best idx", axis=1),
        node("Unsqueeze", "idx last", "iu"), node("Expand", "iu shape", "ie"),
        node("GatherElements", "s1 ie", "rows0", axis=1),
        *([node("Unsqueeze", "best last", "bu"), node("Mul", "rows0 bu", "rows")] if values else
          [node("Identity", "rows0", "rows")]),
        node("MatMul", "rows w3", "g0"), node("Add", "g0 b3", "g1"), node("Relu", "g1", "ga"),
        node("MatMul", "ga w4", "n"), node("Add", "rows n", "r1"), node("MatMul", "r1 w5", "y0"),
        node("Add", "y0 b5", "y"),
    ]  # fmt: skip
    return build(nodes, {"x": ["N", 60, 6]}, ["y"], constants)


def finding_net():
    """What is above zero, of ``x[N, 8]``: how much that is depends on the weights."""
    nodes = [
        node("MatMul", "x u", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "s"), node("Reshape", "s flat", "f"),
        node("Greater", "f zero", "above"), node("Compress", "f above", "found"), node("Exp", "found", "y"),
    ]  # fmt: skip
    constants = weights(u=(8, 32), v=(32, 6)) | {"flat": ints(-1), "zero": np.float32(0)}
    return build(nodes, {"x": ["N", 8]}, ["y"], constants)


def loaded(model):
    """The graph of a model."""
    return from_model(model)


def samples(graph, count, seed=0):
    """Inputs whose features are few, as those of data are, and vary in size."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in input_specs(graph.model):
        shape = (count, *(d if isinstance(d, int) else 3 for d in spec.shape[1:]))
        values = rng.standard_normal(shape)
        smooth = values + np.roll(values, 1, -1) + rng.standard_normal((count, *[1] * (len(shape) - 1)))
        feeds[spec.name] = np.asarray(smooth, spec.dtype)
    return samples_of([feeds], input_specs(graph.model))


def resized():
    """Two Resizes to a size that both read, the second in a piece of its own."""
    nodes = [
        node("Conv", "x w", "h", pads=[1, 1, 1, 1], strides=[2, 2]), node("Shape", "x", "all"),
        node("Slice", "all two four", "size"), node("Shape", "h", "half"), node("Slice", "half nought two", "first"),
        node("Concat", "first size", "to_a", axis=0), node("Resize", "h - - to_a", "a"),
        node("Conv", "a v", "f", pads=[1, 1, 1, 1]), node("Concat", "first size", "to_b", axis=0),
        node("Resize", "f - - to_b", "b"), node("Relu", "b", "y"),
    ]  # fmt: skip
    constants = weights(w=(4, 3, 3, 3), v=(4, 4, 3, 3))
    return build(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants | {"nought": ints(0), "two": ints(2), "four": ints(4)})
