"""Markdown tables, and result files that say what produced them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / "build" / "benchmarks"
_SHOWN = (
    "secateur",
    "onnx",
    "onnxruntime",
    "onnxsim",
    "polygraphy",
    "torch",
    "torchvision",
    "torch-pruning",
    "timm",
    "transformers",
)


def markdown(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; the first row is the heading, columns in ``right`` are flushed right."""
    cells = [[c.replace("|", "\\|") for c in row] for row in rows]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(_pad(c, w, k in right) for k, (c, w) in enumerate(zip(r, widths, strict=True))) + " |"
        for r in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if k in right else "-") for k, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def share(value: float | None) -> str:
    """A share with three digits, without the leading zero: ``.257``."""
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def environment() -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: date, command, machine, versions."""
    import exporter

    versions = {d.name.lower(): d.version for d in metadata.distributions()}
    versions.setdefault("secateur", exporter.__version__)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "changed": _changed(Path(exporter.__file__).parent),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": dict(sorted(versions.items())),
    }


def footer(about: dict[str, Any]) -> str:
    """The environment in two lines."""
    versions = ", ".join(f"{n} {about['packages'][n]}" for n in _SHOWN if n in about["packages"])
    commit = about["commit"][:10] + (f" with {len(about['changed'])} files changed" if about["changed"] else "")
    return (
        f"`{about['command']}`, {about['date']}, commit {commit}.\n"
        f"{about['cpu']}, {about['cores']} cores; Python {about['python']}, {versions}."
    )


def publish(name: str, text: str, data: dict[str, Any], about: dict[str, Any], folder: Path) -> None:
    """Print a result and ``write`` it."""
    print(write(name, text, data, about, folder))
    print(f"written: {folder / name}.md, .json", file=sys.stderr)


def write(name: str, text: str, data: dict[str, Any], about: dict[str, Any], folder: Path) -> str:
    """Write a result as ``folder/name.md`` and ``folder/name.json``; nobody sees half of a file.

    Args:
        name: of the benchmark.
        text: the page.
        data: every figure behind it.
        about: ``environment()`` as it was when the run began.
        folder: where to write; made if missing.

    Returns:
        The page with its footer.
    """
    page = f"{text}\n\n{footer(about)}\n"
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps({"about": about, **data}, indent=1, ensure_ascii=False)
    for suffix, content in (("json", f"{document}\n"), ("md", page)):
        half = folder / f".{name}.{suffix}.part"
        half.write_text(content, encoding="utf-8")
        half.replace(folder / f"{name}.{suffix}")
    return page


def told(rows: Iterable[dict[str, Any]], cells: Callable[[dict[str, Any]], list[str]]) -> list[dict[str, Any]]:
    """All rows, each of which is shown as soon as it is measured."""
    found = []
    for row in rows:
        say("  ".join(cells(row)))
        found.append(row)
    return found


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _cpu() -> str:
    """Name of the processor, with its widest vector extension, which decides kernel speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    vectors = "AVX-512" if "avx512f" in fields.get("flags", "").split() else "no AVX-512"
    numbers = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', 'unknown')} ({numbers}, {vectors})"


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _changed(package: Path) -> list[str]:
    """Source files of the ``exporter`` and ``runtime`` imported here that are not as committed."""
    committed = {}
    for line in _git("ls-tree", "-r", "HEAD", "exporter", "runtime").splitlines():
        facts, _, path = line.partition("\t")
        committed[path] = facts.split()[-1]
    found = {}
    for file in (f for folder in (package, package.parent / "runtime") for f in folder.rglob("*.py")):
        data = file.read_bytes()
        header = f"blob {len(data)}\0".encode()
        found[file.relative_to(package.parent).as_posix()] = hashlib.sha1(header + data).hexdigest()
    sources = {p: h for p, h in committed.items() if p.endswith(".py")}
    return sorted({p for p, _ in found.items() ^ sources.items()})
