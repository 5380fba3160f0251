"""Write a sparse model: as a patched copy, dense, or with sparse initializers where these pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter import tensors
from exporter.errors import UsageError
from exporter.graph import Graph
from exporter.model_file import finished, save
from exporter.sparsity.patching import patch
from exporter.sparsity.storage import obstacle as cannot_hold
from exporter.sparsity.storage import same_outputs, store_sparse
from exporter.tensors import Array
from runtime.nouns import counted


@dataclass(frozen=True)
class Written:
    """What became of the file: its size, whether all else is as it was, and how many constants are stored sparse."""

    size: int | None
    unchanged: bool
    sparse: int
    notes: tuple[str, ...] = ()


def write(
    graph: Graph,
    values: Mapping[str, Array],
    names: Sequence[str],
    target: Path | None,
    storage: str,
    *,
    patching: bool,
) -> Written:
    """Write new values, if that is wanted; the graph is not to be used any more."""
    if target is None:
        return Written(None, False, 0)
    try:
        if storage == "dense" and patching:
            size = patch(graph, values, target)
            if size is not None:
                return Written(size, True, 0)
        for name, array in values.items():
            tensors.assign(graph.constants[name], array)
        if storage == "dense":
            return Written(save(graph, target), False, 0)
        return _write_sparse(graph, set(names), target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}.") from error


def _write_sparse(graph: Graph, names: set[str], target: Path) -> Written:
    """Write with sparse initializers if that makes the file smaller and ONNX Runtime gives the same outputs."""
    why = cannot_hold(graph)
    if why:
        return Written(save(graph, target), False, 0, (f"stored dense: {why}",))
    found = Written(None, False, 0)

    def judge(dense: Path) -> None:
        nonlocal found
        found = _made_sparse(graph, names, dense)

    size = save(graph, target, judge=judge)
    return found if found.sparse else replace(found, size=size)


def _made_sparse(graph: Graph, names: set[str], file: Path) -> Written:
    """Put the sparse model in the place of the dense one, which has passed onnx's checker, if it does as well."""
    dense = finished(graph).SerializeToString()
    stored = store_sparse(graph, names)
    if not stored:
        return Written(None, False, 0, ("stored dense: no weight has zeros enough for sparse storage to pay",))
    sparse = finished(graph).SerializeToString(deterministic=True)
    if not same_outputs(graph, dense, sparse):
        return Written(None, False, 0, ("stored dense: ONNX Runtime gives other outputs for the sparse file",))
    file.write_bytes(sparse)
    are = counted(len(stored), "weight is a sparse initializer", "weights are sparse initializers")
    note = f"{are}; ONNX Runtime gives the same outputs, other tools may not"
    return Written(len(sparse), False, len(stored), (note,))
