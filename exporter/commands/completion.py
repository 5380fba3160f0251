"""``secateur completion``: a script that lets a shell complete commands, options, files and names."""

from __future__ import annotations

import argparse
from typing import Any

from exporter.commands.console import say
from exporter.commands.options import command

SHELLS = ("bash", "zsh", "fish")
_INSTALL = """To switch it on in new shells:
  bash:  secateur completion bash > ~/.local/share/bash-completion/completions/secateur
  zsh:   secateur completion zsh > ~/.zfunc/_secateur     (a folder of $fpath; then: autoload -U compinit && compinit)
  fish:  secateur completion fish > ~/.config/fish/completions/secateur.fish
In this bash only: eval "$(secateur completion bash)"
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "completion", run, "Print a script for a shell's completion with Tab.")
    parser.epilog = _INSTALL
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" or ".join(SHELLS))


def run(options: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    import shtab

    _describe_values(options.top)
    say(shtab.complete(options.top, shell=options.shell))
    return 0


def _describe_values(top: argparse.ArgumentParser) -> None:
    """Say of every option and argument what can stand there: a file, or one of some names."""
    import shtab

    from exporter.importance import SCORERS
    from exporter.quantization.precisions import METHODS, PRECISIONS, PROFILES
    from exporter.recipes.keys import READS, WRITES
    from exporter.score_names import CALIBRATED, LEARNED
    from runtime.backends import available
    from runtime.metrics import METRICS

    backends = tuple(available())
    names: dict[object, tuple[str, ...]] = {
        "backend": backends,
        "backend_b": backends,
        ("prune", "device"): backends,
        ("advise", "device"): backends,
        "score": (*SCORERS, *CALIBRATED, *LEARNED),
        "metric": tuple(METRICS),
        ("quantize", "precision"): tuple(PRECISIONS),
        ("quantize", "profile"): PROFILES,
        ("quantize", "method"): METHODS,
    }
    parsers = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices
    for command_name, parser in parsers.items():
        for action in parser._actions:
            known = names.get((command_name, action.dest)) or names.get(action.dest)
            if known and action.choices is None:
                action.choices = known
            elif action.dest in READS | WRITES | {"output", "recipe"}:
                action.complete = shtab.FILE
