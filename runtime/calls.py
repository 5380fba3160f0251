"""Calls of a model's local functions: how many nodes they stand for, before anything writes them out."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from onnx import ModelProto, NodeProto

from runtime.model_files import nodes_in

NODE_LIMIT = 1_000_000
"""Most nodes of a model whose calls are written out."""

Callee = tuple[str, str, str]


def callee(node: NodeProto) -> Callee:
    """Domain, name and overload of the function a node calls, if it calls one."""
    return node.domain, node.op_type, node.overload


def check_calls(model: ModelProto) -> None:
    """Refuse calls without end, and calls without number: thirty functions that call each other twice are a billion.

    Raises:
        ValueError: a function calls itself, or more than ``NODE_LIMIT`` nodes would be written out.
    """
    bodies = {(f.domain, f.name, f.overload): list(nodes_in(f.node)) for f in model.functions}
    if not bodies:
        return
    calls = {key: {called for n in nodes if (called := callee(n)) in bodies} for key, nodes in bodies.items()}
    sizes: dict[Callee, int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = sum(sizes.get(callee(n), 1) for n in bodies[key])
    except CycleError as error:
        raise ValueError(
            f"the local function '{error.args[1][0][1]}' calls itself, directly or through others, which ONNX does not "
            "allow. Export the model again."
        ) from error
    total = sum(sizes.get(callee(n), 1) for n in nodes_in(model.graph.node))
    if total > NODE_LIMIT:
        raise ValueError(
            f"with its local functions written out the model has {total:,} nodes; up to {NODE_LIMIT:,} are supported."
        )
