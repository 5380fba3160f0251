"""Reductions: the reduced axes end here; a mean is then over the slots that stay."""

from __future__ import annotations

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed


@rule(
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)
def reduce(site: Site) -> None:
    """Y = reduce over axes (x): these end here, with the result of the slots that stay; the others pass through."""
    axes = site.axes(0)
    given = site.integers(1, "axes")
    if not given:
        given = [] if site.attribute("noop_with_empty_axes", 0) else list(range(len(axes)))
    gone = {g % len(axes) for g in given}
    for k in gone:
        site.contract(0, k)
    keep = bool(site.attribute("keepdims", 1))
    result: list[Axis] = []
    for k, axis in enumerate(axes):
        if k not in gone:
            result.append(axis)
        elif keep:
            result.append(Fixed(1, ONE))
    site.give(0, result)


@rule("ArgMax", "ArgMin")
def arg(site: Site) -> None:
    """The position of an extreme value: the axis stays, or positions would change their meaning."""
    axes = site.axes(0)
    at = int(site.attribute("axis", 0)) % len(axes)
    site.freeze(axes[at], f"positions along the axis of {site.node.op}")
    keep = bool(site.attribute("keepdims", 1))
    site.give(0, [Fixed(1, ONE) if k == at else a for k, a in enumerate(axes) if keep or k != at])
