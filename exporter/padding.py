"""Widen groups of a graph by units that do nothing: zeros in every weight, so that every output stays what it is.

A new unit's producers give zero or some constant, and whatever sums over it multiplies it with zero. That holds for
sums; for a mean or a normalisation over the axis it does not, and softmax, shuffles and the like move units about. What
is lossless is therefore not derived but tried: see ``exporter.aligning``, which runs both models.

New units come after the last unit of their group wherever that appears. Positions of one unit that lie together (a
flattened image) stay together, so data movement at run time puts them where the weights expect them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from onnx import ModelProto, TensorProto

from exporter import tensors
from exporter.edits import constant_takes, size_edits
from exporter.errors import ModelError
from exporter.graph import Graph
from exporter.groups import Group, Groups
from exporter.plan import AxisTake, Plan
from exporter.plan_check import fingerprint
from exporter.protos import graphs_of
from exporter.rewriter import rewrite
from exporter.slots import Axis, Fixed, Ids

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_DIVISORS = {"BatchNormalization": 4, "Div": 1, "InstanceNormalization": -1}
"""Operators, and the input a unit is divided by (the square root of): one instead of zero keeps it finite."""


def may_pad(groups: Groups, group: Group) -> bool:
    """Say whether a group can be widened at all: its weights are floating point, and no node selects among its units.

    Whether the outputs stay is another question.
    """
    graph, number = groups.graph, groups.groups.index(group)
    if any(graph.constants[s.tensor].data_type not in _FLOATS for s in group.parameters if s.tensor in graph.trained):
        return False
    if any(len(graph.constants[s.tensor].dims) == 0 for s in group.parameters):
        return False
    moved = [t.ids for t in groups.analysis.facts.takes]
    moved += [a for s in groups.analysis.shuffles for a in groups.analysis.axes[s.source,] if not isinstance(a, Fixed)]
    return not any((groups.units(ids)[0] == number).any() for ids in moved)


def pad(groups: Groups, extra: Mapping[str, int]) -> Graph:
    """Widen groups.

    Args:
        groups: the analysis of the graph, which stays as it is.
        extra: by name of the group, how many units to add.

    Returns:
        The widened graph.

    Raises:
        ModelError: a number in the file that counts units cannot be renewed.
    """
    graph = groups.graph
    grown = _Grown(groups, extra)
    longer: dict[str, set[int]] = {}
    for key in groups.analysis.use.values():
        axes = grown.axes(groups.analysis.axes[key])
        if axes:
            longer.setdefault(key[0], set()).update(axes)
    wide = _with_spare(graph, longer)

    def whole(name: str) -> dict[int, AxisTake]:  # what reads a constant as it was leaves the spare position out
        sizes = graph.constants[name].dims
        return {k: AxisTake(sizes[k] + 1, tuple(range(sizes[k]))) for k in sorted(longer.get(name, ()))}

    def axes_of(name: str, axes: Sequence[Axis]) -> dict[int, AxisTake]:
        return whole(name) | grown.axes(axes)

    try:
        counts, sizes = size_edits(groups, grown.count)
    except (KeyError, AssertionError) as error:
        raise ModelError(f"the sizes in this model cannot be renewed: {error}") from error
    take = {
        name: t if t.axes or t.values is not None else dataclasses.replace(t, axes=whole(t.clone_of or name))
        for name, t in constant_takes(groups, axes_of, counts).items()
    }
    plan = Plan(fingerprint(wide), {}, (), (), take, {}, sizes, ())
    return rewrite(wide, plan)


class _Grown:
    """How often every slot is there after widening: the last unit of a group stands for the new ones too."""

    def __init__(self, groups: Groups, extra: Mapping[str, int]) -> None:
        count = groups.analysis.facts.count
        group, unit = groups.units(np.arange(count, dtype=np.int64))
        self.times = np.ones(count, np.int64)
        self.anchor = np.full(count, -1, np.int64)
        for number, g in enumerate(groups):
            if extra.get(g.name):
                here = ((group == number) & (unit == g.width - 1)).any(1)
                self.times[here] *= 1 + extra[g.name]
                self.anchor[here] = number

    def count(self, ids: Ids) -> int:
        """Number of positions that these slots have then."""
        return int(self.times[ids].sum())

    def axes(self, axes: Sequence[Axis]) -> dict[int, AxisTake]:
        """What each axis takes: its own positions and, for new ones, the spare one after its last."""
        return {
            k: AxisTake(axis.size + 1, self._indices(axis))
            for k, axis in enumerate(axes)
            if not isinstance(axis, Fixed) and (self.times[axis] > 1).any()
        }

    def _indices(self, ids: Ids) -> tuple[int, ...]:
        anchors, times = self.anchor[ids], self.times[ids]
        borders = np.flatnonzero(np.diff(anchors, prepend=-2, append=-2))
        result: list[int] = []
        for start, end in pairwise(borders):
            result.extend(range(start, end))
            if anchors[start] >= 0:
                result.extend([ids.size] * int((end - start) * (times[start] - 1)))
        return tuple(result)


def _with_spare(graph: Graph, longer: Mapping[str, set[int]]) -> Graph:
    """The graph with one more position along these axes of constants, which holds what a unit that does nothing has."""
    constants = dict(graph.constants)
    for name, axes in longer.items():
        values = graph.array(name)
        fill = float(any(_divides(user.op, i) for user, i in graph.users.get(name, ())))
        for axis in axes:
            shape = list(values.shape)
            shape[axis] = 1
            values = np.concatenate([values, np.full(shape, fill, values.dtype)], axis)
        tensor = TensorProto()
        tensor.name, tensor.data_type = name, graph.constants[name].data_type
        tensor.doc_string = graph.constants[name].doc_string
        tensors.assign(tensor, values)
        constants[name] = tensor
    model = ModelProto()
    model.CopyFrom(graph.model)
    for inner in graphs_of(model.graph):
        del inner.value_info[:]  # declared shapes that no longer hold; they are inferred anew
    return dataclasses.replace(graph, model=model, constants=constants)


def _divides(op: str, place: int) -> bool:
    return _DIVISORS.get(op) == place
