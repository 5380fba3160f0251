"""What the inspector of an engine shows: layers, formats, precisions, kernels, and sparse weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import RunError


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine, after fusion.

    Attributes:
        name: TensorRT's name.
        kind: of layer; empty where the engine was built without details.
        precision: of its first output: fp32, fp16, bf16, int8, fp8, int32, ...; empty where not said.
        formats: memory formats of its outputs, in TensorRT's words.
        tactic: name of the kernel.
        sparse: whether it uses a sparse kernel.
        nodes: nodes of the ONNX file it stands for.
    """

    name: str
    kind: str = ""
    precision: str = ""
    formats: tuple[str, ...] = ()
    tactic: str = ""
    sparse: bool = False
    nodes: tuple[str, ...] = ()


_PRECISIONS = (
    (r"bf16|bfloat", "bf16"),
    (r"fp8|e4m3|e5m2", "fp8"),
    (r"fp4|e2m1", "fp4"),
    (r"fp16|half|float16", "fp16"),
    (r"int8|i8\b", "int8"),
    (r"int4", "int4"),
    (r"int64", "int64"),
    (r"int32", "int32"),
    (r"bool", "bool"),
    (r"fp32|float", "fp32"),
)
_NODES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_SPARSE_KERNEL = re.compile(r"spars|_sp_|spgemm", re.IGNORECASE)


def layers_of(text: str) -> list[EngineLayer]:
    """Read what ``IEngineInspector.get_engine_information`` gives as JSON.

    Versions differ: layers are objects, or bare names where an engine was built without details; formats stand under
    ``Format/Datatype`` (8.x, 10.x) or ``Format`` and ``Datatype``.

    Raises:
        RunError: it is not such a text.
    """
    try:
        document = json.loads(text)
        entries = document["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the inspector's report cannot be read: {error}") from error
    return [_layer(entry) for entry in entries]


def _layer(entry: Any) -> EngineLayer:
    if not isinstance(entry, Mapping):
        return EngineLayer(str(entry))
    name, tactic = str(entry.get("Name", "")), str(entry.get("TacticName", "") or "")
    outputs = [o for o in entry.get("Outputs", ()) if isinstance(o, Mapping)]
    formats = tuple(" ".join(str(o[k]) for k in ("Format/Datatype", "Format", "Datatype") if o.get(k)) for o in outputs)
    weighs = entry.get("HasSparseWeights", 0)
    sparse = bool(_SPARSE_KERNEL.search(tactic)) if tactic else str(weighs).lower() in {"1", "true"}
    nodes = tuple(dict.fromkeys(_NODES.findall(str(entry.get("Metadata", "")))))
    kind = str(entry.get("LayerType", "") or entry.get("ParameterType", ""))
    return EngineLayer(
        name, kind, precision_of(formats[0]) if formats else "", formats, tactic, sparse, nodes or _own(name)
    )


def precision_of(text: str) -> str:
    """The type a format names, ``fp16`` for ``Channel major FP16 format``; empty where it names none."""
    return next((name for pattern, name in _PRECISIONS if re.search(pattern, text, re.IGNORECASE)), "")


def _own(name: str) -> tuple[str, ...]:
    """Nodes a fused layer is called after: ``conv1 + relu1``, without the parts TensorRT adds."""
    parts = [p.strip() for p in name.split(" + ")]
    return tuple(p for p in parts if p and not p.startswith(("(Unnamed", "Reformatting", "{ForeignNode", "__my")))


def precisions(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """How many layers give each type, the most frequent first."""
    counts: dict[str, int] = {}
    for layer in layers:
        if layer.precision:
            counts[layer.precision] = counts.get(layer.precision, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
