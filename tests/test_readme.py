"""The README's commands run, in the order in which it gives them: all in minutes, the first of them in 'make test'."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from exporter.cli import main, parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIRST = 7
"""Commands until the first that fits weights to data."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands() -> list[str]:
    """Every ``$ secateur ...`` line, continuation lines joined."""
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    return [line[2:] for line in text.splitlines() if line.startswith("$ secateur")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands():
    assert len(commands()) >= 4


@pytest.mark.parametrize("command", commands())
def test_console_commands_parse(command):
    parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("count", [FIRST, pytest.param(None, marks=pytest.mark.slow)], ids=["first", "all"])
def test_console_commands_run(count, workplace, capsys):
    for command in commands()[:count]:
        if command.split()[1] in ("convert", "tune"):
            pytest.importorskip("torch", reason="torch is not installed")
        assert main(shlex.split(command)[1:]) == 0, command
        capsys.readouterr()


def test_python_examples_run(workplace):
    for block in blocks("python"):
        exec(compile(block, str(README), "exec"), {})
