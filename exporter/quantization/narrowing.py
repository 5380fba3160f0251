"""Ranges without the ends at which what reads a tensor is flat.

SiLU, GELU or HardSwish make the same of all that is far below zero, a sigmoid of all that is far from it, and a layer
often gives much there. Steps that cover it are coarser for what counts, so the range ends where the functions behind
the tensor move by no more than a part of the step that their own result is rounded to.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from exporter.graph import op_of
from exporter.protos import reads
from exporter.quantization.activations import Ranges
from runtime.backends import SessionOptions, open_session
from runtime.errors import RunError

_POINTWISE = frozenset(
    (
        *("Abs", "Add", "Atan", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
        *("Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu"),
        *("Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu"),
    )
)
"""Operators that make a number of a number, where all else they read is one constant."""

_STEPS = 255
_PART = 0.02
"""Of a step. What is cut off has one sign, so that layers add it up: a quarter gains half as much."""
_POINTS = 4096

Values = NDArray[np.float32]


def narrowed(ranges: Ranges, symmetric: bool) -> Ranges:
    """Ranges that end where nothing behind the tensors tells values apart.

    Args:
        ranges: of the float model; stays as it is.
        symmetric: whether ranges lie about zero.
    """
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    behind = _Behind(ranges.model)
    data: dict[str, Any] = dict(ranges.found.items())
    for name, known in ranges.found.items():
        low, high = (float(np.min(end)) for end in known.range_value)
        functions = behind.functions(name) if low < high else None
        ends = _telling(functions, low, high) if functions is not None else None
        if ends is None:
            continue
        if symmetric:
            largest = max(abs(end) for end in ends)
            ends = (-largest, largest)
        if ends[1] - ends[0] < high - low:
            lowest, highest = (np.full_like(old, new) for old, new in zip(known.range_value, ends, strict=True))
            data[name] = TensorData(lowest=lowest, highest=highest)
    return Ranges(ranges.model, TensorsData(ranges.found.calibration_method, data), ranges.method)


class _Behind:
    """The functions of one number that lie behind a tensor."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.outputs = {value.name for value in model.graph.output}
        self.scalars = {t.name: t for t in model.graph.initializer if math.prod(t.dims) == 1}
        self.readers: dict[str, list[int]] = {}
        for number, node in enumerate(model.graph.node):
            for name in reads(node):
                self.readers.setdefault(name, []).append(number)

    def functions(self, name: str) -> ModelProto | None:
        """A model of what is made of the numbers of a tensor, one by one; None where something needs them themselves.

        Its outputs are what other nodes read.
        """
        inside: list[NodeProto] = []
        known = {name}
        waiting = list(self.readers.get(name, ()))
        seen = set(waiting)
        other = set[int]()
        heapq.heapify(waiting)
        while waiting:  # in the order of the graph
            number = heapq.heappop(waiting)
            node = self.model.graph.node[number]
            if op_of(node) not in _POINTWISE or not reads(node) <= known | self.scalars.keys():
                other.add(number)
                continue
            inside.append(node)
            known.update(node.output)
            for following in (r for o in node.output for r in self.readers.get(o, ()) if r not in seen):
                seen.add(following)
                heapq.heappush(waiting, following)
        ends = [n for n in known if n in self.outputs or other.intersection(self.readers.get(n, ()))]
        if name in ends or not ends:
            return None
        kind = TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            inside,
            "functions",
            [onnx.helper.make_tensor_value_info(name, kind, [_POINTS])],
            [onnx.helper.make_tensor_value_info(n, kind, [_POINTS]) for n in sorted(ends)],
            [self.scalars[n] for node in inside for n in reads(node) if n in self.scalars],
        )
        return onnx.helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)


def _telling(functions: ModelProto, low: float, high: float) -> tuple[float, float] | None:
    """The part of a range outside of which functions are flat; None where that is not known."""
    points = np.linspace(low, high, _POINTS, dtype=np.float32)
    try:
        session = open_session(functions.SerializeToString(), options=SessionOptions(optimize=False, threads=1))
        made = {n: np.asarray(v, np.float32).ravel() for n, v in session.run({session.inputs[0].name: points}).items()}
    except RunError:
        return None
    first, last = _flat_until(made), _POINTS - 1 - _flat_until({n: v[::-1] for n, v in made.items()})
    return (float(points[first]), float(points[last])) if first < last else None


def _flat_until(made: Mapping[str, Values]) -> int:
    """The last point from which all before it differ by no more than a part of a step, for every function."""
    flat = np.ones(_POINTS, bool)
    for values in made.values():
        if not np.isfinite(values).all():
            return 0
        part = _PART * float(np.ptp(values)) / _STEPS
        above, below = np.maximum.accumulate(values) - values, values - np.minimum.accumulate(values)
        flat &= np.maximum(above, below) <= part
    return int(np.flatnonzero(flat)[-1])
