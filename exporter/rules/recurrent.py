"""Recurrent layers: hidden units are tied through gates, biases, peepholes and states; time and directions stay."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import Axis, Fixed, SlotError
from runtime.nouns import counted


@dataclass(frozen=True)
class _Cell:
    """What one operator's inputs hold: how many gates, and which inputs and outputs are states."""

    gates: int
    states: tuple[int, ...]
    peepholes: int | None = None


_CELLS = {"RNN": _Cell(1, (5,)), "GRU": _Cell(3, (5,)), "LSTM": _Cell(4, (5, 6), peepholes=7)}


@rule("RNN", "GRU", "LSTM")
def recurrent(site: Site) -> None:
    """In W x[t] + R h[t-1] + B the input and the former state are summed over; a hidden unit has a row in every gate.

    With D directions, W is [D, gates x H, I], R [D, gates x H, H], B [D, 2 x gates x H], P [D, 3 x H] and every state
    [D, N, H]; both directions of one node share their number of hidden units.
    """
    cell = _CELLS[site.node.op]
    if "hidden_size" not in site.node.attributes:
        raise SlotError("the number of hidden units is not given")
    x, w, r = site.axes(0), site.axes(1), site.axes(2)
    batch_first = int(site.attribute("layout", 0))
    time, batch = x[batch_first], x[1 - batch_first]
    site.freeze(time, "time steps of a recurrent layer")
    for axis in (w[0], r[0]):
        site.freeze(axis, "directions of a recurrent layer")
    hidden = _per_gate(site, w[1], cell.gates)
    site.tie(hidden, _per_gate(site, r[1], cell.gates))
    site.tie(hidden, r[2])
    site.tie(x[2], w[2])
    site.contract(0, 2)
    site.contract(1, 2)
    site.contract(2, 2)
    for i, parts in ((3, 2 * cell.gates), (cell.peepholes, 3)):
        if i is not None and site.has(i):
            directions, flat = site.axes(i)
            site.freeze(directions, "directions of a recurrent layer")
            site.tie(hidden, _per_gate(site, flat, parts))
    if site.has(4):
        site.tie(batch, site.axes(4)[0])
    for i in cell.states:
        if site.has(i):
            state = site.axes(i)
            site.freeze(state[batch_first], "directions of a recurrent layer")
            site.tie(batch, state[1 - batch_first])
            site.tie(hidden, state[2])
    site.resize_attribute("hidden_size", hidden)
    _give(site, batch_first, batch, hidden)
    steps = time.size * w[0].size * cell.gates
    site.work(steps, batch, hidden, w[2])
    site.work(steps, batch, hidden, hidden)


def _per_gate(site: Site, flat: Axis, parts: int) -> Axis:
    """Hidden units of an axis that holds a block of them for each gate."""
    if flat.size % parts:
        raise SlotError(f"{counted(flat.size, 'row is', 'rows are')} not {counted(parts, 'block')} of equal size")
    if isinstance(flat, Fixed):
        return Fixed(flat.size // parts, flat.why)
    first, *others = flat.reshape(parts, -1)
    for block in others:
        site.tie(first, block)
    return first


def _give(site: Site, batch_first: int, batch: Axis, hidden: Axis) -> None:
    """Y holds every step, [S, D, N, H] or, batch first, [N, S, D, H]; the others the last state."""
    for o in range(len(site.node.outputs)):
        if not site.has_output(o):
            continue
        out = site.out_shape(o)
        fixed = [site.fixed(size, "steps or directions of a recurrent layer") for size in out]
        if o == 0:
            axes = [batch, fixed[1], fixed[2]] if batch_first else [fixed[0], fixed[1], batch]
        else:
            axes = [batch, fixed[1]] if batch_first else [fixed[0], batch]
        site.give(o, [*axes, hidden])
