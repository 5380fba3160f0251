"""Prune ONNX models: find what can go, choose, cut, and prove the result equal to its masked original.

    graph  = load("model.onnx")
    groups = find_groups(graph)
    scores = score(groups, by="l2")
    plan   = make_plan(groups, scores, macs=0.5)
    pruned = rewrite(graph, plan)
    verify(pruned, graph, plan)
    save(pruned, "pruned.onnx")

or, in one call, ``prune("model.onnx", "pruned.onnx", macs=0.5)``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.errors import GoalError, ModelError, SecateurError, UsageError
    from exporter.graph import Graph
    from exporter.groups import Group, Groups, find_groups
    from exporter.importance import score
    from exporter.model_file import load, save
    from exporter.plan import Plan
    from exporter.planner import make_plan
    from exporter.proof import Proof
    from exporter.pruner import Result, prune
    from exporter.rewriter import rewrite
    from exporter.sequence import compose
    from exporter.sparsity.sparsifier import sparsify
    from exporter.verifier import verify

_HOME = {
    "GoalError": "errors",
    "ModelError": "errors",
    "SecateurError": "errors",
    "UsageError": "errors",
    "Graph": "graph",
    "Group": "groups",
    "Groups": "groups",
    "find_groups": "groups",
    "score": "importance",
    "load": "model_file",
    "save": "model_file",
    "Plan": "plan",
    "make_plan": "planner",
    "Result": "pruner",
    "prune": "pruner",
    "rewrite": "rewriter",
    "compose": "sequence",
    "sparsify": "sparsity.sparsifier",
    "Proof": "proof",
    "verify": "verifier",
}

__all__ = [
    "GoalError",
    "Graph",
    "Group",
    "Groups",
    "ModelError",
    "Plan",
    "Proof",
    "Result",
    "SecateurError",
    "UsageError",
    "compose",
    "find_groups",
    "load",
    "make_plan",
    "prune",
    "rewrite",
    "save",
    "score",
    "sparsify",
    "verify",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import on first use: ``secateur --help`` must not wait for numpy and onnx."""
    if name not in _HOME:
        raise AttributeError(f"module 'exporter' has no attribute '{name}'")
    return getattr(import_module(f"exporter.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
