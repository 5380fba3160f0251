"""``secateur doctor``: what is required against what is here, on good and on ill machines."""

from __future__ import annotations

import importlib
import json
from email.message import Message
from importlib import metadata

import numpy as np
import pytest

from exporter import __version__, checkup
from exporter.cli import main


@pytest.fixture
def installed(monkeypatch):
    """Pretend other versions (None: not installed), by package."""
    real = metadata.version

    def pretend(versions):
        def version(name):
            found = versions.get(name, "") if name in versions else real(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def doctor(capsys):
    code = main(["doctor", "--json", "-"])
    return code, json.loads(capsys.readouterr().out)


def test_here(capsys):
    """The core is here, for these tests run; the text says so."""
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"secateur {__version__}, ")
    assert said.endswith("all that the core needs is here\n")
    assert metadata.version("numpy") in said
    assert "ort-cpu" in said


def test_json(capsys):
    code, document = doctor(capsys)
    assert (code, document["healthy"], document["version"]) == (0, True, 1)
    assert {p["name"] for p in document["packages"] if not p["extra"]} >= {"numpy", "onnx", "onnxruntime"}
    assert not [p for p in document["packages"] if not p["extra"] and p["fault"]]
    assert "ort-cpu" in {b["name"] for b in document["backends"] if not b["missing"]}
    assert document["environment"]["processors_usable"] >= 1


ILL = [
    ({"numpy": "1.25.2"}, "numpy", "too old", "pip install --upgrade 'numpy>=1.26'"),
    ({"onnx": "1.18.0"}, "onnx", "too old", "pip install --upgrade 'onnx>=1.19'"),
    ({"shtab": None}, "shtab", "missing", "pip install --upgrade 'shtab>=1.7'"),
    ({"onnxruntime": "1.9.0"}, "onnxruntime", "too old", "pip install --upgrade 'onnxruntime>=1.24'"),
]


@pytest.mark.parametrize(("versions", "name", "fault", "line"), ILL, ids=lambda v: v if isinstance(v, str) else "")
def test_the_core_is_ill(versions, name, fault, line, installed, capsys):
    installed(versions)
    code, document = doctor(capsys)
    assert (code, document["healthy"]) == (1, False)
    assert {p["name"]: p["fault"] for p in document["packages"] if not p["extra"] and p["fault"]} == {name: fault}
    assert document["install"][checkup.CORE] == line
    assert main(["doctor"]) == 1
    assert f"not usable: see {name}" in capsys.readouterr().out


@pytest.mark.parametrize("version", [None, "9.5.0"])
def test_an_extra_that_is_not_here_is_no_failure(version, installed, capsys):
    installed({"pillow": version})
    code, document = doctor(capsys)
    assert code == 0
    assert document["install"]["images"].endswith("[images]'")


def test_another_package_may_bring_the_module(installed, monkeypatch):
    installed({"onnxruntime": None, "onnxruntime-gpu": "1.24.0"})
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    found = next(p for p in checkup.packages(checkup.declared()) if p.name == "onnxruntime")
    assert (found.version, found.fault) == ("1.24.0", "")


def test_a_package_that_does_not_load(monkeypatch, capsys):
    real = importlib.import_module

    def load(name, *rest):
        if name == "threadpoolctl":
            raise OSError("wrong ELF class")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", load)
    code, document = doctor(capsys)
    assert code == 1
    assert {p["name"]: p["fault"] for p in document["packages"]}["threadpoolctl"] == "broken: OSError: wrong ELF class"
    assert document["install"][checkup.CORE] == "pip install --upgrade --force-reinstall 'threadpoolctl>=3.5'"


def test_an_old_python(monkeypatch, capsys):
    monkeypatch.setattr(checkup.platform, "python_version", lambda: "3.10.4")
    assert main(["doctor"]) == 1
    assert "Secateur needs >=3.11" in capsys.readouterr().out


def test_installed_without_its_source(monkeypatch, tmp_path):
    """Requirements then come from the package's metadata."""
    about = Message()
    about["Requires-Python"], about["Provides-Extra"] = ">=3.11", "dev"
    monkeypatch.setattr(checkup, "_PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(metadata, "metadata", lambda _: about)
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["numpy>=1.26", 'torch>=2.6; extra == "dev"', 'x; python_version < "3"']
    )
    found = checkup.declared()
    assert found.folder is None
    assert found.requirements[checkup.CORE] == ("numpy>=1.26",)
    assert found.requirements["dev"] == ("torch>=2.6",)
    assert checkup.install_line("dev", found, ()) == "pip install 'secateur[dev]'"


def test_every_extra_says_what_it_is_for():
    assert set(checkup.declared().requirements) == set(checkup.PURPOSES)


def test_instructions():
    assert checkup.instructions({"instructions": ["avx2"]}) == ["avx2"]
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    assert set(checkup.instructions({"instructions": []})) >= {f.lower() for f in simd.get("found", ())}
