"""Text for the console: aligned tables, and numbers and names short enough for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from runtime.nouns import counted

_LONGEST_NAME = 44


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Align columns; the first row is the heading. Columns in ``right`` are flushed right; a cell is one line."""
    rows = [[" ".join(cell.split("\n")) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    flushed = set(right)
    lines = []
    for number, row in enumerate(rows):
        cells = [c.rjust(w) if k in flushed else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * w for w in widths).rstrip())
    return "\n".join(lines)


def quantity(value: float) -> str:
    """A count with a metric prefix: 25.6 M."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f}"


def short(name: str) -> str:
    """A name with its middle left out where it is longer than a table can bear."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 3) // 2
    return f"{name[:half]}...{name[-half:]}"


def milliseconds(seconds: float) -> str:
    """A time in ms, with three significant digits; in s from one second on."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def error_text(error: float) -> str:
    """A relative error: 4.5e-06, or 0 where every bit is the same."""
    return f"{error:.1e}" if error else "0"


def threads_text(threads: int | None, default: str = "default") -> str:
    """How many threads: ``1 thread``, ``4 threads``; where nobody said, ``default threads``."""
    return counted(threads, "thread") if threads else f"{default} threads"


def shapes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """Input shapes in a line: ``image 1x3x224x224; mask 1x16``."""
    return "; ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
