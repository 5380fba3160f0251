"""Two profiles side by side: what each layer takes in both, matched by the nodes of the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.profiling import NodeTime


@dataclass(frozen=True)
class LayerDifference:
    """A layer in two models.

    Attributes:
        name, op: of the layer; of the first model where both have it.
        first, other: seconds; None where that model has no such layer.
        first_macs, other_macs: multiply-accumulates.
    """

    name: str
    op: str
    first: float | None
    other: float | None
    first_macs: int
    other_macs: int

    @property
    def difference(self) -> float:
        """Seconds by which the other model takes longer."""
        return (self.other or 0.0) - (self.first or 0.0)


REORDERS = "changes of layout"


def layer_differences(first: Sequence[NodeTime], other: Sequence[NodeTime]) -> list[LayerDifference]:
    """Match the kernels of two profiles.

    Kernels belong together if they stand for the same nodes of the files, which are told by the tensors they make (an
    exporter gives them the same names as long as the network's code is the same), else by the node's name. Nodes that
    only change the layout are one row.

    Returns:
        One row for each layer, the largest difference first.
    """
    rest = [n for n in other if not n.reorder]
    place = {key: k for k, n in reversed(list(enumerate(rest))) for key in n.keys}
    by_name = {n.name: k for k, n in reversed(list(enumerate(rest)))}
    taken: set[int] = set()
    rows = []
    for node in first:
        if node.reorder:
            continue
        found = [place[key] for key in node.keys if key in place] + [by_name.get(node.name, -1)]
        match = next((k for k in found if k >= 0 and k not in taken and rest[k].macs > 0), -1)
        if match < 0:
            match = next((k for k in found if k >= 0 and k not in taken), -1)
        if match < 0:
            rows.append(LayerDifference(node.name, node.op, node.seconds, None, node.macs, 0))
            continue
        taken.add(match)
        partner = rest[match]
        rows.append(LayerDifference(node.name, node.op, node.seconds, partner.seconds, node.macs, partner.macs))
    rows += [LayerDifference(n.name, n.op, None, n.seconds, 0, n.macs) for k, n in enumerate(rest) if k not in taken]
    reorders = [sum(n.seconds for n in side if n.reorder) for side in (first, other)]
    if any(reorders):
        rows.append(LayerDifference(REORDERS, "Reorder", reorders[0], reorders[1], 0, 0))
    return sorted(rows, key=lambda row: -abs(row.difference))
