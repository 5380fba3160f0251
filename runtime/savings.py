"""Why is it not faster? The work each layer saved against the time it saved, and what holds back those that lag."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.layers import REORDERS
from runtime.profiling import NodeTime, Profile
from runtime.roofline import Peaks, bottleneck

_UNPRUNED = 0.95
_LAGS = 1.15


@dataclass(frozen=True)
class Saving:
    """One layer before and after.

    Attributes:
        name, op: of the layer.
        seconds: what it takes now.
        macs_left: share of its multiply-accumulates that is left; None for a layer without any, or a new one.
        time_left: share of its time that is left; None for a layer that is new.
        lost: seconds it takes longer than the work that is left would.
        reason: why: ``unpruned``, or as ``roofline.bottleneck`` says; empty where it does not lag.
    """

    name: str
    op: str
    seconds: float
    macs_left: float | None
    time_left: float | None
    lost: float
    reason: str


def find_savings(dense: Profile, pruned: Profile, machine: Peaks) -> list[Saving]:
    """Compare two profiles of one network layer by layer.

    What a layer ought to take is its former time by the share of its work that is left; for layers without
    multiply-accumulates the share of its bytes counts instead.

    Returns:
        One row for each kernel of the pruned model, the one that loses most first. All layout changes are one row.
    """
    before: dict[str, NodeTime] = {}
    for node in dense.nodes:
        for key in (node.name, *node.keys):
            before.setdefault(key, node)
    rows = [_saving(n, _former(n, before), machine) for n in pruned.nodes if not n.reorder]
    reorders = [sum(n.seconds for n in p.nodes if n.reorder) for p in (dense, pruned)]
    if reorders[1]:
        left = reorders[1] / reorders[0] if reorders[0] else None
        rows.append(Saving(REORDERS, "Reorder", reorders[1], None, left, max(reorders[1] - reorders[0], 0.0), "layout"))
    return sorted(rows, key=lambda row: -row.lost)


def _former(node: NodeTime, before: dict[str, NodeTime]) -> NodeTime | None:
    candidates = [before[key] for key in (node.name, *node.keys) if key in before]
    working = [c for c in candidates if bool(c.macs) == bool(node.macs)]
    return next(iter(working or candidates), None)


def _saving(node: NodeTime, former: NodeTime | None, machine: Peaks) -> Saving:
    if former is None:
        return Saving(node.name, node.op, node.seconds, None, None, node.seconds, bottleneck(node, machine))
    macs = node.macs / former.macs if former.macs else None
    share = macs if macs is not None else node.bytes / former.bytes if former.bytes else 1.0
    lost = node.seconds - share * former.seconds
    left = node.seconds / former.seconds if former.seconds else None
    reason = ""
    if share > _UNPRUNED:
        reason, lost = "unpruned", node.seconds
    elif left is not None and left > _LAGS * share:
        reason = bottleneck(node, machine)
    return Saving(node.name, node.op, node.seconds, macs, left, max(lost, 0.0), reason)
