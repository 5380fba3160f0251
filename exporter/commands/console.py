"""What commands say while they work, and where their JSON goes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

QUIET_SECONDS = 1.0
"""Nothing is said of what takes less."""


class Progress:
    """Lines on stderr for whatever takes more than a second."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.started = time.perf_counter()

    def __call__(self, line: str) -> None:
        """Say what begins now."""
        elapsed = time.perf_counter() - self.started
        if not self.quiet and elapsed > QUIET_SECONDS:
            print(f"[{elapsed:5.1f} s] {line}", file=sys.stderr, flush=True)


def write_json(target: str, document: dict[str, Any]) -> None:
    """Write a document to a file, or to stdout for ``-``."""
    write_to(target, json.dumps(document, indent=1, ensure_ascii=False) + "\n", "the JSON report")


def write_to(target: str, text: str, what: str) -> None:
    """Write text to a file, or to stdout for ``-``; ``what`` is what messages call it."""
    from exporter.atomic import write_text
    from exporter.errors import UsageError

    if target == "-":
        print(text, end="")
        return
    try:
        write_text(Path(target), text)
    except OSError as error:
        raise UsageError(f"{what} cannot be written to {target}: {error.strerror}.") from error
