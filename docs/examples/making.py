"""Small models for the examples: a graph in onnx's text form, and weights drawn at random."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser


def stacked(layer: str, count: int) -> str:
    """Layers one behind another: LAYER is their prefix, NUMBER their number, INPUT what comes before."""
    return "".join(
        layer.replace("LAYER", f"l{i}_")
        .replace("INPUT", f"l{i - 1}_end" if i else "embedded")
        .replace("NUMBER", str(i))
        for i in range(count)
    )


def make(text: str, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> onnx.ModelProto:
    """A model whose weights keep the size of a signal.

    Args:
        text: a model as ``onnx.parser`` reads it; the names in ``shapes`` are its weights.
        shapes: of the weights. Vectors are biases, or scales where their name ends in ``scale``.
        seed: of the weights.
    """
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(seed)
    for name, shape in shapes.items():
        if len(shape) == 1:
            values = generator.normal(float(name.endswith("scale")), 0.1, shape)
        else:
            # a convolution sums over all axes but the first, a product over the first
            terms = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
            values = generator.normal(0, 1.4 / np.sqrt(terms), shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model
