"""How far the outputs of a quantized model are from those of the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.helper import make_tensor_value_info

from exporter.calibration.choices import INDICES, choices, values_of
from exporter.calibration.outputs import compared, float_outputs
from exporter.calibration.portioned import Runs
from exporter.calibration.remembered import Remembered
from exporter.calibration.sensitivity import Deviation
from exporter.errors import GoalError, ModelError
from exporter.graph import Graph
from exporter.proof_inputs import seeded_sets
from exporter.protos import add_outputs
from exporter.quantization.precisions import Precision
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import RunError
from runtime.samples import Samples


@dataclass(frozen=True)
class Reference:
    """The float model, and what others are compared with it by.

    Attributes:
        session: gives these tensors, and what is chosen.
        weights: of each tensor.
        makers: the node that makes it, and the place among its outputs.
        chosen: tensors that say what nodes choose; see ``exporter.calibration.choices``.
    """

    session: Runs
    weights: Mapping[str, float]
    makers: Mapping[str, tuple[str, int]]
    chosen: Sequence[str] = ()

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
        model, chosen = _choosing(_with_outputs(model, [*there.values()]), self.chosen)
        session = opened(model, precision)
        found = Deviation(self.weights)
        for feeds in samples.batches(batch):
            want = self.session.run(feeds, [*there, *self.chosen])
            got = session.run({**feeds, **{name: want[name] for name in chosen}}, [*there.values()])
            alike = [name for name in there if np.shape(got[there[name]]) == np.shape(want[name])]
            found.add({name: got[there[name]] for name in alike}, {name: want[name] for name in alike})
        return found.value

    def places(self, model: ModelProto) -> dict[str, str]:
        """Names in a quantized model of what is compared; where it is rounded, of what it is rounded to.

        onnxruntime.quantization keeps the names of nodes, and of all tensors but those behind a Relu that goes; where a
        layer's weights alone become integers, tensors keep theirs.
        """
        nodes = {node.name: node for node in model.graph.node}
        users: dict[str, list[str]] = {}
        for node in model.graph.node:
            for name in node.input:
                users.setdefault(name, []).append(node.name)
        outputs = {value.name for value in model.graph.output}
        there = outputs.union(*(node.output for node in nodes.values()))
        found = {}
        for name, (maker, place) in self.makers.items():
            here = name if name in there or maker not in nodes else nodes[maker].output[place]
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
    chosen = [name for name in choices(graph, graph) if name not in weights]
    session = open_session(_with_outputs(plain, [*weights, *chosen]).SerializeToString())
    return Reference(Remembered(session), weights, {name: makers[name] for name in weights}, chosen)


def opened(model: ModelProto, precision: Precision) -> Session:
    """A session of a quantized model.

    ONNX Runtime fuses layers between float8 tensors into integer kernels that refuse them, unless it is kept from it;
    the model then computes what TensorRT does.
    """
    level = "basic" if precision.name == "fp8" else "all"
    return open_session(model.SerializeToString(), options=SessionOptions(level=level))


def check_runs(model: ModelProto, precision: Precision, original: Runs, graph: Graph) -> None:
    """Make sure that ONNX Runtime runs a quantized model as it is used, optimised, and to outputs of as many axes.

    Args:
        model: the model.
        precision: how its numbers are stored.
        original: runs the float model.
        graph: the float model, described.

    Raises:
        GoalError: it does not, on inputs on which the original runs.
    """
    feed = seeded_sets(graph, {})[0]
    try:
        want = original.run(feed)
    except RunError:  # made-up inputs do not suit every model
        return
    try:
        got = opened(model, precision).run(feed)
    except RunError as error:
        raise GoalError(
            f"the quantized model does not run in ONNX Runtime, which the float model does: {error}\nNothing was "
            "written. Leave the layer in float with --keep, and please report it with the model."
        ) from error
    for name, values in want.items():
        if isinstance(values, np.ndarray) and np.ndim(values) != np.ndim(got[name]):  # sizes may depend on the data
            raise GoalError(
                f"output '{name}' of the quantized model has shape {np.shape(got[name])} in ONNX Runtime, that of the "
                f"float model {np.shape(values)}. Nothing was written. Please report it with the model."
            )


def _choosing(model: ModelProto, names: Sequence[str]) -> tuple[ModelProto, list[str]]:
    """A model that takes for inputs what is chosen, as far as it has nodes that choose it; and the names of these."""
    outputs = {output.name for output in model.graph.output}
    read = outputs | {name for node in model.graph.node for name in node.input}
    nodes, found = [], []
    for node in model.graph.node:
        chosen = node.output[INDICES[node.op_type]] if node.op_type in INDICES else ""
        if chosen not in names or chosen in outputs:
            nodes.append(node)
            continue
        found.append(chosen)
        if node.op_type == "TopK" and node.output[0] in read:
            nodes.append(values_of(node))
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.input.extend(make_tensor_value_info(name, TensorProto.INT64, None) for name in found)
    return result, found


def _with_outputs(model: ModelProto, names: list[str]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    add_outputs(result, names)
    return result
