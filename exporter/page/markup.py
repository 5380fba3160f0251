"""HTML in which everything is escaped unless this file made it: names of nodes come from files nobody vouches for."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from runtime.nouns import counted

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"meta", "br"})
_SHAPES = frozenset({"rect", "line", "circle", "polyline"})
_MOST_ROWS = 1000
"""Rows of one table; a browser on a phone bears no more."""


_SENTENCE = 24
"""Letters from which on a cell is broken into lines."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Markup | Iterable["Content"]


def markup(content: Content) -> Markup:
    """Escape text; what is markup already, and parts in a sequence that are, stay. Control characters go."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(_CONTROL.sub("\ufffd", content)))
    return Markup("".join(markup(part) for part in content))


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """An element.

    Args:
        name: of the element, and keyword arguments of attributes, are ours; underscores become hyphens, one at the end
            goes (``class_``). True stands for an attribute without a value, None and False for one that is left out.
        content: escaped unless it is markup.
        attributes: their values are escaped.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.removesuffix("_").replace("_", "-")
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        written.append(f" {label}" if value is True else f' {label}="{markup(text)}"')
    opening = f"<{name}{''.join(written)}"
    if name in _VOID:
        return Markup(f"{opening}>")
    if name in _SHAPES and not content:
        return Markup(f"{opening}/>")
    return Markup(f"{opening}>{markup(content)}</{name}>")


def name_of(text: str) -> Markup:
    """The name of a node, tensor or file: set as code, which may break anywhere."""
    return tag("code", text)


def together(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=[^\W\d]|%)", "\u00a0", text)


def paragraph(*content: Content) -> Markup:
    """A paragraph."""
    return tag("p", *content)


def bullets(items: Iterable[Content]) -> Markup:
    """A list; nothing where there are no items."""
    found = [tag("li", item) for item in items]
    return tag("ul", found) if found else Markup("")


def table(
    head: Sequence[Content], rows: Sequence[Sequence[Content]], caption: str, right: Iterable[int] = ()
) -> Markup:
    """A table in a frame of its own that scrolls sideways where the screen is too narrow.

    Args:
        head: headings.
        rows: cells; only the first thousand rows are shown, and how many are left out is said.
        caption: what the table is of, for those who do not see it beside its plot.
        right: columns of numbers.
    """
    flushed = set(right)

    def cells(row: Sequence[Content], kind: str) -> Markup:
        found = [
            tag(kind, c, class_="number" if k in flushed else _room(c), scope="col" if kind == "th" else None)
            for k, c in enumerate(row)
        ]
        return tag("tr", found)

    head = [together(c) if type(c) is str else c for c in head]
    body = [cells(row, "td") for row in rows[:_MOST_ROWS]]
    whole = tag("table", tag("caption", caption), tag("thead", cells(head, "th")), tag("tbody", body))
    more = len(rows) - _MOST_ROWS
    left_out = f"{counted(more, 'more row is', 'more rows are')} left out here; --json has all."
    rest = paragraph(left_out) if more > 0 else ""
    return Markup(tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0") + markup(rest))


def _room(cell: Content) -> str | None:
    """Sentences want a column of some width."""
    return "text" if type(cell) is str and len(cell) > _SENTENCE else None


def folded(summary: str, *content: Content, open_: bool = False) -> Markup:
    """What is unfolded by a click, and always in print."""
    return tag("details", tag("summary", summary), *content, open=open_)


def facts(pairs: Mapping[str, Content] | Sequence[tuple[str, Content]]) -> Markup:
    """Names and values."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return tag("dl", [(tag("dt", key), tag("dd", value)) for key, value in items if value not in ("", None)])
