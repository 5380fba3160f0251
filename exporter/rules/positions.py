"""Integer tensors whose values are positions along an axis: what they select follows a cut of that axis.

A router takes the best k of its experts, and their numbers select weights from tables. If expert 2 goes, expert 3
becomes number 2 in the router's column and in the tables alike, so nobody need know: the axis is free as long as the
numbers are used for nothing else.
"""

from __future__ import annotations

from onnx import TensorProto

from exporter.graph import Node
from exporter.rules.site import Analysis, Site
from exporter.slots import Axis, Fixed, Reason

_CARRIES = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SIZES = frozenset({"Shape", "Size"})
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def count(site: Site, o: int, axis: Axis) -> None:
    """State that the values of output ``o`` are positions along an axis, and that they are what the axis is for."""
    if not isinstance(axis, Fixed):
        site.analysis.positions[site.node.outputs[o]] = axis
        site.analysis.routed.append(axis)


def follow(site: Site, i: int, axis: Axis) -> bool:
    """Tie an axis that input ``i`` selects from with the axis its values count; False where they count none."""
    counted = site.analysis.positions.get(site.node.inputs[i])
    if counted is None or counted.size != axis.size:
        return False
    site.tie(axis, counted)
    site.analysis.followed.add((site.node.key, i))
    return True


def carry(analysis: Analysis, node: Node) -> None:
    """The result of moving positions about holds the same positions."""
    counted = analysis.positions.get(node.inputs[0]) if node.inputs else None
    integers = node.op == "Cast" and node.attributes.get("to") in _INTEGERS
    if counted is not None and (node.op in _CARRIES or integers):
        analysis.positions[node.outputs[0]] = counted
        analysis.followed.add((node.key, 0))


def settle(analysis: Analysis) -> None:
    """Freeze every axis whose positions are used for anything but selecting."""
    for name, counted in analysis.positions.items():
        for user, i in analysis.graph.users.get(name, ()):
            if (user.key, i) not in analysis.followed and user.op not in _SIZES:
                analysis.facts.freeze(counted, Reason("positions along it are read", user.label))
        if name in analysis.graph.outputs:
            analysis.facts.freeze(counted, Reason("graph output", f"output '{name}'"))
