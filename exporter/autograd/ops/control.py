"""Control flow: If, Loop, Scan."""

from __future__ import annotations

import torch
from torch import Tensor

from exporter.autograd.dtypes import torch_type
from exporter.autograd.registry import Site, Value, op

_MOST_TRIPS = 1 << 62


@op("If")
def _if(site: Site, condition: Tensor) -> tuple[Value, ...]:
    """One of two branches."""
    names = [body.name for body in site.node.bodies]
    return tuple(site.run(names.index("then_branch" if bool(condition) else "else_branch"), []))


@op("Loop")
def _loop(site: Site, trips: Tensor | None, go: Tensor | None, *state: Value) -> tuple[Value, ...]:
    """A body (i, go, state) -> (go, state, slices); slices are stacked."""
    most = _MOST_TRIPS if trips is None else int(trips)
    on = True if go is None else bool(go)
    carried = list(state)
    slices: list[list[Tensor]] = [[] for _ in range(len(site.node.bodies[0].outputs) - 1 - len(carried))]
    i = 0
    while on and i < most:
        given = [torch.tensor(i, dtype=torch.int64), torch.tensor(on), *carried]
        after = site.run(0, given)
        on, carried = bool(after[0]), after[1 : 1 + len(carried)]
        for found, value in zip(slices, after[1 + len(carried) :], strict=True):
            found.append(value)
        i += 1
    after_state = 1 + len(carried)
    return *carried, *(torch.stack(f) if f else _no_slices(site, after_state + k) for k, f in enumerate(slices))


def _no_slices(site: Site, number: int) -> Tensor:
    """What a loop that is not entered gives for an output of its body: none of these, their unknown sizes 0."""
    body = next(a.g for a in site.node.proto.attribute if a.name == "body")
    kind = body.output[number].type.tensor_type
    sizes = [d.dim_value for d in kind.shape.dim]
    return torch.zeros(0, *sizes, dtype=torch_type(kind.elem_type), device=site.device)


@op("Scan")
def _scan(
    site: Site,
    *values: Value,
    num_scan_inputs: int,
    directions: list[int] | None = None,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
) -> tuple[Value, ...]:
    """A body (state, slices) -> (state, slices) over slices of the inputs along an axis."""
    if site.opset < 9:
        return _scan_batch(site, values, num_scan_inputs, directions or [0] * num_scan_inputs)
    states = len(values) - num_scan_inputs
    axes = scan_input_axes or [0] * num_scan_inputs
    back = scan_input_directions or [0] * num_scan_inputs
    count = len(site.node.bodies[0].outputs) - states
    places, back_out = scan_output_axes or [0] * count, scan_output_directions or [0] * count
    parts = [v.unbind(axis) for v, axis in zip(values[states:], axes, strict=True)]
    carried: list[Value] = list(values[:states])
    slices: list[list[Tensor]] = [[] for _ in range(count)]
    length = len(parts[0])
    for t in range(length):
        after = site.run(0, [*carried, *(p[length - 1 - t if b else t] for p, b in zip(parts, back, strict=True))])
        carried = after[:states]
        for found, value in zip(slices, after[states:], strict=True):
            found.append(value)
    stacked = []
    for found, place, reverse in zip(slices, places, back_out, strict=True):
        stacked.append(torch.stack(found[::-1] if reverse else found, place))
    return *carried, *stacked


def _scan_batch(site: Site, values: tuple[Value, ...], scanned: int, back: list[int]) -> tuple[Value, ...]:
    """The first form (operator set 8): lengths first, a batch axis before all else."""
    if values[0] is not None:
        raise site.refuse("it is given the lengths of its sequences")
    given = values[1:]
    states = len(given) - scanned
    rows = []
    for row in range(given[0].shape[0]):
        carried: list[Value] = [v[row] for v in given[:states]]
        slices: list[list[Tensor]] = [[] for _ in range(len(site.node.bodies[0].outputs) - states)]
        length = given[states].shape[1]
        for t in range(length):
            inner = [v[row, length - 1 - t if b else t] for v, b in zip(given[states:], back, strict=True)]
            after = site.run(0, [*carried, *inner])
            carried = after[:states]
            for found, value in zip(slices, after[states:], strict=True):
                found.append(value)
        rows.append([*carried, *(torch.stack(found) for found in slices)])
    return tuple(torch.stack([row[k] for row in rows]) for k in range(len(rows[0])))
