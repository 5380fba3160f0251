"""What mkdocs asks of us while it builds the site: the page of commands, from the command line's own parser."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def on_files(files: Any, config: Any) -> Any:
    """Add reference/commands.md: the help of every command."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def commands_page() -> str:
    """The page in Markdown."""
    os.environ["COLUMNS"] = "100"
    sys.path.insert(0, str(ROOT))
    from exporter.cli import parser

    top = parser()
    subs = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Commands\n\nWhat `secateur COMMAND --help` prints.\n"]
    for name, sub in subs.choices.items():
        parts.append(f"\n## {name}\n\n```text\n{sub.format_help()}```\n")
    return "".join(parts)
