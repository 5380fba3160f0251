"""How large the numbers of a network get on calibration inputs, in subgraphs too: one run of the fp32 file, whole or
piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from exporter.calibration.portioned import runner_over
from exporter.forced_branches import Way, force
from exporter.graph import Graph
from exporter.normalise import inline_data
from exporter.precision.values import ENDLESS, largest
from exporter.protos import add_outputs, domain_of, fresh_names, set_nodes, subgraphs
from exporter.sessions import not_calibrated
from exporter.tensors import Array
from runtime.backends import Session, SessionOptions, open_session
from runtime.errors import RunError
from runtime.feeds import Feeds

_WITH_WHERE = 9
"""The first operator set in which magnitudes can be told apart inside the model."""
_UNSEEN = -1.0
"""Stands for the magnitude of a tensor that was not made; a magnitude is never negative."""
_TOGETHER = 32
"""Tensors that are kept at a time where a graph runs piece by piece."""
_PER_SCAN_OUTPUT = ("scan_output_axes", "scan_output_directions")


@dataclass(frozen=True)
class Extent:
    """Largest magnitude of a tensor.

    Attributes:
        largest: over all finite values below ``ENDLESS``; NaN where it is not known, in a branch that did not run.
    """

    largest: float


def measure_extents(
    graph: Graph, names: Iterable[str], feeds: Sequence[Feeds], ways: Sequence[Way] = ()
) -> dict[str, Extent]:
    """Run the graph and read the largest magnitude of tensors.

    A tensor in a branch of an If is handed out by the If, one in the body of a Loop or Scan as one number for each
    iteration.

    Args:
        graph: the graph; it stays as it is.
        names: of fp32 tensors, those in subgraphs included.
        feeds: inputs, batch by batch.
        ways: through branches that inputs may pass by (``exporter.forced_branches``); ways that do not run are
            left out.

    Returns:
        An extent for each of ``names``.

    Raises:
        ModelError: the model does not run on the inputs.
    """
    wanted = list(names)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    inside = graph.opsets.get("", 0) >= _WITH_WHERE
    if not inside:
        top = {name for node in graph.nodes if node.depth == 0 for name in node.outputs} | set(graph.inputs)
        outputs = {name: name for name in wanted if name in top}
        add_outputs(model, outputs)
    else:
        outputs = _Meter(model, set(wanted)).measure()
        for name in outputs.values():
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    found = dict.fromkeys(wanted, math.nan)
    whole = inline_data(model, graph.folder)
    # where a file declares one size for two, a tensor of a node added here would not fit where ONNX Runtime puts it
    options = SessionOptions(optimize=False, reuse=False)
    for way in ({}, *ways):
        try:
            session: Session = open_session(force(whole, way), options=options)
            for feed in feeds:
                got = session.run(feed, list(outputs.values()))
                for name, output in outputs.items():
                    most = float(np.asarray(got[output])) if inside else largest(got[output])
                    found[name] = float(np.fmax(found[name], most))
        except RunError as error:
            if not way:
                raise not_calibrated(error) from error
    return {name: Extent(value if value >= 0 else math.nan) for name, value in found.items()}


def measure_pieces(
    graph: Graph, names: Iterable[str], feeds: Sequence[Feeds]
) -> tuple[dict[str, Extent], list[dict[str, Array]]]:
    """The same for a graph too large for one message, which runs piece by piece, and its outputs for each of the feeds.

    What lies in branches and bodies is not known.
    """
    found = dict.fromkeys(names, math.nan)
    order = [*graph.inputs, *(name for node in graph.nodes if node.depth == 0 for name in node.outputs)]
    wanted = [name for name in order if name in found]
    runner = runner_over(graph, feeds)
    for start in range(0, len(wanted), _TOGETHER):
        here = wanted[start : start + _TOGETHER]
        runner.advance(here)
        for name in here:
            found[name] = max(map(largest, runner.values(name)))
    return {name: Extent(value) for name, value in found.items()}, list(runner.branch(graph.outputs, {}))


class _Meter:
    """Adds nodes that find the largest magnitudes, and outputs that carry them out of subgraphs."""

    def __init__(self, model: onnx.ModelProto, wanted: set[str]) -> None:
        self.graph, self.wanted, self.fresh = model.graph, wanted, fresh_names(model)
        self.made: dict[str, str] = {}

    def _constant(self, name: str, dims: Sequence[int], value: float, kind: int = TensorProto.FLOAT) -> str:
        """Made when it is first read: ONNX Runtime refuses those that nothing reads before IR version 4."""
        if name not in self.made:
            self.made[name] = self.fresh(f"secateur.{name}")
            self.graph.initializer.append(helper.make_tensor(self.made[name], kind, dims, [value]))
        return self.made[name]

    def measure(self) -> dict[str, str]:
        """Name of the scalar that holds the magnitude, by tensor."""
        return self._inside(self.graph)

    def _inside(self, graph: GraphProto) -> dict[str, str]:
        """The same for a graph and what lies in it; the scalars are the graph's own."""
        nodes: list[NodeProto] = []
        found: dict[str, str] = {}
        for value in graph.input:
            self._add(value.name, nodes, found)
        for node in graph.node:
            nodes.append(node)
            for name in node.output:
                self._add(name, nodes, found)
            carry = {"If": self._from_branches, "Loop": self._from_body, "Scan": self._from_body}.get(node.op_type)
            if carry is not None and not domain_of(node) and subgraphs(node):
                found |= carry(node, nodes)
        set_nodes(graph, nodes)
        return found

    def _add(self, name: str, nodes: list[NodeProto], found: dict[str, str]) -> None:
        if name not in self.wanted:
            return
        size, small, kept, flat = (self.fresh(f"{name}.{part}") for part in ("abs", "small", "kept", "flat"))
        nodes += [
            helper.make_node("Abs", [name], [size]),
            helper.make_node("Less", [size, self._constant("limit", [], ENDLESS)], [small]),
            helper.make_node("Where", [small, size, self._constant("zero", [], 0.0)], [kept]),
            helper.make_node("Reshape", [kept, self._constant("flat", [1], -1, TensorProto.INT64)], [flat]),
        ]
        found[name] = self._most(name, flat, nodes)

    def _most(self, name: str, values: str, nodes: list[NodeProto]) -> str:
        most = self.fresh(f"{name}.most")
        nodes.append(helper.make_node("ReduceMax", [values], [most], keepdims=0))
        return most

    def _from_branches(self, node: NodeProto, nodes: list[NodeProto]) -> dict[str, str]:  # noqa: ARG002
        """An If returns what both branches hold; the one that is not taken was not seen."""
        branches = subgraphs(node)
        _fill(node, len(branches[0].output))
        found: dict[str, str] = {}
        for mine in branches:
            for name, scalar in self._inside(mine).items():
                found[name] = self.fresh(f"{name}.out")
                node.output.append(found[name])
                for branch in branches:
                    handed = scalar if branch is mine else self._never(name, branch)
                    branch.output.append(helper.make_tensor_value_info(handed, TensorProto.FLOAT, []))
        return found

    def _never(self, name: str, branch: GraphProto) -> str:
        made = self.fresh(f"{name}.never")
        tensor = helper.make_tensor(made, TensorProto.FLOAT, [], [_UNSEEN])
        branch.node.append(helper.make_node("Constant", [], [made], value=tensor))
        return made

    def _from_body(self, node: NodeProto, nodes: list[NodeProto]) -> dict[str, str]:
        """A Loop or Scan returns one number for each iteration."""
        (body,) = subgraphs(node)
        _fill(node, len(body.output) - (node.op_type == "Loop"))  # its condition stays inside
        found: dict[str, str] = {}
        for name, scalar in self._inside(body).items():
            body.output.append(helper.make_tensor_value_info(scalar, TensorProto.FLOAT, []))
            node.output.append(self.fresh(f"{name}.each"))
            for attribute in _given(node, _PER_SCAN_OUTPUT):
                attribute.ints.append(0)
            joined = self.fresh(f"{name}.joined")  # there may be no iteration
            unseen = self._constant("unseen", [1], _UNSEEN)
            nodes.append(helper.make_node("Concat", [node.output[-1], unseen], [joined], axis=0))
            found[name] = self._most(name, joined, nodes)
        return found


def _fill(node: NodeProto, count: int) -> None:
    """Name the outputs that were left out at the end, so that more can follow."""
    node.output.extend([""] * (count - len(node.output)))


def _given(node: NodeProto, names: Sequence[str]) -> list[AttributeProto]:
    return [a for a in node.attribute if a.name in names]
