"""The report of ``prune``: what was cut and why, what it cost, whether it is faster, and what could not be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.page import charts
from exporter.page.document import Card, Page, Section
from exporter.page.markup import Content, bullets, folded, name_of, paragraph, table, tag
from exporter.page.sections import (
    Document,
    answers_kept,
    frozen_section,
    layers_part,
    notes_section,
    percent,
    ratio_card,
    samples_part,
    savings_part,
    sparse_section,
    value_text,
)
from exporter.tables import error_text, milliseconds, quantity
from runtime.nouns import counted, out_of

_SPANS = 3
_CHOICES = {
    "local": "the same share of every group",
    "global": "all units ranked together, relative to the mean of their group",
    "damage": "the least predicted damage to the outputs for what is saved",
}


@dataclass(frozen=True)
class Findings:
    """What the report of ``prune`` shows beyond its JSON.

    Attributes:
        plan: as it is saved.
        replay: the command that carries it out.
        grounds: by group, why it was cut as it was; see ``exporter.commands.reporting``.
        sparse: weights of the result, as ``sparse_section`` takes them.
        layers, savings: time per layer in both models, where they were profiled.
    """

    plan: str = ""
    replay: str = ""
    grounds: Mapping[str, Document] = field(default_factory=dict)
    sparse: Sequence[Document] = ()
    layers: Sequence[Document] = ()
    savings: Sequence[Document] = ()


def prune_page(document: Document, verdict: str, more: Findings) -> Page:
    """Make the report.

    Args:
        document: as ``prune --json`` writes it.
        verdict: the last line on the console.
        more: what is not in it.
    """
    model = Path(document["model"]["file"] or "model").name
    return Page(
        f"Pruning {model}",
        verdict,
        "good" if document["proof"] else "warn",
        tuple(_cards(document)),
        (
            _cut_section(document, more.grounds),
            _blocks_section(document["layers"]),
            _interface_section(document["interface"]),
            _fidelity_section(document["fidelity"]),
            _search_section(document["search"]),
            _rounds_section(document["rounds"]),
            _latency_section(document, more),
            frozen_section(document["frozen"]),
            sparse_section(more.sparse, "result" if document["output"] else "model as it is"),
            _proof_section(document["proof"]),
            notes_section(document["warnings"]),
        ),
        more.plan,
        more.replay,
    )


def _cards(document: Document) -> list[Card]:
    before, after = document["before"], document["after"]
    cards = []
    for name, title, unit in (("macs", "MACs", ""), ("parameters", "Parameters", ""), ("file_bytes", "File", "B")):
        old, new = before[name], after[name]
        if old and new:
            cards.append(Card(f"{title} left", percent(new / old), f"{quantity(old)}{unit} to {quantity(new)}{unit}"))
    timed, budget = document.get("latency"), document.get("latency_budget")
    if timed:
        note = f"{milliseconds(timed['dense']['median_s'])} to {milliseconds(timed['pruned']['median_s'])}"
        cards.append(ratio_card("Latency", timed["ratio"], note))
    elif budget:
        cards.append(ratio_card("Latency", budget["measured"], f"asked for {budget['share']:.3f}x"))
    fidelity = document["fidelity"]
    accuracy = fidelity and fidelity["accuracy"]
    if accuracy and accuracy["metric"] != "agreement":
        name = accuracy["metric"]
        note = f"{value_text(accuracy['dense'], name)} before; {counted(accuracy['samples'], 'held-out sample')}"
        cards.append(Card(f"{name} after", value_text(accuracy["pruned"], name), note))
    elif fidelity and fidelity["agreement"] is not None:
        note = f"on {counted(fidelity['samples'], 'held-out input')}"
        cards.append(Card("Same class as before", percent(fidelity["agreement"]), note))
    elif fidelity:
        note = f"of the outputs' variance, on {counted(fidelity['samples'], 'held-out input')}"
        cards.append(Card("Output error", f"{fidelity['error']:.3g}", note))
    else:
        cards.append(Card("Accuracy", "unmeasured", "give inputs with --calib, or see secateur eval", "warn"))
    proof = document["proof"]
    if proof:
        note = (
            f"largest relative error, {counted(proof['runs'], 'input set')}, {counted(proof['inner'], 'inner tensor')}"
        )
        cards.append(Card("Proof", error_text(proof["error"]), note, "good"))
    else:
        cards.append(Card("Proof", "none", "nothing was written" if not document["output"] else "--no-verify", "warn"))
    return cards


def _cut_section(document: Document, grounds: Mapping[str, Document]) -> Section:
    groups = document["groups"]
    if not groups:
        return Section("", ())
    shares = [len(g["keep"]) / g["width"] for g in groups]
    cut = sum(s < 1 for s in shares)
    judged = any(g.get("score") is not None for g in grounds.values())
    damaged = any(g.get("damage") is not None for g in grounds.values())
    head = ["", "group", "kind", "width", "kept", "left"]
    head += [*(["of its importance"] if judged else []), *(["predicted damage"] if damaged else []), "why"]
    rows: list[list[Content]] = []
    for number, (group, share) in enumerate(zip(groups, shares, strict=True), 1):
        found = grounds.get(group["name"], {})
        damage = found.get("damage")
        rows.append([
            str(number), [name_of(group["name"]), _spans(group)], group["kind"], str(group["width"]),
            str(len(group["keep"])), percent(share, 0),
            *([percent(found.get("score"))] if judged else []),
            *([f"{damage:.2g}" if damage is not None else ""] if damaged else []),
            str(found.get("why", "")),
        ])  # fmt: skip
    title = "Units left in each group, in the order of the network"
    names = [g["name"] for g in groups]
    label = f"{title}: {out_of(cut, len(groups), 'group', 'is', 'are')} narrower; the table below has the numbers"
    numbers = range(3, 6 + judged + damaged)
    return Section(
        "What was cut, and why",
        (
            paragraph(_why(document["options"], cut, len(groups))),
            charts.figure(
                title,
                [charts.key(("main", "kept"), ("gone", "removed")), charts.columns(shares, names, label, _ENDS)],
                "Numbers are those of the table.",
            ),
            folded("Every group", table(head, rows, "groups of units", right=(0, *numbers)), open_=len(rows) <= _OPEN),
            *([paragraph(_IMPORTANCE)] if judged else []),
            *([paragraph(_DAMAGE)] if damaged else []),
        ),
    )


_ENDS = ("input", "output")
_OPEN = 24
"""Rows up to which a table is unfolded from the start."""
_IMPORTANCE = (
    "Importance is the share of the group's scores that the kept units have: the further it is above the share of "
    "units left, the less was lost by removing the others."
)
_DAMAGE = (
    "Predicted damage is the square error of the outputs, relative to their variance, if the group alone were cut; "
    "layers behind it mend part of that."
)


def _spans(group: Document) -> Content:
    """The tensors a group's units lie in, beneath its name: a column of their own would push reasons off a screen."""
    named = list(dict.fromkeys(f"{s['tensor']}[{s['axis']}]" for s in group["spans"] if s["constant"]))
    more = len(named) - _SPANS
    parts: list[Content] = []
    for k, each in enumerate(named[:_SPANS]):
        parts += [", " if k else "", name_of(each)]
    return tag("div", *parts, f" +{more}" if more > 0 else "", class_="spans")


def _why(options: Mapping[str, Any], cut: int, groups: int) -> str:
    found = ("macs", "params") if options.get("max_drop") is not None else ()  # the search chose these, nobody asked
    given = [k for k in _BUDGETS if options.get(k) is not None and k not in found]
    asked = [f"--{k.replace('_', '-')} {options[k]}" for k in given]
    score, scope = options.get("score"), options.get("scope")
    parts = [f"{out_of(cut, groups, 'group', 'is', 'are')} narrower now."]
    parts += [f"The budget was {' '.join(asked)}."] if asked else []
    parts += [f"Units were ranked by {score}"] if score else []
    if scope and score:
        parts[-1] += f"; scope {scope}: {_CHOICES.get(scope, scope)}."
    if options.get("calib"):
        parts.append(f"What a cut does was predicted from {options.get('calib_samples', '')} inputs of "
                     f"{options['calib']}.")  # fmt: skip
    align = options.get("align")
    if align == "auto" and options.get("latency"):
        align = "measured"
    if align:
        parts.append(f"Widths are {_ALIGNED.get(align, f'multiples of {align}')}.")
    return " ".join(parts)


_BUDGETS = ("ratio", "macs", "params", "layers", "max_drop", "latency", "steps")
_ALIGNED = {
    "auto": "multiples of 16 for convolutions and of 8 for matrix products, where the group is wide enough",
    "measured": "multiples of what this machine likes (secateur probe), where the group is wide enough",
    "sparse": "multiples of 16, because sparse kernels come next",
}


def _blocks_section(blocks: Sequence[Document]) -> Section:
    if not blocks:
        return Section("", ())
    rows = [
        [name_of(b["name"]), "kept" if b["kept"] else "dropped", quantity(b["parameters"]), quantity(b["macs"])]
        for b in blocks
    ]
    gone = sum(not b["kept"] for b in blocks)
    return Section(
        "Residual blocks",
        (
            paragraph(f"{out_of(gone, len(blocks), 'residual block', 'was', 'were')} dropped whole."),
            table(["block", "", "parameters", "MACs"], rows, "residual blocks", right=(2, 3)),
        ),
    )


def _interface_section(cuts: Sequence[Document]) -> Section:
    rows = [[name_of(c["name"]), c["kind"], str(c["axis"]), str(c["before"]), str(len(c["keep"]))] for c in cuts]
    intro = paragraph("What calls the model has to follow. Kept indices are in the plan, under hide.")
    head = ["tensor", "", "axis", "before", "now"]
    return Section("The interface changes", (intro, table(head, rows, "axes of inputs and outputs")) if rows else ())


def _fidelity_section(found: Document | None) -> Section:
    if not found:
        return Section("", ())
    moved = sum(r["damping"] is not None for r in found["refits"])
    parts = [
        f"On {counted(found['samples'], 'held-out input')} the outputs are off by {found['error']:.3g} of their "
        f"variance ({found['plain']:.3g} before "
        f"{out_of(moved, len(found['refits']), 'layer', 'was', 'were')} fitted anew)."
    ]
    accuracy = found["accuracy"]
    if accuracy and accuracy["metric"] != "agreement":
        metric, rate = accuracy["metric"], accuracy["rate"]
        scale, unit = (100, " points") if rate else (1, "")
        low, high = (f"{scale * v:.3g}" if v is not None else "?" for v in (accuracy["low"], accuracy["high"]))
        parts.append(
            f"{metric} was {value_text(accuracy['dense'], metric)} and is {value_text(accuracy['pruned'], metric)}: "
            f"a drop of {scale * accuracy['drop']:.3g}{unit}, 95 %: {low} .. {high}."
        )
    parts += answers_kept(found)
    by_reason: dict[str, list[str]] = {}
    for layer in found["unfitted"]:
        by_reason.setdefault(layer["reason"], []).append(str(layer.get("name", layer.get("node", ""))))
    kept = [f"{reason}: {counted(len(names), 'layer')} ({', '.join(names[:4])})" for reason, names in by_reason.items()]
    head = paragraph("Layers behind a cut that kept their weights, and why:") if kept else ""
    return Section("How true the result is", (paragraph(" ".join(parts)), head, bullets(kept)))


def _search_section(found: Document | None) -> Section:
    if not found:
        return Section("", ())
    judged = [(k, t) for k, t in enumerate(found["tries"]) if t["accuracy"] and t["left"] is not None]
    metric = found["metric"]
    rate = bool(judged and judged[0][1]["accuracy"]["rate"])
    scale = 100 if rate else 1
    unit = " points" if rate else ""
    of = "MACs" if found["of"] == "macs" else "parameters"
    dots = [
        charts.Dot(
            100 * t["left"], scale * t["accuracy"]["drop"], f"{k + 1}" + (" chosen" if k == found["chosen"] else ""),
            f"try {k + 1}: {value_text(t['accuracy']['pruned'], metric)}",
low=_scaled(t["accuracy"]["low"], scale),
            high=_scaled(t["accuracy"]["high"], scale),
            main=k == found["chosen"],
        )
        for k, t in judged
    ]  # fmt: skip
    rows: list[list[Content]] = []
    for k, t in enumerate(found["tries"], 1):
        a = t["accuracy"]
        if a is None:
            rows.append([str(k), percent(t["budget"]), "", "", "", "", "out of reach"])
            continue
        low, high = (f"{scale * v:.2f}" if v is not None else "" for v in (a["low"], a["high"]))
        verdict = "chosen" if k - 1 == found["chosen"] else "within" if t["within"] else "too much"
        rows.append([str(k), percent(t["budget"]), percent(t["left"]), value_text(a["pruned"], metric),
                     f"{scale * a['drop']:.2f}", f"{low} .. {high}", verdict])  # fmt: skip
    head = ["try", f"{of} allowed", "left", metric, f"drop{unit}", "95 % interval", ""]
    plot = charts.plane(
        dots, charts.Scale(f"{of} left", lambda v: f"{v:.3g} %"), charts.Scale(f"drop of {metric}{unit}", _plain),
        f"drop of {metric} against {of} left for {counted(len(dots), 'try')}",
        joined=True, mark=(scale * found["limit"], f"limit {found['given']}"),
    ) if dots else ""  # fmt: skip
    caption = f"Judged on {counted(found['samples'], 'sample')} that nothing was fitted to; lines are 95 % intervals."
    return Section(
        "The search for the smallest model",
        (charts.figure("", plot, caption), table(head, rows, "tries", right=range(6))),
    )


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _rounds_section(rounds: Sequence[Document]) -> Section:
    rows = [
        [str(k), percent(r["macs"]), percent(r["params"]), f"{r['error']:.3g}" if r["error"] is not None else "",
         str(r["refits"]), error_text(r["proof"]["error"]) if r["proof"] else "not proved"]
        for k, r in enumerate(rounds, 1)
    ]  # fmt: skip
    head = ["round", "MACs left", "parameters left", "output error", "layers fitted", "proof"]
    return Section("Rounds", (table(head, rows, "rounds", right=range(6)),) if rows else ())


def _latency_section(document: Document, more: Findings) -> Section:
    timed, budget = document.get("latency"), document.get("latency_budget")
    content: list[Content] = []
    savings = more.savings
    if timed:
        sides = [("original", timed["dense"]["samples_s"], "other"), ("result", timed["pruned"]["samples_s"], "main")]
        content += samples_part(sides)
    elif budget:
        compared = budget["comparison"]
        savings = savings or budget["savings"]
        rows: list[list[Content]] = [
            [str(k), f"{t['predicted']:.3f}", f"{t['measured']['value']:.3f}"] for k, t in enumerate(budget["tried"], 1)
        ]
        sides = [
            ("original", compared["first"]["samples_s"], "other"),
            ("result", compared["other"]["samples_s"], "main"),
        ]
        content += [
            paragraph(f"Asked for {budget['share']:.3f} of the original's latency, on this machine."),
            table(["round", "predicted", "measured"], rows, "rounds towards the latency", right=range(3)),
            *samples_part(sides),
        ]
    content += layers_part(more.layers, "original", "result")
    content += savings_part(savings)
    if not content and document["output"]:
        content = [paragraph("The latency was not measured: give ", name_of("--measure"), ", or see secateur compare.")]
    return Section("Is it faster?", tuple(content))


def _proof_section(proof: Document | None) -> Section:
    if not proof:
        return Section("", ())
    rows = [[name_of(n), f"{e:.2e}"] for n, e in proof["outputs"].items()]
    intro = (
        f"The file was compared with the original in which the removed units are masked: largest relative error "
        f"{error_text(proof['error'])} (accepted: {proof['tolerance']:g}) over "
        f"{counted(proof['runs'], 'input set')} and {counted(proof['inner'], 'inner tensor')}."
    )
    return Section("The proof", (paragraph(intro), table(["output", "relative error"], rows, "outputs", right=(1,))))
