"""What ``secateur advise`` prints, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exporter.advice.facts import Facts
from exporter.advice.rules import Advice
from exporter.report_json import JSON_VERSION
from exporter.tables import milliseconds, quantity


def advice_text(facts: Facts, found: Sequence[Advice]) -> str:
    """What to try first, then what does not suit, each with its reason."""
    macs = f", {quantity(facts.before.macs)} MACs" if facts.before.macs else ""
    lines = [f"{facts.path.name} on {facts.device}: {quantity(facts.before.parameters)} parameters{macs}"]
    if facts.timing is None:
        lines.append(f"time was not measured: {facts.unmeasured}")
    else:
        shares = sorted(facts.timing.shares.items(), key=lambda item: -item[1])
        said = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares if share >= 0.01)
        lines.append(f"measured: {milliseconds(facts.timing.profile.latency)} a run; held back by {said}")
    for number, each in enumerate((a for a in found if a.verdict != "no"), 1):
        lines += ["", f"{number}. {each.verdict}: {each.what} ({each.basis})", f"   {each.reason}"]
        lines += [f"   $ {each.command}"] if each.command else []
    lines += ["", "does not suit:"]
    lines += [f"  {a.what}: {a.reason} ({a.basis})" for a in found if a.verdict == "no"]
    return "\n".join(lines)


def advice_json(facts: Facts, found: Sequence[Advice]) -> dict[str, Any]:
    """All of it."""
    timing = facts.timing
    return {
        "version": JSON_VERSION,
        "model": str(facts.path),
        "device": facts.device,
        "missing": facts.missing or None,
        "parameters": facts.before.parameters,
        "macs": facts.before.macs,
        "measured": None
        if timing is None
        else {"latency_s": timing.profile.latency, "bottlenecks": dict(timing.shares), "working": timing.working},
        "unmeasured": facts.unmeasured or None,
        "advice": [{**vars(a), "command": a.command or None} for a in found],
    }
