"""The documentation is true: commands and examples run, links lead somewhere, pictures are those of the script."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from exporter.cli import main, parser
from tests.console_blocks import blocks, untrue

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(p.relative_to(DOCS)): p.read_text(encoding="utf-8") for p in sorted(DOCS.rglob("*.md"))}
SLOW = {"quickstart.md", "budget.md", "calibration.md", "tensorrt.md", "pays.md", "examples/cnn.md", "examples/vit.md"}
SLOW |= {"examples/bert.md", "examples/audio.md", "convert.md", "sparsity.md", "quantization.md", "measuring.md"}


def commands(text: str) -> list[str]:
    """Every ``$`` line of the console blocks."""
    return [block.command for block in blocks(text)]


WITH_COMMANDS = [name for name, text in PAGES.items() if commands(text)]


@pytest.mark.parametrize(
    "page", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in WITH_COMMANDS]
)
def test_commands_run(page, tmp_path, monkeypatch, capsys):
    """And print what the page shows."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    for block in blocks(PAGES[page]):
        program, *arguments = shlex.split(block.command)
        if program == "secateur":
            assert main(arguments) == 0, block.command
        else:
            assert program == "python", block.command
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
            assert list(tmp_path.glob("*.onnx")), "it writes what it made"
        said = capsys.readouterr().out
        assert not untrue(block.shown, said), f"{block.command} prints:\n{said}"


def test_there_are_commands_on_the_pages_that_need_them():
    assert {"quickstart.md", "budget.md", "calibration.md", "tensorrt.md", "pays.md"} <= set(WITH_COMMANDS)
    assert len([name for name in WITH_COMMANDS if name.startswith("examples/")]) == 6


@pytest.mark.parametrize("page", [name for name in PAGES if name.startswith("examples/")])
def test_each_example_shows_its_script(page):
    """A formatter once took the line for Python, and the site showed that instead."""
    script = page.replace(".md", ".py")
    assert f'```python\n--8<-- "{script}"\n```' in PAGES[page]
    assert (DOCS / script).is_file()


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_parse(page):
    for command in commands(PAGES[page]):
        program, *arguments = shlex.split(command)
        if program == "secateur":
            parser().parse_args(arguments)
        else:
            assert (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)\)", PAGES[page]):
        assert (DOCS / page).parent.joinpath(target).is_file(), target
    for snippet in re.findall(r'--8<-- "([^"]+)"', PAGES[page]):
        assert (DOCS / snippet).is_file(), snippet


def test_every_page_is_in_the_menu():
    menu = (DOCS / "theme" / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:\n  - Secateur")[2]
    assert not [page for page in PAGES if page not in menu]


def test_pictures_are_those_of_the_script():
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert set(pictures.PICTURES) == {p.stem for p in (DOCS / "pictures").glob("*.svg")}
    for name, draw in pictures.PICTURES.items():
        assert (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8") == draw(), "run: python docs/pictures.py"


def test_the_workflow_and_the_hooks_are_commands():
    steps = yaml.safe_load((DOCS / "examples" / "latency-gate.yml").read_text())["jobs"]["gate"]["steps"]
    lines = [s["run"] for s in steps if s.get("run", "").startswith("secateur")]
    assert lines
    assert "--fail-if-slower" in lines[0]
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    lines.extend(f"{hook['entry']} file" for hook in hooks)
    for line in lines:
        parser().parse_args(shlex.split(line)[1:])
