"""What stands beside an engine: where it came from and what it needs, checked before it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from runtime import feeds
from runtime.cuda import Gpu
from runtime.engine.building import Built
from runtime.engine.configuring import write_bytes
from runtime.errors import RunError
from runtime.model_files import digest_of

FORMAT = 1


class StaleEngine(RunError):
    """An engine that does not fit its model, this TensorRT or this GPU any more."""

    exit_code = 3


def metadata_file(engine: Path) -> Path:
    """Where the description of an engine stands."""
    return engine.with_name(f"{engine.name}.json")


def describe(built: Built, source: Path, command: str, device: Gpu | None, **more: Any) -> dict[str, Any]:
    """The description of an engine, as JSON can hold it.

    Args:
        built: the engine.
        source: the ONNX file it came from.
        command: what builds it again.
        device: the GPU it was built on; None where there was none.
        more: further entries, such as the precision.
    """
    return {
        "format": FORMAT,
        "source": {"path": str(source.absolute()), "sha256": digest_of(source), "bytes": source.stat().st_size},
        "engine": {"sha256": hashlib.sha256(built.engine).hexdigest(), "bytes": len(built.engine)},
        "backend": built.flavour,
        "version": built.version,
        "device": vars(device) if device is not None else None,
        "flags": {
            "sparse": built.options.sparse,
            "workspace": built.options.workspace,
            "level": built.options.level,
            "version_compatible": built.options.version_compatible,
            "hardware": built.options.hardware,
            "refit": built.options.refit,
            "strip": built.options.strip,
            "capabilities": list(built.options.capabilities),
            "tf32": built.options.tf32,
        },
        "profiles": [{name: str(sizes) for name, sizes in ranges.items()} for ranges in built.profiles],
        "inputs": {spec.name: [str(spec.dtype), list(spec.shape)] for spec in built.inputs},
        "outputs": {spec.name: [str(spec.dtype), list(spec.shape)] for spec in built.outputs},
        "command": command,
        **more,
    }


def values_of(source: Path) -> dict[str, list[Any]]:
    """What integer inputs of an ONNX file may hold, as a description keeps it: below a limit, or one of some."""
    graph = onnx.load(source, load_external_data=False).graph
    return {name: [found.limit, list(found.choices)] for name, found in feeds.constraints(graph).items()}


def write_engine(target: Path, built: Built, description: Mapping[str, Any]) -> None:
    """Write an engine and its description; a reader sees neither half a file nor a description of another engine.

    Raises:
        OSError: the folder cannot be written.
    """
    beside = metadata_file(target)
    beside.unlink(missing_ok=True)  # it describes what is about to be replaced
    write_bytes(target, built.engine)
    write_bytes(beside, (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())


def read_description(engine: Path) -> dict[str, Any] | None:
    """The description beside an engine; None where there is none.

    Raises:
        StaleEngine: there is one, but it cannot be read.
    """
    file = metadata_file(engine)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StaleEngine(
            f"{file} cannot be read ({error}); build {engine} again, or remove the description."
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StaleEngine(f"{file} is of another version of Secateur; build {engine} again.")
    return document


def check_engine(engine: Path, data: bytes, backend: str, version: str, device: Gpu | None) -> dict[str, Any] | None:
    """Compare an engine with its description, its model, and what is to run it.

    Args:
        engine: its path.
        data: its bytes.
        backend: what is to run it.
        version: of the TensorRT that is to run it.
        device: the GPU that is to run it; None leaves it unchecked.

    Returns:
        The description; None where there is none, and so nothing to compare with.

    Raises:
        StaleEngine: something changed since it was built; the message ends with the command that builds it again.
    """
    known = read_description(engine)
    if known is None:
        return None
    try:
        reason = _changed(known, data, backend, version, device)
        command = str(known["command"])
    except (KeyError, TypeError, AttributeError) as error:
        raise StaleEngine(f"{metadata_file(engine)} is damaged (no {error}); build {engine} again.") from error
    if reason:
        raise StaleEngine(f"{engine} is stale: {reason}.\nBuild it again with: {command}")
    return known


def is_described(data: bytes, known: Mapping[str, Any]) -> bool:
    """Whether an engine's bytes are those its description was written for."""
    return bool(hashlib.sha256(data).hexdigest() == known["engine"]["sha256"])


def _changed(known: Mapping[str, Any], data: bytes, backend: str, version: str, device: Gpu | None) -> str:
    if not is_described(data, known):
        return "it is not the file its description was written for"
    if known["backend"] != backend:
        return f"it was built by {known['backend']}, not {backend} (run it with --backend {known['backend']})"
    source, flags = Path(known["source"]["path"]), known["flags"]
    if source.is_file() and os.access(source, os.R_OK) and digest_of(source) != known["source"]["sha256"]:
        return f"{source} has changed since"
    if known["version"] != version and not (
        flags["version_compatible"]
        and _major(version) == _major(known["version"])
        and _older(known["version"], version)
    ):
        return f"it was built by version {known['version']}, this is {version} (later ones: --version-compatible)"
    return _other_device(known, flags, device)


def _other_device(known: Mapping[str, Any], flags: Mapping[str, Any], device: Gpu | None) -> str:
    if device is None:
        return ""
    if known["backend"] == "tensorrt-rtx":
        targets = [str(c) for c in flags["capabilities"] if c != "current"]
        wanted = device.capability.replace(".", "")
        if targets and wanted not in {t.replace(".", "") for t in targets}:
            return f"it was built for compute capability {', '.join(targets)}, this GPU has {device.capability}"
        return ""
    built = known["device"]
    if built is None or built["name"] == device.name:
        return ""
    same = built["capability"] == device.capability
    if flags["hardware"] == "ampere+" or (flags["hardware"] == "same-capability" and same):
        return ""
    return f"it was built on {built['name']}, this is {device.name} (--hardware would allow others)"


def _major(version: str) -> str:
    return version.partition(".")[0]


def _older(one: str, other: str) -> bool:
    return _numbers(one) <= _numbers(other)


def _numbers(version: str) -> list[int]:
    return [int(p) if p.isdigit() else 0 for p in version.split(".")]
