"""What commands say: progress on stderr while they work, then their result as text on stdout and as JSON.

All commands follow the same rules. Text and JSON go to stdout (``--json -``: the JSON alone) or to files; stderr has
errors, and progress unless ``--quiet`` or ``--json -`` is given. A bar is drawn on a terminal alone; with ``NO_COLOR``,
``TERM=dumb`` or no terminal there are lines instead, and no escape sequence is written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from runtime.steps import Count

QUIET_SECONDS = 1.0
"""Nothing is said of what takes less."""
_AGAIN_SECONDS = 10.0
"""How often a counted step is told where no bar can be drawn."""
_REDRAW_SECONDS = 0.1
_RED, _FILLED, _REST, _PLAIN = "\x1b[31;1m", "\x1b[36m", "\x1b[2m", "\x1b[0m"
_ERASE = "\r\x1b[K"
_BAR, _WIDEST = 20, 120


def styled(stream: TextIO) -> bool:
    """Whether colours and a bar may be written to a stream: it is a terminal, and nothing in the environment objects.

    ``NO_COLOR`` counts where it is not empty (https://no-color.org).
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Progress:
    """On stderr, for whatever takes more than a second: a line for each step, a bar for what is counted.

    No thread draws it, since commands measure; so it stands still where a step does not report.
    """

    drawn = False
    """Whether a bar stands on stderr, whoever has drawn it."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Start the clock. ``options``: of the command, for ``--quiet`` and ``--json -``."""
        self.silent = options.quiet or getattr(options, "json", None) == "-"
        self.bar = styled(sys.stderr)
        self.started = time.perf_counter()
        self._what, self._since, self._first, self._last, self._told = "", 0.0, 0.0, 0.0, 0.0

    def __call__(self, line: str) -> None:
        """Say what begins now, or how far it is."""
        now = time.perf_counter()
        if self.silent:
            return
        if isinstance(line, Count):
            self._count(line, now)
        elif now - self.started > QUIET_SECONDS:
            self._line(line, now)

    def _line(self, line: str, now: float) -> None:
        erase_bar()
        print(f"[{now - self.started:5.1f} s] {line}", file=sys.stderr, flush=True)

    def _count(self, count: Count, now: float) -> None:
        if count.what != self._what or count.done < self._last:
            told = self._told if count.what == self._what else -_AGAIN_SECONDS
            told = now if count.unit == "s" and not self.bar else told  # a line has said for how long
            self._what, self._since, self._first, self._told = count.what, now, count.done, told
        self._last = count.done
        wait = _REDRAW_SECONDS if self.bar else _AGAIN_SECONDS
        if now - self.started <= QUIET_SECONDS or now - self._told < wait:
            return
        self._told = now
        if not self.bar:
            self._line(count, now)
            return
        Progress.drawn = True
        print(_ERASE + _drawn(count, count.done - self._first, now - self._since), end="", file=sys.stderr, flush=True)


def erase_bar() -> None:
    """Take the bar away, for something else is said."""
    if Progress.drawn:
        Progress.drawn = False
        print(_ERASE, end="", file=sys.stderr, flush=True)


def _drawn(count: Count, done: float, seconds: float) -> str:
    """A bar with amounts, rate, time left and note, as far as they fit."""
    width = _columns()
    share = min(max(count.done / count.total, 0.0), 1.0) if count.total > 0 else 1.0
    more = [count.amounts, *_rate(count, done, seconds), count.note]
    filled = round(_BAR * share)
    full, empty = _marks()
    text = f"{count.what}  "
    room = min(width, _WIDEST) - 1 - len(text) - _BAR
    if room < 0:
        return text[: width - 1].rstrip()
    tail = ""
    for part in filter(None, more):
        tail += f"  {part}" if len(tail) + 2 + len(part) <= room else ""
    return f"{text}{_FILLED}{full * filled}{_PLAIN}{_REST}{empty * (_BAR - filled)}{_PLAIN}{tail}"


def _rate(count: Count, done: float, seconds: float) -> list[str]:
    """How fast it goes, and how long it will take still."""
    if count.unit == "s" or done <= 0 or seconds <= 0:
        return []  # seconds pass by themselves
    rate, left = done / seconds, (count.total - count.done) * seconds / done
    if count.unit == "B":
        fast = f"{rate / 1e6:.0f} MB/s"
    else:
        fast = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
    return [fast, f"{int(left) // 60}:{int(left) % 60:02d} left"]


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0: the terminal does not say
    except (OSError, ValueError):
        return 80


def _marks() -> tuple[str, str]:
    try:
        "━".encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return "#", "-"
    return "━", "━"


def say(text: str) -> None:
    """Print to stdout."""
    _print(f"{text}\n")


def drop_stdout() -> None:
    """Let nothing more be printed, and nothing fail as what is left is flushed in the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: str) -> None:
    from exporter.errors import UsageError

    erase_bar()
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # the reader went away
        raise
    except OSError as error:
        drop_stdout()
        raise UsageError(f"the result cannot be written to stdout: {error.strerror}.") from error


def complain(text: str) -> None:
    """Print an error to stderr, with the program's name before it."""
    erase_bar()
    name = f"{_RED}secateur:{_PLAIN}" if styled(sys.stderr) else "secateur:"
    print(f"{name} {text}", file=sys.stderr)


def deliver(
    options: argparse.Namespace, document: Callable[[], dict[str, Any]], text: Callable[[], str], code: int = 0
) -> int:
    """Give the result of a command: as JSON where ``--json`` says, and as text unless the JSON takes stdout.

    Args:
        options: of the command.
        document: makes the JSON.
        text: makes the text.
        code: the exit code, which is returned.
    """
    if options.json:
        write_json(options.json, document())
    if options.json != "-":
        say(text())
    return code


def write_json(target: str, document: dict[str, Any]) -> None:
    """Write a document to a file, or to stdout for ``-``; JSON has no NaN and no infinity: null stands for them."""
    finite = _finite(document)
    text = json.dumps(finite, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode((target == "-" and sys.stdout.encoding) or "utf-8")
    except UnicodeEncodeError:  # a terminal of few letters, or a file's name that is no text
        text = json.dumps(finite, indent=1, allow_nan=False)
    write_to(target, text + "\n", "the JSON report")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_to(target: str, text: str, what: str) -> None:
    """Write text to a file, or to stdout for ``-``; ``what`` is what messages call it.

    A pipe or a device is written into, never replaced.
    """
    from exporter.atomic import special, write_text
    from exporter.errors import UsageError

    if target == "-":
        _print(text)
        return
    try:
        if special(Path(target)):
            with Path(target).open("w", encoding="utf-8") as stream:
                stream.write(text)
        else:
            write_text(Path(target), text)
    except OSError as error:
        raise UsageError(f"{what} cannot be written to {target}: {error.strerror}.") from error
