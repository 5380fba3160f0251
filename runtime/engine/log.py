"""What TensorRT says while it works: captured, without the noise, and read for what it found out about sparsity."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runtime.engine.flavour import Flavour

LEVELS = ("fatal", "error", "warning", "info", "verbose")
"""By number, the worst first, as TensorRT counts them."""

_NOISE = re.compile(
    r"CUDA driver version is insufficient|CUDA initialization failure|Unable to determine GPU memory usage"
    r"|no CUDA-capable device|CUDA lazy loading is not enabled|operation not supported on this OS|Error Code 35"
    r"|cudaErrorInsufficientDriver|cudaErrorNoDevice|\[MemUsage(?:Change|Stats)\]|The logger passed into"
    r"|Could not read timing cache",
    re.IGNORECASE,
)
"""What is said on every machine without a driver, or about memory at every step; it explains no failure to build.
"""


@dataclass(frozen=True)
class Message:
    """One line of the log.

    Attributes:
        level: one of ``LEVELS``.
        text: without the severity.
    """

    level: str
    text: str


@dataclass(frozen=True)
class Sparsity:
    """What the builder said about sparse weights, in its last pass.

    Attributes:
        eligible: layers whose weights have the pattern.
        chosen: of them, those for which a sparse kernel was the fastest; None where the builder did not say.
        layers: names of the eligible ones, where the builder names them.
        kernels: names of the chosen ones.
    """

    eligible: int
    chosen: int | None
    layers: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


_SINKS: list[list[Message]] = []
_LOGGERS: dict[str, Any] = {}
"""One logger a flavour: the first one registered in a process is the only one TensorRT uses."""


def logger_of(flavour: Flavour) -> Any:
    """The logger of this process; it writes to whoever captures."""
    key = f"{flavour.name} {id(flavour.module)}"
    if key not in _LOGGERS:
        base: Any = flavour.module.ILogger

        class Recorder(base):  # type: ignore[misc]  # the base is known only at run time
            """Hands every line on."""

            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                """Called by TensorRT, from any of its threads."""
                number = min(max(int(severity), 0), len(LEVELS) - 1)
                if _SINKS:
                    _SINKS[-1].append(Message(LEVELS[number], text.strip()))

        _LOGGERS[key] = Recorder()
    return _LOGGERS[key]


@contextmanager
def captured() -> Iterator[list[Message]]:
    """Everything TensorRT says inside the block."""
    sink: list[Message] = []
    _SINKS.append(sink)
    try:
        yield sink
    finally:
        _SINKS.remove(sink)


def telling(messages: Iterable[Message], most: str = "warning") -> list[Message]:
    """Messages at least as bad as ``most``, without noise and repetitions, in order."""
    worst = LEVELS.index(most)
    seen: dict[Message, None] = {}
    for message in messages:
        if LEVELS.index(message.level) <= worst and message.text and not is_noise(message):
            seen.setdefault(message)
    return list(seen)


def is_noise(message: Message) -> bool:
    """Say whether a line is said on every machine of its kind, whatever the model."""
    return bool(_NOISE.search(message.text))


_FOUND = re.compile(r"\(Sparsity\)\s*(?:Found\s+)?(?:Layers eligible.*?|(\d+) layer\(s\) eligible.*?)(?::\s*(.*))?$")
_CHOSE = re.compile(r"\(Sparsity\)\s*(?:Chose (\d+) layer\(s\) using sparse.*?|TRT inference plan.*?)(?::\s*(.*))?$")


def sparsity_of(messages: Sequence[Message]) -> Sparsity | None:
    """What the log says about sparse kernels, None where it says nothing.

    TensorRT 10 counts: ``(Sparsity) Found 3 layer(s) eligible to use sparse tactics: a, b, c`` and ``(Sparsity) Chose 1
    layer(s) using sparse tactics: a``. TensorRT 8 lists: ``(Sparsity) Layers eligible for sparse math: a, b`` and
    ``(Sparsity) TRT inference plan picked sparse implementation for layers: a``. Each pass of the builder says it anew;
    the last pass counts.
    """
    found: Sparsity | None = None
    for message in messages:
        eligible, chosen = _FOUND.search(message.text), _CHOSE.search(message.text)
        if chosen is not None:
            names = _names(chosen.group(2))
            count = int(chosen.group(1)) if chosen.group(1) else len(names)
            before = found or Sparsity(count, None, names)
            found = Sparsity(before.eligible, count, before.layers, names)
        elif eligible is not None:
            names = _names(eligible.group(2))
            found = Sparsity(int(eligible.group(1)) if eligible.group(1) else len(names), None, names)
    return found


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
