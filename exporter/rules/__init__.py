"""Operator rules: one small function per operator family, registered by a decorator.

A rule states facts about the slots of one node (see ``exporter.slots``). What a rule does not mention is frozen: a
forgotten line costs compression, never correctness.
"""

from exporter.rules import (  # noqa: F401  (each module registers its rules)
    attention,
    contraction,
    contrib,
    contrib_attention,
    contrib_frozen,
    contrib_quantised,
    control,
    elementwise,
    frozen,
    indexing,
    movement,
    normalisation,
    quantisation,
    recurrent,
    reduction,
    shaping,
    spatial,
)
from exporter.rules.registry import FROZEN, RULES, Rule, freezes, rule

__all__ = ["FROZEN", "RULES", "Rule", "freezes", "rule"]
