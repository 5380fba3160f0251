"""Outputs that are a dictionary for each sample, as exporters of classifiers write them (ZipMap): taken as arrays.

The columns of such an array are the dictionaries' keys in their order. So whatever reads outputs gets numbers, and only
what reads labels has to know of the keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime.errors import RunError
from runtime.model_files import without_data

Keys = tuple[int | str, ...]

_DOMAIN = "ai.onnx.ml"
_ATTRIBUTES = ("classlabels_int64s", "classlabels_strings")
_KIND = re.compile(r"seq\(map\((?:int64|string),tensor\((\w+)\)\)\)")


def numbers_in(kind: str) -> str:
    """The type of the numbers in a sequence of dictionaries, as ONNX Runtime calls both; empty for another type."""
    found = _KIND.fullmatch(kind)
    return found[1] if found else ""


def number_type(kind: onnx.TypeProto) -> int:
    """The same of a type as a file declares it, by ONNX's number; 0 for another type."""
    if not kind.HasField("sequence_type") or not kind.sequence_type.elem_type.HasField("map_type"):
        return 0
    return kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type


def keys_of(graph: onnx.GraphProto) -> dict[str, Keys]:
    """The keys of each output that is a dictionary for each sample, in order."""
    outputs = {value.name for value in graph.output}
    found: dict[str, Keys] = {}
    for node in graph.node:
        if node.op_type == "ZipMap" and node.domain == _DOMAIN and node.output and node.output[0] in outputs:
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name in _ATTRIBUTES}
            keys: Sequence[int | bytes] = next((given[name] for name in _ATTRIBUTES if given.get(name)), [])
            found[node.output[0]] = _in_order({k.decode(errors="replace") if isinstance(k, bytes) else k for k in keys})
    return found


def keys_in(model: Path | bytes) -> dict[str, Keys]:
    """``keys_of`` a file or its bytes; empty where these are no ONNX model."""
    loaded = without_data(model)
    return keys_of(loaded.graph) if loaded is not None else {}


def as_array(rows: Sequence[Mapping[int | str, float]], keys: Keys, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Dictionaries as an array [N, keys].

    Raises:
        RunError: one has other keys.
    """
    keys = keys or _in_order(rows[0] if rows else ())
    if any(len(row) != len(keys) or any(key not in row for key in keys) for row in rows):
        raise RunError(f"an output's dictionaries do not all have the keys {', '.join(map(str, keys))}.")
    return np.array([[row[key] for key in keys] for row in rows], dtype).reshape(len(rows), len(keys))


def _in_order(keys: Iterable[int | str]) -> Keys:
    return tuple(sorted(keys, key=lambda key: (isinstance(key, str), key)))
