"""How far the outputs of a quantized model are from those of the float model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from exporter.calibration.outputs import compared, float_outputs
from exporter.calibration.portioned import Runs
from exporter.calibration.remembered import Remembered
from exporter.calibration.sensitivity import Deviation
from exporter.errors import ModelError
from exporter.graph import Graph
from exporter.protos import add_outputs
from exporter.quantization.precisions import Precision
from runtime.backends import Session, SessionOptions, open_session
from runtime.samples import Samples


@dataclass(frozen=True)
class Reference:
    """The float model, and what others are compared with it by.

    Attributes:
        session: gives these tensors.
        weights: of each tensor.
        makers: the node that makes it, and the place among its outputs.
    """

    session: Runs
    weights: Mapping[str, float]
    makers: Mapping[str, tuple[str, int]]

    def error(self, model: ModelProto, precision: Precision, samples: Samples, batch: int) -> float:
        """Squared difference of what the outputs are put together of, over its variance; the weighted mean.

        Outputs whose sizes depend on what the model finds are left out where these differ.

        Args:
            model: the quantized model.
            precision: how its numbers are stored.
            samples: inputs.
            batch: samples in one run.
        """
        there = self.places(model)
        session = opened(_with_outputs(model, [*there.values()]), precision)
        found = Deviation(self.weights)
        for feeds in samples.batches(batch):
            want, got = self.session.run(feeds, [*there]), session.run(feeds, [*there.values()])
            alike = [name for name in there if np.shape(got[there[name]]) == np.shape(want[name])]
            found.add({name: got[there[name]] for name in alike}, {name: want[name] for name in alike})
        return found.value

    def places(self, model: ModelProto) -> dict[str, str]:
        """Names in a quantized model of what is compared; where it is rounded, of what it is rounded to.

        onnxruntime.quantization keeps the names of nodes, and of all tensors but those behind a Relu that goes.
        """
        nodes = {node.name: node for node in model.graph.node}
        users: dict[str, list[str]] = {}
        for node in model.graph.node:
            for name in node.input:
                users.setdefault(name, []).append(node.name)
        outputs = {value.name for value in model.graph.output}
        found = {}
        for name, (maker, place) in self.makers.items():
            here = name if name in outputs or maker not in nodes else nodes[maker].output[place]
            read = [nodes[user] for user in users.get(here, ())]
            if here not in outputs and [node.op_type for node in read] == ["QuantizeLinear"]:
                (code,) = read[0].output
                here = next((o for user in users.get(code, ()) for o in nodes[user].output), here)
            found[name] = here
        return found


def reference(plain: ModelProto, graph: Graph) -> Reference | None:
    """What models made of a float model are compared with; None where nothing in it is a floating-point number.

    Args:
        plain: the float model, with names on all nodes.
        graph: the same, described.
    """
    makers = {name: (node.name, k) for node in plain.graph.node for k, name in enumerate(node.output)}
    try:
        weights = compared(graph)
    except ModelError:
        return None
    if not weights.keys() <= makers.keys():  # what is inside a local function
        weights = dict.fromkeys(float_outputs(graph), 1.0)
    session = open_session(_with_outputs(plain, [*weights]).SerializeToString())
    return Reference(Remembered(session), weights, {name: makers[name] for name in weights})


def opened(model: ModelProto, precision: Precision) -> Session:
    """A session of a quantized model.

    ONNX Runtime fuses layers between float8 tensors into integer kernels that refuse them, unless it is kept from it;
    the model then computes what TensorRT does.
    """
    level = "basic" if precision.name == "fp8" else "all"
    return open_session(model.SerializeToString(), options=SessionOptions(level=level))


def _with_outputs(model: ModelProto, names: list[str]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    add_outputs(result, names)
    return result
