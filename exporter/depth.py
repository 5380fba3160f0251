"""Depth: which residual blocks to drop, and the graph without them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence

from onnx import ModelProto

from exporter.blocks import Block, Blocks, Left
from exporter.errors import GoalError, ModelError
from exporter.graph import Before, Graph
from exporter.normalise import normalise
from exporter.plan import Drop
from exporter.removal import forget_unmade, renewed_calls, take_out
from runtime.nouns import counted

_REASONS = 3
_LIST = "List them with: secateur inspect MODEL"


def choose_blocks(
    blocks: Blocks,
    scores: Mapping[str, float],
    *,
    count: int | None = None,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    shared: bool = False,
) -> list[Block]:
    """Choose the blocks to drop, the least important first.

    A block goes with all blocks inside it. One that would leave a graph input unread is passed over. Of those that went
    for a budget of ``macs`` or ``params``, the most important first, all stay that it has room for in the end.

    Args:
        blocks: as ``find_blocks`` returned them.
        scores: importance by name of the block; see ``exporter.influence``.
        count: drop this many. Exactly one of ``count``, ``ratio``, ``macs`` and ``params`` is given.
        ratio: drop this share of the blocks, to the nearest number.
        macs, params: drop blocks until at most this share of the dense graph's is left.
        keep, only: patterns of names of blocks, nodes and tensors; a block that holds a match stays, or may go.
        shared: with ``macs`` and ``params``, leave the widths their part: stop where the square root of the share is
            left of what the blocks hold, and pass over a block that would leave less than the budget.

    Returns:
        The blocks, none inside another, in the order of the graph.

    Raises:
        ModelError: there is no block that may go.
        GoalError: there are too few.
    """
    able = able_to_go(blocks, keep, only)
    most = round(ratio * len(able)) if ratio is not None else count
    measure: Callable[[Left], float] = (lambda left: left.parameters) if macs is None else (lambda left: left.macs)
    target = params if macs is None else macs
    dense = blocks.whole
    floor, goal = (-1.0, -1.0) if target is None else (-1.0, target * measure(dense))
    if target is not None and shared:
        inside = {name for b in able for name in b.inside}
        rest = measure(blocks.left([b for b in able if b.name not in inside]))
        floor, goal = goal, rest + math.sqrt(target) * (measure(dense) - rest)
    now, chosen, gone = dense, list[Block](), set[str]()
    for block in sorted(able, key=lambda b: scores[b.name]):
        if measure(now) <= goal:
            break
        members = {block.name} | block.inside
        if most is not None and len(gone | members) > most:
            continue
        trial = with_block(blocks, chosen, block)
        if trial is None or measure(left := blocks.left(trial)) < floor:
            continue
        now, chosen, gone = left, trial, gone | members
    for block in sorted(chosen, key=lambda b: -scores[b.name]) if target is not None else ():
        fewer = [b for b in chosen if b is not block]
        if measure(left := blocks.left(fewer)) <= goal:
            now, chosen = left, fewer
    if count is not None and len(gone) < count:
        raise GoalError(
            f"--layers {count}: only {counted(len(gone), 'residual block')} can go.\n"
            "List them with: secateur inspect MODEL"
        )
    if not shared and measure(now) > goal >= 0:
        name = "params" if macs is None else "macs"
        raise GoalError(
            f"--{name} {target:g} cannot be reached by dropping residual blocks: without all that can go "
            f"{measure(now) / measure(dense):.3f} is left.\nCut widths too: --granularity layers,channels,neurons,heads"
        )
    return sorted(chosen, key=blocks.blocks.index)


def able_to_go(blocks: Blocks, keep: Sequence[str] = (), only: Sequence[str] = ()) -> list[Block]:
    """The blocks that patterns leave to go; see ``choose_blocks``.

    Raises:
        ModelError: there is none.
    """
    kept = {b.name for b in blocks for p in keep if matches(blocks, b, p)}
    able = [
        b for b in blocks if not ({b.name} | b.inside) & kept and (not only or any(matches(blocks, b, p) for p in only))
    ]
    if not able:
        raise ModelError(_no_block(blocks))
    return able


def with_block(blocks: Blocks, chosen: Sequence[Block], block: Block) -> list[Block] | None:
    """The chosen blocks and one more, which goes with all blocks inside it.

    Returns:
        The blocks, none inside another; None where it is gone already, where it is the last operand of a sum that a
        chosen one is an operand of, or where a graph input would be left unread.
    """
    gone = {name for b in chosen for name in (b.name, *b.inside)}
    if block.name in gone or any(b.drop.node == block.drop.node for b in chosen):
        return None
    trial = [b for b in chosen if b.name not in block.inside] + [block]
    unread = blocks.whole.inputs - blocks.left(trial).inputs - {n for b in trial for n in b.drop.interface}
    return None if unread else trial


def matches(blocks: Blocks, block: Block, pattern: str) -> bool:
    """Say whether the name of a block, or of a node or tensor in it, matches a pattern."""
    names = blocks.names[block.name]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _no_block(blocks: Blocks) -> str:
    if len(blocks):
        return f"--keep and --only leave none to drop of {counted(len(blocks), 'residual block')}.\n{_LIST}"
    reasons = "".join(f"\n  {r.name}: {r.reason}; {r.hint}" for r in blocks.refused[:_REASONS])
    return f"this model has no residual block that can be dropped (x + f(x), both of equal shape).{reasons}"


def drop(graph: Graph, drops: Sequence[Drop]) -> Graph:
    """Take blocks out of a graph.

    Args:
        graph: the graph they were found in; it stays as it is.
        drops: of the blocks, none inside another; in the order of the graph.

    Returns:
        What is left, with the same inputs and outputs but those that go with a block. Plans made for it are plans for
        ``graph``.
    """
    if not drops:
        return graph
    model = ModelProto()
    model.CopyFrom(graph.model)
    take_out(model, drops, graph.constants)
    forget_unmade(model)
    left = {v.name for v in model.graph.input}
    shapes = {name: shape for name, shape in graph.binding.shapes.items() if name in left}
    reduced = normalise(model, graph.folder, graph.source, shapes)
    reduced.calls = renewed_calls(graph.calls, drops)
    reduced.before = Before(graph, tuple(drops))
    return reduced
