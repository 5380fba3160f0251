"""Write docs/operators.md: what the analysis knows of every operator. Run as ``python docs/operators.py``."""

from __future__ import annotations

import inspect
from pathlib import Path

from exporter.rules import FROZEN, RULES

PAGE = Path(__file__).with_name("operators.md")

HEAD = """\
# Operators

Made by `python docs/operators.py` from the rules themselves; do not edit.

A rule states which slots of a node live or die together; what it says nothing of stays. x, y and w are a node's input,
output and weight. An operator that is not listed stays as it is, with the axes that meet it, and is reported.
"""


def page() -> str:
    """The text of the page."""
    sections = [HEAD]
    for domain in sorted({op.rpartition("::")[0] for op in (*RULES, *FROZEN)}):
        inside = sorted(op for op in (*RULES, *FROZEN) if op.rpartition("::")[0] == domain)
        with_rule = [op for op in inside if op in RULES]
        title = domain or "ai.onnx, the standard"
        sections.append(
            f"\n## {title}\n\n{len(with_rule)} operators with a rule, {len(inside) - len(with_rule)} that stay.\n"
        )
        if with_rule:
            sections.append("\n| operator | rule |\n|---|---|\n")
            sections.extend(f"| {_name(op)} | {_cell(_summary(op))} |\n" for op in with_rule)
        if len(inside) > len(with_rule):
            sections.append("\n| operator | stays because |\n|---|---|\n")
            sections.extend(f"| {_name(op)} | {_cell(FROZEN[op])} |\n" for op in inside if op in FROZEN)
    return "".join(sections)


def _name(op: str) -> str:
    return op.rpartition("::")[2]


def _summary(op: str) -> str:
    """First paragraph of the rule's docstring."""
    return (inspect.getdoc(RULES[op]) or "").partition("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
