"""Axes that count samples: which they are, and how many samples a run has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from onnx import GraphProto

from runtime.backends.protocol import TensorSpec
from runtime.demands.following import followed

_BATCH = re.compile(r"batch|^n$|^bs$|^b$", re.IGNORECASE)
_WITHOUT = 3
"""Axes of an image without a batch."""
_RECURRENT = ("LSTM", "GRU", "RNN")


def symbol_of(spec: TensorSpec, axis: int) -> str:
    """The name of an axis: that in the file, or ``INPUT:AXIS`` where it has none."""
    declared = spec.shape[axis]
    return declared if isinstance(declared, str) and declared else f"{spec.name}:{axis}"


def is_batch(spec: TensorSpec, axis: int) -> bool:
    """Say whether an axis counts samples: by its name, or the first of several."""
    return bool(_BATCH.search(symbol_of(spec, axis))) or (axis == 0 and len(spec.shape) > 1)


def samples_in(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, Sequence[int]],
    outputs: Iterable[Sequence[int | str | None]] = (),
    steps: Collection[str] = (),
) -> int:
    """How many samples a run has.

    The dynamic batch axes say it. A file without any may fix it: then every input of several axes begins with it, and
    so does every output whose size is known. An input of three axes may be an image without a batch: that fixes none.

    Args:
        inputs: the model's signature.
        shapes: of what they are fed, by name.
        outputs: shapes of the outputs, as far as they are known.
        steps: inputs that begin with the steps of a recurrent layer (``stepped``).

    Returns:
        Their common size; 1 where they have several, or there are none.
    """
    sizes = {
        shapes[spec.name][axis]
        for spec in inputs
        for axis, declared in enumerate(spec.shape)
        if not isinstance(declared, int) and is_batch(spec, axis) and not (axis == 0 and spec.name in steps)
    }
    if not sizes and not steps and all(len(spec.shape) != _WITHOUT for spec in inputs):
        sizes = {spec.shape[0] for spec in inputs if len(spec.shape) > 1 and isinstance(spec.shape[0], int)}
        if sizes:
            sizes |= {shape[0] for shape in outputs if shape and isinstance(shape[0], int)}
    return max(*sizes, 1) if len(sizes) == 1 else 1


def stepped(graph: GraphProto, inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Names of inputs whose first axis counts the steps of a recurrent layer, so far as it can be followed to one."""
    if not any(node.op_type in _RECURRENT for node in graph.node):
        return frozenset()
    shapes = {
        spec.name: [f"{k}.{axis}" if axis == 0 or not isinstance(d, int) else d for axis, d in enumerate(spec.shape)]
        for k, spec in enumerate(inputs)
        if spec.shape
    }
    first = {dims[0]: name for name, dims in shapes.items()}
    known = followed(graph, shapes).dims
    found = set()
    for node in graph.node:
        if node.op_type in _RECURRENT and node.input:
            axis = next((a.i for a in node.attribute if a.name == "layout"), 0)
            dims = known.get(node.input[0]) or ()
            found |= {first[d] for d in dims[axis : axis + 1] if isinstance(d, str) and d in first}
    return frozenset(found)
