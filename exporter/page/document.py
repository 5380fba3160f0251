"""Put a report together: cards, sections, environment, the command to repeat it, and nothing that needs a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from exporter.page.markup import Content, Markup, facts, folded, markup, paragraph, tag
from exporter.tables import quantity

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
"""Whatever a report may hold, a browser loads nothing for it and runs nothing of it."""
_SHOWN = 64 << 10
"""Bytes of a plan that is shown; a longer one can only be saved."""


@dataclass(frozen=True)
class Card:
    """One number that counts.

    Attributes:
        name, value, note: what, how much, and what to know of it.
        tone: ``good``, ``bad``, ``warn`` or "".
    """

    name: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report; left out where it has no content."""

    title: str
    content: tuple[Content, ...]


@dataclass(frozen=True)
class Page:
    """What a command has to say.

    Attributes:
        title: of the page.
        verdict, tone: what it came to, in a sentence, and how good that is.
        cards, sections: in their order.
        plan: the plan as it is saved, where there is one.
        replay: the command that carries out the plan.
    """

    title: str
    verdict: str
    tone: str
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]
    plan: str = ""
    replay: str = ""


@dataclass(frozen=True)
class Origin:
    """Where a report comes from.

    Attributes:
        command: as it was typed.
        folder: where.
        when: local time.
        version: of Secateur.
        environment: as ``runtime.environment.environment`` says it.
    """

    command: str
    folder: str
    when: str
    version: str
    environment: Mapping[str, Any] = field(default_factory=dict)


def render(page: Page, origin: Origin) -> str:
    """The whole file.

    Args:
        page: what is said.
        origin: where it comes from.
    """
    style = resources.files("exporter.page").joinpath("style.css").read_text(encoding="utf-8")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"secateur {origin.version}"),
        tag("title", page.title),
        tag("style", Markup(style)),
    ]
    sections = [_section(s.title, *s.content) for s in page.sections if any(markup(c) for c in s.content)]
    body = [
        tag(
            "header",
            tag("h1", page.title),
            tag("p", f"{origin.when}, secateur {origin.version}", class_="soft"),
            tag("p", page.verdict, class_=f"verdict {page.tone}".strip()),
        ),
        tag("main", _cards(page.cards), sections, _environment(origin.environment), _again(page, origin)),
        tag(
            "footer", "Made by ", tag("code", f"secateur {origin.version}"), ". Nothing here is loaded from a network."
        ),
    ]
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def _section(title: str, *content: Content) -> Markup:
    return tag("section", tag("h2", title), *content)


def _cards(cards: Sequence[Card]) -> Markup:
    items = []
    for card in cards:
        value = tag("dd", card.value, class_="value")
        note = tag("dd", card.note, class_="note") if card.note else ""
        items.append(tag("div", tag("dt", card.name), value, note, class_=f"card {card.tone}".strip()))
    return tag("section", tag("dl", items), class_="cards", aria_label="summary")


def _environment(found: Mapping[str, Any]) -> Markup:
    if not found:
        return Markup("")
    memory = found.get("memory_bytes")
    processor = f"{found.get('processor')} ({found.get('architecture')})"
    usable = f"{found.get('processors_usable')} of {found.get('processors')}"
    load = found.get("load_average")
    rows: list[tuple[str, Content]] = [
        ("processor", processor + (", virtual" if found.get("virtual") else "")),
        ("instructions", ", ".join(found.get("instructions") or ())),
        ("processors usable", usable),
        ("frequency governor", str(found.get("frequency_governor") or "")),
        ("memory", f"{quantity(memory)}B" if memory else ""),
        ("load average", ", ".join(f"{v:.2f}" for v in load) if load else ""),
        ("system", str(found.get("system", ""))),
        ("Python", str(found.get("python", ""))),
        ("packages", ", ".join(f"{k} {v}" for k, v in (found.get("packages") or {}).items())),
        ("variables", ", ".join(f"{k}={v}" for k, v in (found.get("variables") or {}).items())),
        ("fingerprint", f"{found.get('fingerprint')}: timings with another one cannot be compared with these"),
    ]
    return _section("Environment", facts(rows))


def _again(page: Page, origin: Origin) -> Markup:
    content: list[Content] = [tag("pre", tag("code", origin.command)), tag("p", f"in {origin.folder}", class_="soft")]
    if page.plan:
        coded = base64.b64encode(page.plan.encode()).decode()
        link = tag("a", "Save plan.json", href=f"data:application/json;base64,{coded}", download="plan.json")
        size = quantity(len(page.plan.encode()))
        content += [
            tag("h3", "The plan"),
            paragraph(
                "It says which indices of every weight stay. ", link, f" ({size}B), then carry it out again with:"
            ),
            tag("pre", tag("code", page.replay)),
        ]
        if len(page.plan) <= _SHOWN:
            content.append(folded("The plan as text", tag("pre", tag("code", page.plan), class_="plan")))
    return tag("section", tag("h2", "Do it again"), *content, class_="replay")
