"""Export the networks of the survey: one file per exporter and opset. Every function is to be called in a child."""

from __future__ import annotations

import inspect
import json
import time
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from networks import Built

VARIANTS: dict[str, tuple[bool, int | None]] = {
    "dynamo": (True, None),
    "legacy-17": (False, 17),
    "legacy-20": (False, 20),
    "dynamo-17": (True, 17),
    "dynamo-23": (True, 23),
}
"""Variant: whether by torch's dynamo exporter (else the TorchScript one), and the opset, None for its default."""


def write(name: str, variants: list[str], folder: str) -> dict[str, Any]:
    """Build a network once and export it, unless that is done already.

    Returns:
        For each variant ``path``, ``opset``, ``static``: whether only a fixed batch could be exported, ``seconds``;
        or ``error``.
    """
    target = Path(folder)
    maker = _maker(name)
    found: dict[str, Any] = {}
    missing = []
    for variant in variants:
        facts = _facts(target, name, variant)
        known = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
        if known.get("maker") == maker and ("error" in known or Path(known["path"]).is_file()):
            found[variant] = known
        else:
            missing.append(variant)
    if not missing:
        return found
    import networks

    for variant in missing:
        built = networks.build(name)  # anew: an exporter may leave its marks on the modules
        path = target / f"{name.replace('/', '_')}_{variant}.onnx"
        found[variant] = {"maker": maker, **_export(built, variant, path)}
        _facts(target, name, variant).write_text(json.dumps(found[variant]), encoding="utf-8")
    return found


def _facts(folder: Path, name: str, variant: str) -> Path:
    return folder / f"{name.replace('/', '_')}_{variant}.json"


def _maker(name: str) -> str:
    """What an export depends on: the recipe of the network, this file's way of exporting, the libraries."""
    import networks

    source, _, _ = name.partition("/")
    library = {"own": (), "transformers": ("transformers",), "timm": ("timm",), "torchvision": ("torchvision",)}[source]
    versions = [f"{n} {metadata.version(n)}" for n in ("torch", "onnxscript", *library)]
    code = networks.recipe(name) + inspect.getsource(_export) + inspect.getsource(_call_exporter)
    return ", ".join([sha256(code.encode()).hexdigest()[:12], *versions])


def _export(built: Built, variant: str, path: Path) -> dict[str, Any]:
    """Export with a dynamic batch (and sequence), or with fixed sizes where the exporter cannot."""
    import child
    import onnx

    started = time.perf_counter()
    errors = []
    for static in (False, True):
        path.unlink(missing_ok=True)
        try:
            _call_exporter(built, *VARIANTS[variant], static=static, path=path)
            proto = onnx.load(path, load_external_data=False)
        except Exception as error:
            errors.append(child.first_line(error))
            continue
        opset = max(o.version for o in proto.opset_import if not o.domain)
        seconds = time.perf_counter() - started
        return {"path": str(path), "opset": opset, "static": errors[0] if static else "", "seconds": seconds}
    return {"error": errors[0]}


def _call_exporter(built: Built, dynamo: bool, opset: int | None, *, static: bool, path: Path) -> None:
    import torch

    options: dict[str, Any] = {"input_names": list(built.names), "output_names": ["output"], "verbose": False}
    if dynamo:
        options["external_data"] = False
    if opset is not None:
        options["opset_version"] = opset
    if not static and dynamo:
        ends = {"batch": (1, None), "sequence": (2, 512), "target": (2, 512)}
        dims = {n: torch.export.Dim(n, min=low, max=high) for n, (low, high) in ends.items()}
        shapes = tuple({k: dims[n] for k, n in axes.items()} for axes in built.axes)
        parameters = list(inspect.signature(built.model.forward).parameters.values())
        variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        options["dynamic_shapes"] = (shapes,) if variadic else shapes
    elif not static:
        options["dynamic_axes"] = dict(zip(built.names, built.axes, strict=True)) | {"output": {0: "batch"}}
    with torch.no_grad():
        torch.onnx.export(built.model, built.inputs, str(path), dynamo=dynamo, **options)
