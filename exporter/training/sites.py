"""Where gates stand: what each node must not see of a removed unit, read off the table of ``exporter.gates``.

The table was made for the masked original. Here it is asked what it would hide if every unit went, and nothing is put
into a graph: the answers say where a torch module multiplies by gates that may have any value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from exporter.gates import GATES, Masker
from exporter.gates.masker import surgeon_of
from exporter.graph import Graph
from exporter.groups import Groups
from exporter.plan import AxisTake
from exporter.slots import Axis, Fixed

Units = NDArray[np.int64]
"""For every slot of an axis the numbers of the units it consists of, shape (slots, k); the count of units pads."""

_ONE_FACTOR = frozenset(
    {
        "MatMul",
        "Gemm",
        "Einsum",
        "com.microsoft::FusedMatMul",
        "com.microsoft::TransposeMatMul",
        "com.microsoft::FusedGemm",
    }
)
"""Products, of which the table hides both sides; a gate that is neither 0 nor 1 must act once."""


@dataclass(frozen=True, eq=False)
class Place:
    """A gate on one axis of one input of a node.

    Attributes:
        node: key of the node.
        op: its operator.
        input: index of the input.
        axis: not negative.
        rank: of the input.
        units: of the axis.
    """

    node: str
    op: str
    input: int
    axis: int
    rank: int
    units: Units


@dataclass
class Places:
    """All gates of a graph.

    Attributes:
        inputs: gates on inputs.
        norms: normalisations whose statistics are over the slots that stay; by node key, the place of the first input.
        bare: numbers of the groups that some node reads in a way no gate can stand for.
    """

    inputs: list[Place] = field(default_factory=list)
    norms: dict[str, Place] = field(default_factory=dict)
    bare: set[int] = field(default_factory=set)


NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization"})
"""Normalisations that ``gates`` computes with gates."""


def offsets_of(groups: Groups) -> Units:
    """Number of the first unit of every group, and of all units; shape (groups + 1,)."""
    return np.concatenate([[0], np.cumsum([g.width for g in groups])]).astype(np.int64)


def find_places(groups: Groups) -> Places:
    """Find where gates stand.

    Args:
        groups: the analysis.
    """
    recorder = _Recorder(groups)
    recorder.gate_graph(surgeon_of(groups.graph))
    return recorder.places


class _Recorder(Masker):
    """A masker that notes what it is asked to hide."""

    def __init__(self, groups: Groups) -> None:
        self.source: Graph = groups.graph
        self.groups, self.offsets = groups, offsets_of(groups)
        self.opset = self.source.opsets.get("", 1)
        self.units: dict[tuple[object, ...], dict[int, Units]] = {}
        for key, axes in groups.analysis.axes.items():
            if len(key) in (1, 3):
                found = {k: self._units_of(axis) for k, axis in enumerate(axes) if not isinstance(axis, Fixed)}
                self.units[key] = {k: units for k, units in found.items() if (units < self.offsets[-1]).any()}
        self.cut = {str(key[0]): _taken(axes) for key, axes in self.units.items() if len(key) == 1 and axes}
        self.by_use = {
            use: _taken(self.units[key])
            for use, key in groups.analysis.use.items()
            if len(key) == 3 and self.units.get(key)
        }
        self.dropped = {}
        self.behind = {}
        self.nodes, self.after, self.count = [], [], 0
        self.places = Places()

    def _units_of(self, axis: Axis) -> Units:
        assert not isinstance(axis, Fixed)
        group, unit = self.groups.units(axis)
        return np.where(group >= 0, self.offsets[group] + unit, self.offsets[-1])

    def visit(self, node: gs.Node) -> None:
        """Ask the table what a node must not see."""
        op = node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}::{node.op}"
        table = GATES.get(op)
        if table is not None and self.reads_cut(node):
            key = next((o.name for o in node.outputs if o.name), "")
            inputs = list(node.inputs)
            stays = table(self, node)
            if not stays:
                self._replaced(node, key, op, inputs)
        self.nodes.clear()
        self.after.clear()

    def _replaced(self, node: gs.Node, key: str, op: str, inputs: Sequence[gs.Tensor]) -> None:
        """A node that the masked original computes in another way."""
        axes = self._axes_of(node, key, 0)
        last = len(self.source.inferred.dims[inputs[0].name]) - 1 if inputs[0].name in self.source.inferred.dims else 0
        at = 1 if op == "GroupNormalization" else last
        if op in NORMS and set(axes) == {at}:
            self.places.norms[key] = Place(key, op, 0, at, last + 1, axes[at])
            return
        for i in range(len(inputs)):
            for units in self._axes_of(node, key, i).values():
                self._bare(units)

    def _bare(self, units: Units) -> None:
        real = units[units < self.offsets[-1]]
        self.places.bare.update((np.searchsorted(self.offsets, np.unique(real), side="right") - 1).tolist())

    def _axes_of(self, node: gs.Node, key: str, i: int) -> dict[int, Units]:
        tensor = node.inputs[i].name if i < len(node.inputs) else ""
        use = self.groups.analysis.use.get((key, i))
        return self.units.get(use if use is not None else (tensor,), {})

    def hide(self, node: gs.Node, i: int, axes: Sequence[int], neutral: float | gs.Tensor = 0.0) -> float:
        """Note the axes; the node itself stays as it is."""
        if i >= len(node.inputs) or not node.inputs[i].name:
            return 1.0
        key = next((o.name for o in node.outputs if o.name), "")
        found = self._axes_of(node, key, i)
        if not found:
            return 1.0
        op = node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}::{node.op}"
        rank = self.rank(node.inputs[i])
        for axis in sorted({a % rank for a in axes} & found.keys()):
            units = found[axis]
            twin = op in _ONE_FACTOR and any(
                p.node == key and np.array_equal(p.units, units) for p in self.places.inputs
            )
            if isinstance(neutral, gs.Tensor) or neutral != 0.0:
                self._bare(units)
            elif not twin:
                self.places.inputs.append(Place(key, op, i, axis, rank, units))
        return 1.0


def _taken(axes: dict[int, Units]) -> dict[int, AxisTake]:
    """A cut of every axis with units, so that the table speaks of it."""
    return {k: AxisTake(len(units), tuple(range(len(units) - 1))) for k, units in axes.items()}
