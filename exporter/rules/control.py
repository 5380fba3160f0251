"""Control flow: the rules go on inside the subgraphs, and the values that pass their borders are tied.

What a subgraph reads from around it needs no rule: it is the outer tensor itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis, Fixed, Reason, SlotError

_OLDEST_SCAN = 9


@rule("If")
def if_(site: Site) -> None:
    """The result is what one of two branches returns: the slots of both are tied."""
    branches = [site.body("then_branch"), site.body("else_branch")]
    outputs = len(site.node.outputs)
    if len(site.node.inputs) != 1 or any(b.inputs or len(b.outputs) != outputs for b in branches):
        raise SlotError("the branches do not return what the If does")
    for branch in branches:
        site.enter(branch)
    for o in range(outputs):
        results = [branch.outputs[o] for branch in branches]
        _pass(site, o, [site.inner(name) for name in results], "the branches return different shapes")


@rule("Loop")
def loop(site: Site) -> None:
    """A state that goes from iteration to iteration has the same slots before, between and after them.

    Scan outputs stack the slices along a new first axis.
    """
    body = site.body("body")
    initial = range(2, len(site.node.inputs))
    if len(body.inputs) != len(site.node.inputs) or len(body.outputs) != len(site.node.outputs) + 1:
        raise SlotError("the body does not take and return what the loop needs")
    states = _states(site, body.inputs[2:], initial)
    numbers: list[list[Axis]] = [[site.fixed(n, "") for n in site.graph.shape(name) or ()] for name in body.inputs[:2]]
    count = site.known(0)
    repeats = count[0] if count is not None and len(count) == 1 and count[0] is not None else 1
    site.enter(body, [*numbers, *states], repeats)
    _carry(site, states, body.outputs[1:])
    for o in range(len(states), len(site.node.outputs)):
        _stack(site, o, body.outputs[1 + o], 0)


@rule("Scan")
def scan(site: Site) -> None:
    """Like a Loop over slices of the scan inputs, along an axis that stays."""
    if site.opset < _OLDEST_SCAN:
        raise SlotError(f"Scan of operator set {site.opset} is not analysed")
    body = site.body("body")
    inputs, outputs = len(site.node.inputs), len(site.node.outputs)
    count = inputs - int(site.attribute("num_scan_inputs"))
    if len(body.inputs) != inputs or len(body.outputs) != outputs or not 0 <= count <= outputs:
        raise SlotError("the body does not take and return what the scan needs")
    states = _states(site, body.inputs[:count], range(count))
    slices: list[list[Axis]] = []
    trips = 1
    for i, axis in zip(range(count, inputs), _places(site, "scan_input_axes", inputs - count), strict=True):
        whole = list(site.axes(i))
        at = axis % len(whole)
        trips = whole[at].size
        site.freeze(whole[at], "iterations of a Scan")
        slices.append(whole[:at] + whole[at + 1 :])
        for part in slices[-1]:
            site.mention(part)
    site.enter(body, [*states, *slices], trips)
    _carry(site, states, body.outputs)
    for o, place in zip(range(count, outputs), _places(site, "scan_output_axes", outputs - count), strict=True):
        _stack(site, o, body.outputs[o], place)


def _places(site: Site, attribute: str, count: int) -> list[int]:
    places = list(site.attribute(attribute, [0] * count))
    if len(places) != count:
        raise SlotError(f"{len(places)} {attribute} for {count} tensors")
    return places


def _states(site: Site, inside: Sequence[str], initial: range) -> list[list[Axis] | None]:
    """Slots of the carried values; None, and the initial value frozen, where the shape changes on the way."""
    states: list[list[Axis] | None] = []
    for name, i in zip(inside, initial, strict=True):
        outer = site.graph.shape(site.node.inputs[i])
        if outer is not None and outer == site.graph.shape(name):
            states.append(site.axes(i))
            continue
        states.append(None)
        if outer is not None:
            for axis in site.axes(i):
                site.freeze(axis, "a value whose shape changes between iterations")
    return states


def _carry(site: Site, states: Sequence[list[Axis] | None], returned: Sequence[str]) -> None:
    """Tie what the body returns to what it was given."""
    for o, (state, name) in enumerate(zip(states, returned, strict=False)):
        _pass(site, o, [state, site.inner(name)], "a value whose shape changes between iterations")


def _pass(site: Site, o: int, values: Sequence[list[Axis] | None], why: str) -> None:
    """Tie values that become output ``o``; freeze them, and give ``why``, where they cannot be."""
    known = [v for v in values if v is not None]
    shapes = {tuple(a.size for a in v) for v in known}
    if site.has_output(o):
        shapes.add(site.graph.shape(site.node.outputs[o]) or ())
    if len(known) < len(values) or len(shapes) != 1:
        _freeze(site, o, known, why)
        return
    result: list[Axis] = []
    for axes in zip(*known, strict=True):
        lead = next((a for a in axes if not isinstance(a, Fixed)), axes[0])
        for axis in axes:
            site.tie(lead, axis)
        result.append(lead)
    if site.has_output(o):
        site.give(o, result)


def _freeze(site: Site, o: int, values: Sequence[list[Axis]], why: str) -> None:
    for axes in values:
        for axis in axes:
            site.freeze(axis, why)
    if site.has_output(o):
        site.leave(o, Reason(why, site.where))


def _stack(site: Site, o: int, name: str, place: int) -> None:
    """A scan output: the slices of all iterations along a new axis."""
    inner = site.inner(name)
    if not site.has_output(o):
        return
    out = site.graph.shape(site.node.outputs[o])
    if inner is None or out is None or len(out) != len(inner) + 1:
        _freeze(site, o, [inner or []], "stacked to a shape that is not known")
        return
    axes = list(inner)
    at = place % len(out)
    axes.insert(at, site.fixed(out[at], "iterations"))
    site.give(o, axes)
