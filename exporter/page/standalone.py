"""Plots as an SVG file of their own, for a slide or a README: the report's plots on white."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.page.markup import Markup, tag

_STYLE = """
svg { overflow: visible; font-family: system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
text { fill: #56606c; font-size: 12px; }
text.title { fill: #1b2026; font-size: 16px; }
text.name, .label { fill: #1b2026; }
.label { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; }
line { stroke: #d3d9e0; stroke-width: 1; }
line.main { stroke: #1d62b5; stroke-width: 2; }
line.other { stroke: #7d8895; stroke-width: 2; }
line.mark { stroke: #1b2026; stroke-width: 1.5; stroke-dasharray: 5 4; }
circle { stroke: #ffffff; stroke-width: 1.5; }
.main { fill: #1d62b5; }
.other { fill: #7d8895; }
"""
_WIDTH, _LEFT, _RIGHT, _EACH = 760, 84, 40, 310


def standalone(title: str, plots: Sequence[tuple[str, Markup]]) -> str:
    """One below the other.

    Args:
        title: of all.
        plots: name of each, and what ``charts.plane`` made without a frame.
    """
    parts = [tag("title", title), tag("style", Markup(_STYLE))]
    height = 60 + _EACH * len(plots)
    parts += [tag("rect", width="100%", height="100%", fill="#ffffff"), tag("text", title, x=16, y=28, class_="title")]
    for number, (name, drawing) in enumerate(plots):
        top = 60 + _EACH * number
        parts.append(tag("text", name, x=16, y=top, class_="name"))
        parts.append(tag("svg", drawing, x=_LEFT, y=top + 36, width=_WIDTH - _LEFT - _RIGHT, height=_EACH - 36))
    size: dict[str, str | float] = {"width": _WIDTH, "height": height, "viewBox": f"0 0 {_WIDTH} {height}"}
    outer = tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", role="img", **size)
    return f"{outer}\n"
