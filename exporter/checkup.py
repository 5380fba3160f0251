"""What this installation has, and lacks: packages against what is required, by extra, and what the processor can do."""

from __future__ import annotations

import importlib.util
import platform
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

NAME = "secateur"
CORE = ""
"""What stands for 'no extra': everything needs these packages."""

PURPOSES = {
    CORE: "everything",
    "torch": "convert, tune, scores by gradients",
    "accelerate": "tune on several GPUs",
    "ray": "sweeps on several machines",
    "images": "folders of images as data",
    "tensorrt": "engines of TensorRT",
    "tensorrt-rtx": "engines of TensorRT for RTX",
    "test": "the tests",
    "lint": "style and types",
    "docs": "the site",
    "package": "wheels",
}
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
_MODULES = {"pyyaml": "yaml"}
"""Modules that are not called like their package."""


@dataclass(frozen=True)
class Package:
    """One requirement, and what is here.

    Attributes:
        name: as required.
        wanted: accepted versions (``>=1.26``); empty for any.
        extra: the extra that asks for it; ``CORE`` for none.
        version: what is installed; empty for nothing.
        fault: ``missing``, ``too old`` (or otherwise not as wanted), ``broken: ...`` or empty.
    """

    name: str
    wanted: str
    extra: str
    version: str
    fault: str


@dataclass(frozen=True)
class Declared:
    """What the project asks for.

    Attributes:
        python: accepted versions of Python.
        requirements: by extra, ``CORE`` first.
        folder: the source tree we run from; None where we are installed.
    """

    python: str
    requirements: Mapping[str, tuple[str, ...]]
    folder: Path | None


def declared() -> Declared:
    """Read the requirements of the source tree we run from, else those of the installed package."""
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == NAME:
            extras = {k: tuple(v) for k, v in project["optional-dependencies"].items()}
            return Declared(
                project["requires-python"], {CORE: tuple(project["dependencies"]), **extras}, _PROJECT.parent
            )
    about = metadata.metadata(NAME)
    found: dict[str, list[str]] = {name: [] for name in (CORE, *(about.get_all("Provides-Extra") or ()))}
    for line in metadata.requires(NAME) or ():
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        fits = [e for e in found if marker is None or marker.evaluate({"extra": e})]
        for extra in [CORE] if CORE in fits else fits:
            found[extra].append(str(requirement))
    return Declared(about["Requires-Python"] or "", {k: tuple(v) for k, v in found.items()}, None)


def python_fault(wanted: str) -> str:
    """Say ``too old`` where this Python is not among the accepted versions, else nothing."""
    return "" if SpecifierSet(wanted).contains(platform.python_version(), prereleases=True) else "too old"


def packages(wanted: Declared) -> list[Package]:
    """Every requirement with what is here; those of the core are imported too, which shows broken installations."""
    return [_package(Requirement(line), extra) for extra, lines in wanted.requirements.items() for line in lines]


def _package(wanted: Requirement, extra: str) -> Package:
    module = _MODULES.get(wanted.name.lower(), wanted.name.replace("-", "_"))
    version = _version(wanted.name)
    if not version:  # onnxruntime-gpu brings the module onnxruntime too
        others = metadata.packages_distributions().get(module, ()) if importlib.util.find_spec(module) else ()
        version = next(filter(None, map(_version, others)), "")
    if not version:
        return Package(wanted.name, str(wanted.specifier), extra, "", "missing")
    fault = "" if wanted.specifier.contains(version, prereleases=True) else "too old"
    if not fault and extra == CORE:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever it is that a broken package raises
            fault = f"broken: {type(error).__name__}: {error}"
    return Package(wanted.name, str(wanted.specifier), extra, version, fault)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def install_line(extra: str, where: Declared, found: Sequence[Package]) -> str:
    """The line that adds an extra, or repairs the core package by package.

    Args:
        extra: a key of ``PURPOSES``.
        where: what is declared, and the source tree, if we run from one.
        found: every requirement, with what is here.
    """
    if extra == CORE:
        wrong = [p for p in found if p.extra == CORE and p.fault]
        force = "--force-reinstall " if any(p.fault.startswith("broken") for p in wrong) else ""
        return f"pip install --upgrade {force}" + " ".join(f"'{p.name}{p.wanted}'" for p in wrong)
    return f"pip install '{NAME}[{extra}]'" if where.folder is None else f"pip install -e '{where.folder}[{extra}]'"


def instructions(known: Mapping[str, Any]) -> list[str]:
    """Vector instructions of the processor.

    Args:
        known: from ``runtime.environment``, which reads ``/proc/cpuinfo``; numpy is asked where there is none.
    """
    if known["instructions"]:
        return list(known["instructions"])
    try:
        import numpy as np

        found: Any = np.show_config(mode="dicts")
    except ImportError:
        return []
    simd = found.get("SIMD Extensions", {})
    return [str(f).lower() for f in (*simd.get("baseline", ()), *simd.get("found", ()))]
