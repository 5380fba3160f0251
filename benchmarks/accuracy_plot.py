"""Accuracy against MACs as an SVG: one panel per network, without and with compensation, a line per method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 380, 250
_LEFT, _TOP, _GAP, _BELOW = 56, 34, 58, 46
_LEGEND_COLUMNS, _LEGEND_LINE = 4, 20
_COLOURS = (
    "#0b6e4f",
    "#d1495b",
    "#00798c",
    "#edae49",
    "#6a4c93",
    "#8d5524",
    "#5f6b6d",
    "#e76fb4",
    "#3a5fcd",
    "#2f9e44",
)
_DASHES = ("", "6 3", "2 3")


@dataclass(frozen=True)
class Line:
    """One method in one panel: points (MACs left, accuracy), both shares."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Axes with lines; ``dense`` is drawn as a level."""

    title: str
    lines: Sequence[Line]
    dense: float | None


def svg(rows: Sequence[Sequence[Panel]], first: float, last: float) -> str:
    """Draw panels.

    Args:
        rows: panels side by side, row by row.
        first, last: ends of the horizontal axis, MACs left; the larger is at the left.

    Returns:
        The document.
    """
    names = list(dict.fromkeys(line.name for row in rows for panel in row for line in panel.lines))
    columns = max(len(row) for row in rows)
    width = columns * (_LEFT + _WIDTH) + 24
    grid = len(rows) * (_TOP + _HEIGHT + _BELOW)
    height = grid + _LEGEND_LINE * -(-len(names) // _LEGEND_COLUMNS) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for r, row in enumerate(rows):
        for c, panel in enumerate(row):
            parts += _panel(
                panel, names, c * (_LEFT + _WIDTH) + _LEFT, r * (_TOP + _HEIGHT + _BELOW) + _TOP, first, last
            )
    for k, name in enumerate(names):
        x = _LEFT + (k % _LEGEND_COLUMNS) * ((width - _LEFT) // _LEGEND_COLUMNS)
        y = grid + 12 + k // _LEGEND_COLUMNS * _LEGEND_LINE
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}" {_stroke(k)}/>')
        parts.append(_text(x + 32, y + 4, name, "start"))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, names: Sequence[str], left: int, top: int, first: float, last: float) -> list[str]:
    def x(macs: float) -> float:
        return left + (first - macs) / (first - last) * (_WIDTH - _GAP)

    def y(share: float) -> float:
        return top + (1 - share) * _HEIGHT

    right, bottom = x(last), top + _HEIGHT
    parts = [_text((left + right) / 2, top - 12, panel.title, "middle", "bold")]
    for tenths in range(0, 11, 2):
        level = y(tenths / 10)
        parts.append(f'<line x1="{left}" y1="{level:.1f}" x2="{right:.1f}" y2="{level:.1f}" stroke="#dddddd"/>')
        parts.append(_text(left - 6, level + 4, f"{10 * tenths}", "end"))
    for tenths in range(10, 0, -1):
        macs = tenths / 10
        if first >= macs >= last:
            parts.append(
                f'<line x1="{x(macs):.1f}" y1="{bottom}" x2="{x(macs):.1f}" y2="{bottom + 4}" stroke="#333333"/>'
            )
            parts.append(_text(x(macs), bottom + 18, f".{tenths}" if tenths < 10 else "1", "middle"))
    parts.append(
        f'<path d="M{left} {top} V{bottom} H{right:.1f}" fill="none" stroke="#333333"/>',
    )
    parts.append(_text((left + right) / 2, bottom + 34, "MACs left", "middle"))
    middle = (top + bottom) / 2
    parts.append(
        f'<text x="{left - 36}" y="{middle}" text-anchor="middle" transform="rotate(-90 {left - 36} {middle})">'
        "accuracy, %</text>"
    )
    if panel.dense is not None:
        level = y(panel.dense)
        parts.append(
            f'<line x1="{left}" y1="{level:.1f}" x2="{right:.1f}" y2="{level:.1f}" stroke="#333333" '
            'stroke-dasharray="1 3"/>'
        )
        parts.append(_text(right + 3, level + 4, "dense", "start"))
    for line in panel.lines:
        points = sorted((p for p in line.points if first >= p[0] >= last), reverse=True)
        where = " ".join(f"{x(macs):.1f},{y(share):.1f}" for macs, share in points)
        number = names.index(line.name)
        parts.append(f'<polyline points="{where}" fill="none" {_stroke(number)}/>')
        parts += [
            f'<circle cx="{x(macs):.1f}" cy="{y(share):.1f}" r="2.4" fill="{_colour(number)}"/>'
            for macs, share in points
        ]
    return parts


def _stroke(number: int) -> str:
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return f'stroke="{_colour(number)}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
