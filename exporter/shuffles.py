"""Chains of reshapes and transposes that only reorder one axis: a channel shuffle, an even/odd split.

Read as reshapes they would couple channels in a grid, and a few of them in a row couple all channels of a stage. What
they do is ``take(x, indices, axis)``, so that is how they are analysed. After a cut that leaves a grid the reshapes
stay, with new sizes; after any other they become one Gather.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from exporter.graph import Graph, Node
from exporter.slots import Ids

T = TypeVar("T", bound=np.generic)

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Gather", "Slice"})
_LONGEST = 8
_MOST_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Shuffle:
    """``result = take(source, indices, axis)`` by way of ``nodes``.

    Attributes:
        nodes: the chain, in order; the first reads ``source``, the last writes ``result``.
    """

    nodes: tuple[Node, ...]
    source: str
    result: str
    axis: int
    indices: Ids


def find_shuffles(graph: Graph) -> list[Shuffle]:
    """Find every tree of data movement that starts at a Reshape and whose leaves all take from one axis."""
    found: list[Shuffle] = []
    used: set[int] = set()
    for node in graph.nodes:
        if node.op == "Reshape" and node.index not in used and _splits(graph, node):
            leaves = _leaves(graph, node)
            if leaves:
                found.extend(leaves)
                used.update(n.index for leaf in leaves for n in leaf.nodes)
    return found


def _splits(graph: Graph, node: Node) -> bool:
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    return before is not None and after is not None and len(after) > 1 and math.prod(before) <= _MOST_ELEMENTS


def _leaves(graph: Graph, start: Node) -> list[Shuffle]:
    """Follow the tree from ``start``; empty where some leaf is no take, or nothing is reordered."""
    source = start.inputs[0]
    shape = graph.shape(source)
    assert shape is not None
    if not any(_could_be_take(graph, shape, leaf[-1]) for leaf in _paths(graph, start)):
        return []
    numbers = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    leaves: list[Shuffle] = []
    for path in _paths(graph, start):
        moved = numbers
        best: Shuffle | None = None
        for depth, node in enumerate(path):
            after = move(graph, node, moved)
            if after is None:
                break
            moved = after
            axis_indices = _as_take(moved, shape)
            if axis_indices is not None:
                axis, indices = axis_indices
                if len(indices) != shape[axis] or (indices != np.arange(shape[axis])).any():
                    best = Shuffle(tuple(path[: depth + 1]), source, node.outputs[0], axis, indices)
        if best is None or len(best.nodes) != len(path):
            return []
        leaves.append(best)
    return leaves


def _paths(graph: Graph, start: Node) -> list[list[Node]]:
    """Paths through movement nodes from ``start`` to where something else reads the result."""
    paths: list[list[Node]] = []
    stack: list[list[Node]] = [[start]]
    while stack:
        path = stack.pop()
        last = path[-1]
        output = last.outputs[0]
        users = graph.users.get(output, [])
        moving = [u for u, i in users if i == 0 and u.op in _MOVES]
        stop = output in graph.outputs or len(moving) != len(users) or not users or len(path) >= _LONGEST
        # a shuffle ends where the result has the source's rank again and is no longer being taken apart
        if stop or (len(path) > 1 and _could_be_take(graph, graph.shape(start.inputs[0]), last)):
            paths.append(path)
        else:
            stack.extend([*path, u] for u in moving)
        if len(paths) + len(stack) > 16:
            return []
    return paths


def _could_be_take(graph: Graph, shape: tuple[int, ...] | None, last: Node) -> bool:
    after = graph.shape(last.outputs[0])
    if shape is None or after is None or len(after) != len(shape):
        return False
    return sum(a != b for a, b in zip(shape, after, strict=True)) <= 1


def move(graph: Graph, node: Node, value: NDArray[T]) -> NDArray[T] | None:
    """Carry an array through one movement node; None if the node depends on anything but constants, or cannot run."""
    shape = graph.shape(node.outputs[0])
    if shape is None:
        return None
    try:
        if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"):
            return value.reshape(shape)
        if node.op == "Transpose":
            return np.transpose(value, node.attributes.get("perm", list(range(value.ndim))[::-1]))
        if node.op == "Gather":
            indices = graph.static.known.get(node.inputs[1])
            if indices is not None:
                return np.asarray(np.take(value, indices.astype(np.int64), axis=node.attributes.get("axis", 0)))
    except (ValueError, IndexError):  # what the file says does not fit the array
        return None
    return None


def _as_take(moved: Ids, shape: tuple[int, ...]) -> tuple[int, Ids] | None:
    """(axis, indices) such that moved = take(arange(shape), indices, axis), or None."""
    if moved.ndim != len(shape):
        return None
    different = [k for k in range(len(shape)) if moved.shape[k] != shape[k]]
    if len(different) > 1:
        return None
    strides = np.array([int(np.prod(shape[k + 1 :])) for k in range(len(shape))])
    for axis in different or range(len(shape)):
        if shape[axis] == 1:
            continue
        line = moved[tuple(slice(None) if k == axis else 0 for k in range(len(shape)))]
        indices = (line // strides[axis]) % shape[axis]
        whole = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        if np.array_equal(np.take(whole, indices, axis=axis), moved):
            return axis, indices
    return None
