"""Plots as inline SVG. Places across are in per cent, so a plot fits any screen while its letters keep their size.

Every plot is a picture to a screen reader, with a sentence for a name; what it shows stands in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from exporter.page.markup import Content, Markup, markup, tag, together

_HEIGHT = 200.0
_LEAST_BAR = 5
"""Pixels for each bar of a plot with many; it scrolls where they do not fit."""
_FEW = 70
_LETTERS, _NAME = 13.0, 35.0
"""Room for a name beside a dot: pixels down, per cent across."""
_BINS = 48


def figure(title: str, plot: Content, caption: Content = "") -> Markup:
    """A plot under its title."""
    return tag("figure", tag("h3", title), plot, tag("figcaption", caption) if caption else "")


def key(*entries: tuple[str, str]) -> Markup:
    """What colours mean: pairs of a class and a word."""
    items = []
    for kind, word in entries:
        square = tag("svg", tag("rect", width="100%", height="100%", class_=kind), aria_hidden="true")
        items.append(tag("li", square, word))
    return tag("ul", items, class_="key")


@dataclass(frozen=True)
class Bar:
    """One line of a list of bars.

    Attributes:
        name: what it is of.
        values: one bar each, in the order of the classes ``other`` and ``main`` where there are two.
        texts: the same as words.
        reason: said behind the name.
    """

    name: str
    values: tuple[float, ...]
    texts: tuple[str, ...]
    reason: str = ""


def bars(rows: Sequence[Bar], label: str) -> Markup:
    """A list of bars, each under its name: it can be read without seeing it.

    Args:
        rows: lines.
        label: what the list is of.
    """
    top = max((v for row in rows for v in row.values), default=0.0) or 1.0
    items = []
    for row in rows:
        kinds = ("other", "main") if len(row.values) == 2 else ("main",)
        lines = [
            tag("div", _bar(value / top, kind), tag("span", together(text)), class_="bar")
            for value, text, kind in zip(row.values, row.texts, kinds, strict=True)
        ]
        head = [tag("code", row.name), tag("span", f" {row.reason}", class_="reason") if row.reason else ""]
        items.append(tag("li", tag("div", *head, class_="name"), lines))
    return tag("ol", items, class_="bars", aria_label=label)


def _bar(share: float, kind: str) -> Markup:
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}%"
    return tag("svg", tag("rect", width=width, height="100%", rx="2", class_=kind), aria_hidden="true")


def columns(shares: Sequence[float], names: Sequence[str], label: str, ends: tuple[str, str] = ("", "")) -> Markup:
    """One column for each part of a network, in its order: how much of it is left, of the whole that is shown behind.

    Args:
        shares: what is left, from 0 to 1.
        names: shown where a pointer rests.
        label: what the plot shows.
        ends: words below its left and right end.
    """
    count = max(len(shares), 1)
    step, gap = 100 / count, 0.2 if count > 1 else 0.6
    parts = [_level(_HEIGHT * (1 - v / 100), f"{v} %") for v in (0, 50, 100)]
    for k, (share, name) in enumerate(zip(shares, names, strict=True)):
        x, width = f"{step * (k + gap / 2):.3f}%", f"{step * (1 - gap):.3f}%"
        high = _HEIGHT * min(max(share, 0.0), 1.0)
        parts.append(
            tag(
                "g",
                tag("title", f"{k + 1}. {name}: {100 * share:.0f} %"),
                tag("rect", x=x, y=0.0, width=width, height=_HEIGHT, class_="gone"),
                tag("rect", x=x, y=_HEIGHT - high, width=width, height=high, class_="main"),
            )
        )
    every = max(1, math.ceil(count / 12))
    numbers = [k for k in range(count) if k == 0 or (k + 1) % every == 0] if count > 1 else []
    parts += [_text(step * (k + 0.5), _HEIGHT + 16, str(k + 1), "middle") for k in numbers]
    parts += [_text(0, _HEIGHT + 32, ends[0]), _text(100, _HEIGHT + 32, ends[1], "end")]
    plot = _svg(parts, _HEIGHT, label)
    if count <= _FEW:
        return plot
    inner = tag("div", plot, style=f"min-width:{_LEAST_BAR * count + 80}px")
    return tag("div", inner, class_="wide", role="region", aria_label=label, tabindex="0")


@dataclass(frozen=True)
class Dot:
    """A point of a plane.

    Attributes:
        x, y: where.
        name: written beside it; "" for none.
        title: shown where a pointer rests.
        low, high: ends of an interval of ``y``.
        main: whether it stands out.
    """

    x: float
    y: float
    name: str = ""
    title: str = ""
    low: float | None = None
    high: float | None = None
    main: bool = True


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        name: what is along it.
        text: a value as it is written.
        log: whether equal steps are equal factors.
    """

    name: str
    text: Callable[[float], str]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, before it is fitted to the plot."""
        return math.log10(max(value, 1e-30)) if self.log else value


def plane(
    dots: Sequence[Dot],
    x: Scale,
    y: Scale,
    label: str,
    *,
    joined: bool = False,
    mark: tuple[float, str] | None = None,
    roof: Sequence[tuple[float, float]] = (),
    framed: bool = True,
) -> Markup:
    """Points over two axes.

    Args:
        dots: at least one.
        x, y: the axes.
        label: what the plot shows.
        joined: draw a line from each point to the next one to the right.
        mark: a value of ``y`` that counts, and what it is.
        roof: corners of a line that no point can be above.
        framed: whether it stands in a box; else it is as wide as what it stands in.
    """
    xs = [x.place(d.x) for d in dots] + [x.place(a) for a, _ in roof]
    ys = [y.place(v) for d in dots for v in (d.y, d.low, d.high) if v is not None]
    ys += [y.place(b) for _, b in roof] + ([y.place(mark[0])] if mark is not None else [])
    ax, ay = _Axis(xs, x.log), _Axis(ys, y.log)

    def at(a: float, b: float) -> tuple[float, float]:
        return 100 * ax.share(x.place(a)), _HEIGHT * (1 - ay.share(y.place(b)))

    parts = [_level(_HEIGHT * (1 - ay.share(t)), y.text(10**t if y.log else t)) for t in ay.ticks]
    for tick in ax.ticks:
        place = 100 * ax.share(tick)
        anchor = "start" if place < 4 else "end" if place > 96 else "middle"
        parts.append(_text(place, _HEIGHT + 16, x.text(10**tick if x.log else tick), anchor))
    parts += [_text(0, _HEIGHT + 32, x.name), _text(0, -8, y.name)]
    if joined:
        ordered = sorted(dots, key=lambda d: d.x)
        parts += [_line(at(a.x, a.y), at(b.x, b.y), "other") for a, b in pairwise(ordered)]
    parts += [_line(at(*a), at(*b), "mark") for a, b in pairwise(roof)]
    if mark is not None:
        height = _HEIGHT * (1 - ay.share(y.place(mark[0])))
        parts += [_line((0, height), (100, height), "mark"), _text(100, height - 5, mark[1], "end")]
    taken: list[tuple[float, float]] = []
    parts += [_name(dot, at, taken) for dot in dots if dot.name]  # beneath all points, which must be seen
    parts += [_dot(dot, at) for dot in dots]
    return (_svg if framed else _drawing)(parts, _HEIGHT, label)


def _name(dot: Dot, at: Callable[[float, float], tuple[float, float]], taken: list[tuple[float, float]]) -> Markup:
    """The name of a point, above it, or below where a name stands there already; ``taken`` is where names stand."""
    px, py = at(dot.x, dot.y)
    right = px > 62
    anchor, aside = ("end", "-9") if right else ("start", "9")
    free = [y for y in (py - 10, py + 18) if all(abs(y - b) >= _LETTERS or abs(px - a) >= _NAME for a, b in taken)]
    height = free[0] if free else py - 10
    taken.append((px, height))
    return tag("text", dot.name, x=f"{px:.2f}%", y=height, dx=aside, text_anchor=anchor, class_="label")


def _dot(dot: Dot, at: Callable[[float, float], tuple[float, float]]) -> Markup:
    """A point, and the interval it may lie in."""
    px, py = at(dot.x, dot.y)
    kind = "main" if dot.main else "other"
    parts = [tag("title", dot.title or dot.name)]
    if dot.low is not None and dot.high is not None:
        parts.append(_line(at(dot.x, dot.low), at(dot.x, dot.high), kind))
    parts.append(tag("circle", cx=f"{px:.2f}%", cy=py, r=6.0 if dot.main else 4.0, class_=kind))
    return tag("g", *parts)


def histogram(values: Sequence[float], low: float, high: float, label: str, kind: str) -> Markup:
    """How often values lie where, between two ends; those beyond count at the ends."""
    counts = [0] * _BINS
    for value in values:
        place = int((value - low) / max(high - low, 1e-30) * _BINS)
        counts[min(max(place, 0), _BINS - 1)] += 1
    top, height, step = max(counts) or 1, 70.0, 100 / _BINS
    parts = []
    for k, count in enumerate(counts):
        if count:
            high_ = height * count / top
            parts.append(tag("rect", x=f"{step * k:.2f}%", y=height - high_, width=f"{step * 0.9:.2f}%", height=high_,
                             class_=kind))  # fmt: skip
    parts.append(_line((0, height), (100, height), ""))
    return _svg(parts, height, label)


class _Axis:
    """Fits values to 0 .. 1 with a margin, and finds round places for ticks."""

    def __init__(self, values: Sequence[float], log: bool) -> None:
        low, high = min(values), max(values)
        margin = (high - low) * 0.06 or (0.5 if log else abs(high) * 0.05 or 1.0)
        self.low, self.high, self.log = low - margin, high + margin, log
        self.ticks = self._ticks()

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def _ticks(self) -> list[float]:
        reach = self.high - self.low
        raw = reach / 4
        size = 10 ** math.floor(math.log10(raw))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
        if self.log:
            step = max(1.0, math.ceil(step))
        first = math.ceil(self.low / step)
        found = [step * k for k in range(first, math.floor(self.high / step) + 1)]
        return found or [(self.low + self.high) / 2]


def _svg(parts: Sequence[Markup], height: float, label: str) -> Markup:
    return tag("div", _drawing(parts, height, label), class_="plot")


def _drawing(parts: Sequence[Markup], height: float, label: str) -> Markup:
    return tag("svg", *parts, height=height, role="img", aria_label=label)


def _level(y: float, words: str) -> Markup:
    text = tag("text", words, x="-8", y=y + 4, text_anchor="end")
    return Markup(_line((0, y), (100, y), "") + text)


def _text(x: float, y: float, words: str, anchor: str = "start") -> Markup:
    return tag("text", words, x=f"{x:.2f}%", y=y, text_anchor=anchor) if words else markup("")


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    (x1, y1), (x2, y2) = start, end
    return tag("line", x1=f"{x1:.2f}%", y1=y1, x2=f"{x2:.2f}%", y2=y2, class_=kind or None)
