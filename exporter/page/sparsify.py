"""The report of ``sparsify``: where the zeros are, what they did to each layer, and what stays dense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporter.page import charts
from exporter.page.document import Card, Page, Section
from exporter.page.markup import Content, bullets, folded, name_of, paragraph, table
from exporter.page.sections import Document, answers_kept, names, notes_section, percent, value_text
from exporter.tables import quantity
from runtime.nouns import all_of, counted

_SHOWN = 12


def sparsify_page(document: Document, verdict: str) -> Page:
    """Make the report.

    Args:
        document: as ``sparsify --json`` writes it.
        verdict: the last line on the console.
    """
    model = Path(document["model"] or "model").name
    return Page(
        f"{document['pattern']} sparsity for {model}",
        verdict,
        "good" if document["output"] else "warn",
        tuple(_cards(document)),
        (
            Section("Where the zeros are", tuple(_zeros(document["weights"]))),
            Section("What fitting the weights that stay did", tuple(_errors(document["weights"]))),
            Section("How true the result is", tuple(_fidelity(document["fidelity"]))),
            Section("What stays dense, and why", tuple(_left(document["left_out"]))),
            Section("Order of channels", tuple(_order(document["permutation"]))),
            notes_section(document["notes"]),
        ),
    )


def _cards(document: Document) -> list[Card]:
    zeros, parameters, held = document["zeros"], document["parameters"], document["fidelity"]
    size = document["file_bytes"]
    cards = [
        Card("Zeros", percent(zeros / max(parameters, 1)), f"of the {quantity(parameters)} weights of layers"),
        Card("Sparse layers", str(len(document["weights"])), f"{len(document['left_out'])} stay dense"),
    ]
    note = f"{quantity(size['before'])}B before" + (
        f"; --storage sparse would save {quantity(size['sparse_storage_saves'])}B"
        if size["sparse_storage_saves"]
        else ""
    )
    if size["after"] is not None:
        cards.append(Card("File", f"{quantity(size['after'])}B", note))
    accuracy = held and held["accuracy"]
    if accuracy and accuracy["metric"] != "agreement":
        name = accuracy["metric"]
        note = f"{value_text(accuracy['dense'], name)} before; {counted(accuracy['samples'], 'held-out sample')}"
        cards.append(Card(f"{name} after", value_text(accuracy["pruned"], name), note))
    elif held and held["agreement"] is not None:
        note = f"on {counted(held['samples'], 'held-out input')}"
        cards.append(Card("Same class as before", percent(held["agreement"]), note))
    elif held and held["error"] is not None:
        cards.append(Card("Output error", f"{held['error']:.3g}", "of the outputs' variance, on held-out inputs"))
    else:
        cards.append(Card("Accuracy", "unmeasured", "give inputs with --calib, or see secateur eval", "warn"))
    return cards


def _zeros(weights: Sequence[Document]) -> list[Content]:
    if not weights:
        return [paragraph("No weight got the pattern.")]
    title = "Weights left in each layer, in the order of the network"
    shares = [1 - w["zeros"] for w in weights]
    rows: list[list[Content]] = [
        [
            str(k), name_of(w["weight"]), w["op"], "x".join(map(str, w["shape"])), w["type"],
            percent(w["zeros_before"]), percent(w["zeros"]), percent(w["magnitude_kept"]), w["chosen_by"],
        ]
        for k, w in enumerate(weights, 1)
    ]  # fmt: skip
    head = ["", "weight", "layer", "shape", "type", "zeros before", "zeros", "magnitude kept", "chosen by"]
    label = f"{title}: {counted(len(weights), 'layer')}; the table below has the numbers"
    plot = charts.columns(shares, [w["weight"] for w in weights], label, ("input", "output"))
    return [
        charts.figure(title, [charts.key(("main", "not zero"), ("gone", "zero")), plot]),
        folded("Every layer", table(head, rows, "sparse layers", right=(0, 5, 6, 7)), open_=len(rows) <= 2 * _SHOWN),
        paragraph("Magnitude kept is the share of the sum of all magnitudes that the weights which stay have."),
    ]


def _errors(weights: Sequence[Document]) -> list[Content]:
    fitted = [w for w in weights if w["output_error"] is not None and w["output_error_by_magnitude"] is not None]
    if not fitted:
        return []
    worst = sorted(fitted, key=lambda w: -w["output_error_by_magnitude"])[:_SHOWN]
    bars = [
        charts.Bar(
            w["weight"], (w["output_error_by_magnitude"], w["output_error"]),
            (f"{w['output_error_by_magnitude']:.2g}", f"{w['output_error']:.2g}"), f"{w['op']}, by {w['chosen_by']}",
        )
        for w in worst
    ]  # fmt: skip
    rows: list[list[Content]] = [
        [name_of(w["weight"]), f"{w['output_error_by_magnitude']:.3g}", f"{w['output_error']:.3g}", w["chosen_by"]]
        for w in fitted
    ]
    legend = charts.key(("other", "largest weights, as they were"), ("main", "chosen and fitted"))
    return [
        charts.figure(
            "Error of a layer's output on held-out inputs",
            [legend, charts.bars(bars, "error of the outputs of layers")],
            f"Relative to the output's variance; the {counted(len(bars), 'layer')} that magnitude alone would harm "
            "most.",
        ),
        folded(
            all_of(len(fitted), "fitted layer"),
            table(["weight", "by magnitude", "fitted", "chosen by"], rows, "errors of layers", right=(1, 2)),
        ),
    ]


def _fidelity(held: Document | None) -> list[Content]:
    if not held or held["error"] is None:
        return []
    plain = f" ({held['plain']:.3g} with the largest weights as they were)" if held["plain"] is not None else ""
    parts = [
        f"On {counted(held['samples'], 'held-out input')} the outputs are off by {held['error']:.3g} of their "
        f"variance{plain}."
    ]
    accuracy = held["accuracy"]
    if accuracy and accuracy["metric"] != "agreement":
        name = accuracy["metric"]
        parts.append(
            f"{name} was {value_text(accuracy['dense'], name)} and is {value_text(accuracy['pruned'], name)}, on "
            f"{counted(accuracy['samples'], 'sample')}."
        )
    parts += answers_kept(held)
    return [paragraph(" ".join(parts))]


def _left(left: Sequence[Document]) -> list[Content]:
    if not left:
        return []
    by_reason: dict[str, list[Document]] = {}
    for row in left:
        by_reason.setdefault(row["reason"], []).append(row)
    items: list[Content] = []
    for reason, rows in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        free = next((r["free"] for r in rows if r["free"]), "")
        how: Content = ["; to take it all the same: ", name_of(free)] if free else ""
        items.append([f"{reason}: ", names([r["weight"] for r in rows]), how])
    return [bullets(items)]


def _order(found: Document | None) -> list[Content]:
    if not found:
        return []
    rows: list[list[Content]] = [[name_of(name), why] for why, names in found["still"].items() for name in names]
    still = [folded("Weights that no order was chosen for", table(["weight", "why"], rows, "weights in order"))]
    if not found["groups"]:
        return [paragraph("--permute left the order of channels as it is."), *still]
    return [
        paragraph(
            f"{counted(found['groups'], 'group of channels was', 'groups of channels were')} reordered, for "
            f"{counted(found['weights'], 'weight')}: "
            f"{percent(found['after'])} of the magnitude stays instead of {percent(found['before'])}. The reordered "
            f"dense model was proved equal to the original (relative error {found['error']:.1e})."
        ),
        *map(paragraph, found["notes"]),
        *(still if rows else []),
    ]
