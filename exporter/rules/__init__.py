"""Operator rules: one small function per operator family, registered by a decorator.

A rule states facts about the slots of one node (see ``exporter.slots``). What a rule does not mention is frozen: a
forgotten line costs compression, never correctness.
"""

from exporter.rules import (  # noqa: F401  (each module registers its rules)
    contraction,
    elementwise,
    indexing,
    movement,
    normalisation,
    quantisation,
    reduction,
    shaping,
    spatial,
)
from exporter.rules.registry import FROZEN, RULES, Rule, freezes, rule

__all__ = ["FROZEN", "RULES", "Rule", "freezes", "rule"]
