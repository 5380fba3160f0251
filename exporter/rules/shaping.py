"""Operators that read or set sizes."""

from __future__ import annotations

from exporter.rules.registry import rule
from exporter.rules.site import Site
from exporter.slots import ONE, Axis, Fixed, Reason


@rule("Shape")
def shape(site: Site) -> None:
    """The sizes of x as a vector. What is left after folding feeds run-time arithmetic, which must not see a cut.

    Only the sizes that are read are frozen: a Gather of element 0 leaves the channel axis free.
    """
    axes = site.axes(0)
    first = int(site.attribute("start", 0))
    first += len(axes) if first < 0 else 0
    for k in _read_elements(site):
        if first + k < len(axes):
            site.freeze(axes[first + k], "its size is read at run time")
    for axis in axes:
        site.mention(axis)
    site.give(0, [site.fixed(site.out_shape(0)[0], "a vector of sizes")])


def _read_elements(site: Site) -> set[int]:
    """Elements of the result that anything reads."""
    name = site.node.outputs[0]
    count = site.out_shape(0)[0]
    everything = set(range(count))
    if name in site.graph.outputs:
        return everything
    read: set[int] = set()
    for user, i in site.graph.users.get(name, ()):
        static = site.graph.static
        if user.op == "Gather" and i == 0 and user.inputs[1] in static.known:
            read |= {int(v) % count for v in static.known[user.inputs[1]].ravel()}
        elif user.op == "Slice" and i == 0 and user.outputs[0] in static.dims:
            bounds = [static.vector(user.inputs[j]) if j < len(user.inputs) else None for j in (1, 2)]
            if "starts" in user.attributes:
                bounds = [tuple(user.attributes["starts"]), tuple(user.attributes["ends"])]
            if any(b is None or len(b) != 1 or not isinstance(b[0], int) for b in bounds) or len(user.inputs) > 4:
                return everything
            start, end = (int(b[0]) for b in bounds if b is not None)
            read |= set(range(*slice(start, end).indices(count)))
        else:
            return everything
    return read


@rule("ConstantOfShape")
def constant_of_shape(site: Site) -> None:
    """New slots that all hold one number; the shape's elements follow the cut."""
    result: list[Axis] = []
    for k, n in enumerate(site.out_shape(0)):
        axis = site.facts.axis(n, site.where)
        site.resize(0, k, axis)
        result.append(axis)
    site.give(0, result)


@rule("Expand")
def expand(site: Site) -> None:
    """Axes of size one grow into new slots that repeat one value, the others pass; the shape follows the cut."""
    axes, out = site.axes(0), site.out_shape(0)
    lead = len(out) - len(axes)
    known = site.known(1)
    missing = 0 if known is None else len(out) - len(known)
    target: list[int | None] = [1] * missing
    target += known if known is not None else [None] * len(out)
    result: list[Axis] = []
    for k, n in enumerate(out):
        own = axes[k - lead] if k >= lead else Fixed(1, ONE)
        axis = own if own.size == n else site.facts.fresh(n)
        site.mention(axis)
        if target[k] != 1:
            site.resize(1, k - missing, axis)
        result.append(axis)
    for axis in axes:
        site.mention(axis)
    site.give(0, result)


@rule("Tile")
def tile(site: Site) -> None:
    """An axis of n slots repeated r times is the product of r new slots and the n old ones."""
    axes, out = site.axes(0), site.out_shape(0)
    known = site.known(1) or [None] * len(axes)
    result: list[Axis] = []
    for k, axis in enumerate(axes):
        times = out[k] // max(axis.size, 1)
        if known[k] is None and not isinstance(axis, Fixed):
            site.freeze(axis, "repeated a number of times known only at run time")
            result.append(Fixed(out[k], Reason("repeated a number of times known only at run time", site.where)))
            continue
        if times == 1:
            result.append(axis)
            site.mention(axis)
            continue
        if known[k] is None:
            result.append(site.fixed(out[k], "repeated a number of times known only at run time"))
            continue
        copies = site.facts.fresh(times)
        site.resize(1, k, copies)
        result.append(site.merge([copies, axis]))
    site.give(0, result)


@rule("Range")
def range_(site: Site) -> None:
    """Counts; its length stays."""
    site.give(0, [site.fixed(site.out_shape(0)[0], "a range of numbers")])


@rule("Constant")
def constant(site: Site) -> None:
    """A constant of the file, cut like an initializer; text and sparse matrices stay."""
    for o in range(len(site.node.outputs)):
        site.leave(o, Reason("a constant of text, or a sparse one", site.where))
