"""``secateur doctor``: what this installation has, what it lacks, and the line that adds it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from exporter.commands.console import complain, deliver
from exporter.commands.options import add_json, command
from runtime.nouns import counted

if TYPE_CHECKING:
    from exporter.checkup import Package

_VERSION = 1


def add(commands: Any) -> None:
    """Add the command."""
    text = "Check this installation: versions, backends, processor, what is missing and how to add it."
    add_json(command(commands, "doctor", run, text))


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    try:
        from exporter import checkup
    except ImportError as error:
        complain(f"the installation is incomplete ({error}): pip install --upgrade packaging")
        return 1
    from exporter import __version__
    from runtime.environment import environment

    wanted = checkup.declared()
    found = checkup.packages(wanted)
    around = environment()
    python = checkup.python_fault(wanted.python)
    ill = bool(python) or any(p.fault for p in found if p.extra == checkup.CORE)
    lacking = {p.extra: checkup.install_line(p.extra, wanted, found) for p in found if p.fault}
    document = {
        "version": _VERSION,
        "secateur": __version__,
        "healthy": not ill,
        "python": {"version": around["python"], "wanted": wanted.python, "executable": sys.executable, "fault": python},
        "environment": {**around, "instructions": checkup.instructions(around)},
        "packages": [vars(p) for p in found],
        "backends": _backends(),
        "install": lacking,
    }
    return deliver(options, lambda: document, lambda: _text(document, found), 1 if ill else 0)


def _backends() -> list[dict[str, Any]] | None:
    """What ``backends`` says; None where the packages it needs do not load."""
    try:
        from runtime.backends import available

        found = available()
    except ImportError:
        return None
    return [{"name": n, "device": a.device, "version": a.version, "missing": a.missing} for n, a in found.items()]


def _text(document: dict[str, Any], found: list[Package]) -> str:
    from exporter.checkup import CORE, PURPOSES
    from exporter.tables import quantity, table

    around, python, backends = document["environment"], document["python"], document["backends"]
    memory = f"{quantity(around['memory_bytes'])}B" if around["memory_bytes"] else "unknown"
    lines = [
        f"secateur {document['secateur']}, {around['system']}",
        f"Python {python['version']} ({python['executable']})" + (f": {python['fault']}" if python["fault"] else ""),
        f"processor: {around['processor']}, {around['processors_usable']} of {counted(around['processors'], 'core')} "
        f"usable, memory {memory}",
        f"instructions: {' '.join(around['instructions']) or 'unknown'}",
        "",
        table(
            [
                ["package", "wanted", "here", "for"],
                *([p.name, p.wanted, _here(p), PURPOSES.get(p.extra, p.extra)] for p in found),
            ]
        ),
        "",
    ]
    if backends is None:
        lines.append("backends: unknown, because packages they need do not load")
    else:
        rows = [[b["name"], b["device"], b["version"]] for b in backends if not b["missing"]]
        lines.append(table([["backend", "device", "version"], *rows]))
        others = [b["name"] for b in backends if b["missing"]]
        lines.append(f"not here: {', '.join(others) or 'none'}; 'secateur backends' says why, and how to add them")
    install = document["install"]
    if install:
        lines += ["", "what is missing, and what adds it:"]
        lines += [f"  {PURPOSES.get(extra, extra)}: {line}" for extra, line in install.items()]
    if python["fault"]:
        lines.append(f"Python {python['version']} is {python['fault']}: Secateur needs {python['wanted']}")
    ill = [p.name for p in found if p.fault and p.extra == CORE] + (["Python"] if python["fault"] else [])
    return "\n".join([*lines, "", f"not usable: see {', '.join(ill)}" if ill else "all that the core needs is here"])


def _here(package: Package) -> str:
    return (
        f"{package.version} ({package.fault})"
        if package.version and package.fault
        else package.version or package.fault
    )
