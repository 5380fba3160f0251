"""How large the numbers of a network get on calibration inputs: one run of the fp32 file, nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from exporter.errors import ModelError
from exporter.graph import Graph
from exporter.normalise import fresh_names, serialize_with_data
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import RunError
from runtime.feeds import Feeds

ENDLESS = 1e30
"""Numbers beyond this stand for infinity (masks hold the lowest fp32 number); half precision has one too."""


@dataclass(frozen=True)
class Extent:
    """Largest magnitude of a tensor, and whether it holds what is no number.

    Attributes:
        largest: over all finite values below ``ENDLESS``; NaN where there are none.
    """

    largest: float


def measure_extents(graph: Graph, names: Iterable[str], feeds: Iterable[Feeds]) -> dict[str, Extent]:
    """Run the graph and read the largest magnitude of tensors.

    Args:
        graph: the graph; it stays as it is.
        names: of fp32 tensors of the main graph.
        feeds: inputs, batch by batch.

    Raises:
        ModelError: the model does not run on the inputs.
    """
    wanted = list(names)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    fresh = fresh_names(model)
    outputs: dict[str, str] = {}
    limit, zero, axes = fresh("secateur.limit"), fresh("secateur.zero"), fresh("secateur.axes")
    opset = graph.opsets.get("", 0)
    model.graph.initializer.extend(
        [
            helper.make_tensor(limit, TensorProto.FLOAT, [], [ENDLESS]),
            helper.make_tensor(zero, TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor(axes, TensorProto.INT64, [1], [-1]),
        ]
    )
    for name in wanted:
        size, small, kept, flat, most = (fresh(f"{name}.{part}") for part in ("abs", "small", "kept", "flat", "most"))
        model.graph.node.extend(
            [
                helper.make_node("Abs", [name], [size]),
                helper.make_node("Less", [size, limit], [small]),
                helper.make_node("Where", [small, size, zero], [kept]),
                helper.make_node("Reshape", [kept, axes], [flat]),
                helper.make_node("ReduceMax", [flat], [most], keepdims=0),
            ]
        )
        outputs[name] = most
        model.graph.output.append(helper.make_tensor_value_info(most, TensorProto.FLOAT, []))
    if opset < 9:
        raise ModelError(f"operator set {opset} is too old to measure ranges with; 9 is the oldest.")
    try:
        session: Session = open_session(
            serialize_with_data(model, graph.folder), options=SessionOptions(optimize=False)
        )
        found = dict.fromkeys(wanted, float("nan"))
        for feed in feeds:
            got = session.run(feed, list(outputs.values()))
            for name in wanted:
                found[name] = float(np.fmax(found[name], float(got[outputs[name]])))
    except RunError as error:
        raise ModelError(f"the model does not run on the calibration inputs: {error}") from error
    return {name: Extent(value) for name, value in found.items()}
