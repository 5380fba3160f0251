"""Charts of damage as self-contained SVG: lines for a few groups, a heat map for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from exporter.calibration.damages import Damage
from exporter.tables import quantity, short

MOST_LINES = 7
"""Groups that lines can be told apart of."""

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#3f8fc4", "#444444")
"""Okabe & Ito's palette, told apart by colour-blind readers too; the lighter ones darkened for a white ground."""
_FONT = 'font-family="system-ui, sans-serif"'
_INK, _QUIET, _GRID = "#222222", "#666666", "#dddddd"
_COLUMNS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_LIGHT, _DARK = np.array([238, 244, 250]), np.array([8, 48, 107])
_DECADES = 5


def damage_chart(rows: Sequence[Damage], title: str) -> str:
    """Damage over the share of units kept, as an SVG document.

    Args:
        rows: groups whose damage is known, in the order in which they are to be read.
        title: what the chart is of.
    """
    known = [row for row in rows if row.curve is not None]
    return _lines(known, title) if len(known) <= MOST_LINES else _heat_map(known, title)


def _bounds(rows: Sequence[Damage]) -> tuple[int, int]:
    """Decades from the least damage worth showing to the largest."""
    values = [float(v) for row in rows for v in row.curve[:-1] if v > 0] if rows else []  # type: ignore[index]
    top = math.ceil(math.log10(max(values))) if values else 0
    least = math.floor(math.log10(min(values))) if values else -1
    return max(least, top - _DECADES), top


def _text(x: float, y: float, words: str, *, size: int = 12, colour: str = _INK, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" {_FONT}>'
        f"{escape(words)}</text>"
    )


def _document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        _text(16, 26, title, size=15),
        *parts,
        "</svg>\n",
    ])  # fmt: skip


def _lines(rows: Sequence[Damage], title: str) -> str:
    left, top, wide, high, right = 70.0, 66.0, 520.0, 320.0, 330.0
    low, peak = _bounds(rows)
    parts = [_text(16, 48, "square error of the outputs, relative to their variance", colour=_QUIET)]

    def y(value: float) -> float:
        place = (math.log10(max(value, 10.0**low)) - low) / max(peak - low, 1)
        return top + high * (1 - min(max(place, 0.0), 1.0))

    for decade in range(low, peak + 1):
        parts.append(f'<line x1="{left}" x2="{left + wide}" y1="{y(10.0**decade):.1f}" y2="{y(10.0**decade):.1f}" '
                     f'stroke="{_GRID}"/>')  # fmt: skip
        parts.append(_text(left - 8, y(10.0**decade) + 4, f"{10.0**decade:g}", colour=_QUIET, anchor="end"))
    for tenth in range(0, 11, 2):
        x = left + wide * (1 - tenth / 10)
        parts.append(_text(x, top + high + 20, f"{10 * tenth} %", colour=_QUIET, anchor="middle"))
    parts.append(_text(left + wide / 2, top + high + 42, "units kept", colour=_QUIET, anchor="middle"))
    ends = []
    for row, colour in zip(rows, _COLOURS, strict=False):
        assert row.curve is not None
        kept = np.arange(row.width - 1, 0, -1)
        points = " ".join(f"{left + wide * (1 - k / row.width):.1f},{y(float(row.curve[k - 1])):.1f}" for k in kept)
        if len(kept) > 1:
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        elif len(kept):
            place = points.split(",")
            parts.append(f'<circle cx="{place[0]}" cy="{place[1]}" r="3" fill="{colour}"/>')
        if len(kept):
            ends.append((y(float(row.curve[0])), row, colour, left + wide * (1 - 1 / row.width)))
    at = -math.inf
    for end, row, colour, x in sorted(ends, key=lambda e: e[0]):
        at = max(end + 4, at + 18)
        parts.append(f'<line x1="{x:.1f}" x2="{left + wide + 14:.1f}" y1="{end:.1f}" y2="{at - 4:.1f}" '
                     f'stroke="{colour}" stroke-dasharray="2 3"/>')  # fmt: skip
        words = f"{short(row.name)} ({row.width}, {quantity(row.macs)} MACs)"
        parts.append(_text(left + wide + 18, at, words, colour=colour))
    return _document(left + wide + right, max(top + high + 60, at + 20), title, parts)


def _heat_map(rows: Sequence[Damage], title: str) -> str:
    names, cell, high, top = 330.0, 62.0, 20.0, 84.0
    low, peak = _bounds(rows)
    parts = [
        _text(16, 48, "square error of the outputs, relative to their variance, when the group alone is cut; "
              "cheapest for what it saves on top", colour=_QUIET),
        _text(names, top - 8, "MACs", colour=_QUIET, anchor="end"),
    ]  # fmt: skip
    for c, share in enumerate(_COLUMNS):
        words = f"{100 * share:.0f} %" + (" kept" if c == 0 else "")
        parts.append(_text(names + 12 + cell * (c + 0.5), top - 8, words, colour=_QUIET, anchor="middle"))
    for r, row in enumerate(rows):
        assert row.curve is not None
        y = top + high * r
        parts.append(_text(16, y + 14, f"{short(row.name)} ({row.width})", size=11))
        parts.append(_text(names, y + 14, quantity(row.macs), size=11, colour=_QUIET, anchor="end"))
        for c, share in enumerate(_COLUMNS):
            value = float(row.curve[max(1, round(share * row.width)) - 1])
            place = (math.log10(max(value, 10.0**low)) - low) / max(peak - low, 1)
            shade = min(max(place, 0.0), 1.0)
            colour = ",".join(str(int(v)) for v in _LIGHT + (_DARK - _LIGHT) * shade)
            x = names + 12 + cell * c
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{high - 1:.1f}" '
                         f'fill="rgb({colour})"/>')  # fmt: skip
            ink = "#ffffff" if shade > 0.5 else _INK
            parts.append(_text(x + cell / 2, y + 14, f"{value:.2g}", size=11, colour=ink, anchor="middle"))
    return _document(names + 24 + cell * len(_COLUMNS), top + high * len(rows) + 16, title, parts)
