"""TensorRT and TensorRT for RTX through one adapter: what the installed package can do is looked up, never assumed."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from runtime.cuda import need_gpu
from runtime.errors import BackendMissing, BadRequest
from runtime.gpu_state import BACKENDS

OLDEST = 10
"""The first major version of TensorRT whose networks can be strongly typed throughout."""


@dataclass(frozen=True)
class Package:
    """Where a flavour comes from.

    Attributes:
        module: what is imported.
        install: the line that adds it.
        device: what its engines run on.
        oldest: first major version supported.
    """

    module: str
    install: str
    device: str
    oldest: int = 0


PACKAGES = {
    "tensorrt": Package("tensorrt", "pip install tensorrt", "NVIDIA GPU", OLDEST),
    "tensorrt-rtx": Package("tensorrt_rtx", "pip install tensorrt-rtx-cu13", "NVIDIA RTX GPU (Ampere or newer)", 1),
}
"""By the name of the backend."""


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT.

    Attributes:
        name: of the backend, one of ``PACKAGES``.
        module: the imported package.
        version: of it.
    """

    name: str
    module: Any
    version: str

    def find(self, place: str) -> Any:
        """What stands under a dotted name in the package, ``BuilderFlag.REFIT``; None where this version lacks it."""
        found = self.module
        for part in place.split("."):
            found = getattr(found, part, None)
            if found is None:
                return None
        return found

    def need(self, place: str, option: str, instead: str = "leave the option out") -> Any:
        """As ``find``, for what an option asks for.

        Raises:
            BadRequest: this version lacks it; the message names the option and what to do instead.
        """
        found = self.find(place)
        if found is None:
            raise BadRequest(f"{option}: {self.title} has no {place}; {instead}.")
        return found

    @property
    def title(self) -> str:
        """Name and version, for messages and reports."""
        return f"{'TensorRT for RTX' if self.name == 'tensorrt-rtx' else 'TensorRT'} {self.version}"


def check_flavour(name: str) -> None:
    """Refuse a name that no flavour has, installed or not, with a BadRequest."""
    if name not in PACKAGES:
        raise BadRequest(f"--backend {name}: engines are built by {' or '.join(PACKAGES)}.")


def load_flavour(name: str) -> Flavour:
    """Import a flavour.

    Args:
        name: one of ``PACKAGES``.

    Raises:
        BadRequest: no such flavour.
        BackendMissing: it is not installed, does not load, or is too old.
    """
    check_flavour(name)
    package = PACKAGES[name]
    try:
        module = importlib.import_module(package.module)
    except ModuleNotFoundError as error:
        if error.name != package.module:
            raise BackendMissing(
                f"backend {name}: {package.module} lacks {error.name}: pip install {error.name}"
            ) from None
        raise BackendMissing(f"backend {name} needs the package {package.module}: {package.install}") from None
    except (ImportError, OSError, RuntimeError) as error:  # libraries that do not load
        raise BackendMissing(
            f"backend {name}: {package.module} is installed but does not load: {error}\n"
            f"Install it again: {package.install} --force-reinstall"
        ) from error
    version = str(getattr(module, "__version__", "") or "0")
    if int(version.partition(".")[0]) < package.oldest:
        raise BackendMissing(
            f"backend {name}: {package.module} {version} is too old, precision has to live in the ONNX file since "
            f"version {package.oldest}: {package.install} --upgrade"
        )
    return Flavour(name, module, version)


def capabilities(flavour: Flavour) -> tuple[str, ...]:
    """Compute capabilities, such as ``8.6``, that engines of a flavour run on; empty where it does not say."""
    kinds = flavour.find("ComputeCapability")
    found = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(kinds)) if kinds is not None else ()
    return tuple(sorted((f"{m[1]}.{m[2]}" for m in found if m), key=lambda text: [int(p) for p in text.split(".")]))


def installed(name: str) -> tuple[str, str]:
    """Version of a flavour and what is lacking; one of them is empty."""
    try:
        return f"{PACKAGES[name].module} {load_flavour(name).version}", ""
    except BackendMissing as error:
        return "", str(error).removeprefix(f"backend {name}: ").removeprefix(f"backend {name} ").splitlines()[0]


def gpu_facts(backend: str) -> tuple[object, ...]:
    """What tells measurements on one GPU from those on another; empty for backends that run on none of NVIDIA's.

    Raises:
        BackendMissing: there is no GPU, or TensorRT is not installed.
    """
    if backend not in BACKENDS:
        return ()
    return (need_gpu(), load_flavour(backend).version if backend in PACKAGES else "")
