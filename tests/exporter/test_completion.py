"""``secateur completion``: scripts for three shells; bash completes commands, options, names and files."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from exporter.cli import main, parser


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_is_in_it(shell, capsys):
    text = script(shell, capsys)
    names = next(a for a in parser()._actions if a.dest == "==SUPPRESS==" or a.choices).choices
    assert len(names) > 15
    assert not [n for n in names if n not in text]
    assert "--max-drop" in text or "max-drop" in text


TYPED = {
    "a command": ("secateur pru", {"prune"}),
    "an option": ("secateur prune --sc", {"--score", "--scope"}),
    "a name": ("secateur prune --score tay", {"taylor"}),
    "a backend": ("secateur bench --backend ort-cp", {"ort-cpu"}),
    "a precision of one command": ("secateur quantize --precision int4", {"int4-weight"}),
    "a model": ("secateur inspect mod", {"model.onnx"}),
    "data": ("secateur prune model.onnx --calib dat", {"data.npz"}),
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(capsys, tmp_path):
    for name in ("model.onnx", "data.npz"):
        (tmp_path / name).touch()
    (tmp_path / "secateur.bash").write_text(script("bash", capsys))
    ask = 'COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); COMPREPLY=(); _shtab_secateur; echo "${COMPREPLY[@]}"'
    lines = ["source ./secateur.bash", *(ask % typed for typed, _ in TYPED.values())]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60
    )
    found = [set(line.split()) for line in done.stdout.split("\n")]
    assert dict(zip(TYPED, found, strict=False)) == {what: names for what, (_, names) in TYPED.items()}
