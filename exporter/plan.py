"""The plan: which units each group keeps, and every edit that follows from it. Replayable, diffable, auditable.

A plan names tensors, axes and indices only, so it can be carried out, proved and audited without the analysis that made
it. ``schemas/plan.schema.json`` describes the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from exporter.atomic import write_text
from exporter.errors import UsageError
from runtime.model_files import near

FORMAT = "secateur-plan"
VERSION = 1
_MAKE = "Make one with: secateur prune MODEL -o OUT --save-plan P.json"


@dataclass(frozen=True)
class AxisTake:
    """Kept indices of one axis, ascending unless it is reordered, and its size before."""

    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class PlannedGroup:
    """What one group keeps.

    Attributes:
        name, kind, width: as in the analysis.
        keep: kept units, ascending.
        spans: every (tensor, axis) the group touches.
    """

    name: str
    kind: str
    width: int
    keep: tuple[int, ...]
    spans: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ConstantTake:
    """What becomes of a constant.

    Attributes:
        axes: kept indices by axis; empty for one that is not cut.
        values: new values, in its shape flattened, of an integer constant that counts slots (a Reshape target).
        clone_of: name of the constant this one is cut from, where uses of one constant part.
        uses: (node key, input index) of the uses that read a clone.
        removed: nothing reads it any more, because the branches that did are dropped.
    """

    axes: Mapping[int, AxisTake] = field(default_factory=dict)
    values: tuple[int, ...] | None = None
    clone_of: str | None = None
    uses: tuple[tuple[str, int], ...] = ()
    removed: bool = False


@dataclass(frozen=True)
class Drop:
    """A residual branch that goes: ``node`` no longer adds it, and whoever read the sum reads the other operand.

    Attributes:
        name: of the block.
        node: key of the node that adds the branch.
        input: which of its two inputs the branch is.
        keeps: the other one, or what takes its place; it takes the place of the sum.
        interface: graph inputs and outputs that go with the branch (its caches).
    """

    name: str
    node: str
    input: int
    keeps: str
    interface: tuple[str, ...] = ()


@dataclass(frozen=True)
class SizeEdit:
    """An attribute of a node that holds sizes, or an input it leaves out, and the new value.

    Attributes:
        node: key of the node (its first output).
        input: index of an input the file leaves out, or None.
        attribute: name of the attribute, or None.
        value: the new vector, or a number for a scalar attribute.
    """

    node: str
    input: int | None
    attribute: str | None
    value: tuple[int, ...] | int


@dataclass(frozen=True)
class GatherEdit:
    """Nodes that take from one axis, replaced by one Gather with these indices (into the cut source)."""

    nodes: tuple[str, ...]
    source: str
    result: str
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Fingerprint:
    """What tells one model from another.

    Attributes:
        file: name of the file the plan was made for.
        sha256: of that file.
        structure: of the normalised graph without its weights.
        shapes: concrete input shapes the plan was made and proved with.
    """

    file: str
    sha256: str
    structure: str
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """A complete plan.

    Attributes:
        model: the model it is for.
        options: how it was made, for the reader.
        notes: what the reader should know of the choice.
        groups: every group of the model, those kept whole included.
        take: every constant of the model, by its name in the pruned file.
        hide: kept indices of every cut activation, by tensor and axis.
        sizes: numbers outside constants that follow the cut.
        gathers: selections that follow the cut.
        io: axes of graph inputs and outputs that were allowed to shrink, by name.
        drop: residual branches that go. All else is of what they leave.
    """

    model: Fingerprint
    options: Mapping[str, Any]
    notes: tuple[str, ...]
    groups: tuple[PlannedGroup, ...]
    take: Mapping[str, ConstantTake]
    hide: Mapping[str, Mapping[int, AxisTake]]
    sizes: tuple[SizeEdit, ...]
    gathers: tuple[GatherEdit, ...]
    io: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    drop: tuple[Drop, ...] = ()

    def to_json(self) -> str:
        """The plan as JSON text; the same plan always gives the same text."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "model": {
                "file": self.model.file,
                "sha256": self.model.sha256,
                "structure": self.model.structure,
                "shapes": {k: list(v) for k, v in self.model.shapes.items()},
            },
            "options": dict(self.options),
            "io": {name: list(axes) for name, axes in self.io.items()},
            "notes": list(self.notes),
            "groups": [
                {
                    "name": g.name,
                    "kind": g.kind,
                    "width": g.width,
                    "keep": list(g.keep),
                    "spans": [list(s) for s in g.spans],
                }
                for g in self.groups
            ],
            "drop": [{**vars(d), "interface": list(d.interface)} for d in self.drop],
            "take": {name: _constant_to_json(t) for name, t in self.take.items()},
            "hide": {name: _axes_to_json(axes) for name, axes in self.hide.items()},
            "sizes": [_size_to_json(s) for s in self.sizes],
            "gathers": [
                {
                    "nodes": list(g.nodes),
                    "source": g.source,
                    "result": g.result,
                    "axis": g.axis,
                    "indices": list(g.indices),
                }
                for g in self.gathers
            ],
        }
        return _dump(document) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan atomically.

        Raises:
            UsageError: the path cannot be written.
        """
        try:
            write_text(Path(path), self.to_json())
        except OSError as error:
            raise UsageError(f"the plan cannot be written to {path}: {error.strerror}.") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan file.

        Raises:
            UsageError: no such file, not a plan, or a version this program does not know.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            meant = near(Path(path)) if isinstance(error, FileNotFoundError) else ""
            raise UsageError(f"the plan {path} cannot be read: {error.strerror or error}.{meant}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not a Secateur plan. {_MAKE}") from error
        return Plan.from_json(text, str(path))

    @staticmethod
    def from_json(text: str, name: str = "the plan") -> Plan:
        """Read a plan from JSON text. Plans are untrusted: every field is checked.

        Raises:
            UsageError: as for ``load``.
        """
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"{name} is not JSON: {error}.") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise UsageError(f"{name} is not a Secateur plan. {_MAKE}")
        if document.get("version") != VERSION:
            raise UsageError(
                f"{name} has plan version {document.get('version')}; this program reads version {VERSION}. "
                "Make the plan again with this version."
            )
        try:
            return _read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{name} is damaged: {type(error).__name__}: {error}.") from None


def _axes_to_json(axes: Mapping[int, AxisTake]) -> dict[str, Any]:
    return {str(k): {"of": a.size, "keep": list(a.keep)} for k, a in sorted(axes.items())}


def _constant_to_json(take: ConstantTake) -> dict[str, Any]:
    result: dict[str, Any] = {"axes": _axes_to_json(take.axes)}
    if take.removed:
        result["removed"] = True
    if take.values is not None:
        result["values"] = list(take.values)
    if take.clone_of is not None:
        result["clone_of"] = take.clone_of
        result["uses"] = [list(u) for u in take.uses]
    return result


def _size_to_json(size: SizeEdit) -> dict[str, Any]:
    result: dict[str, Any] = {"node": size.node}
    if size.attribute is not None:
        result["attribute"] = size.attribute
    else:
        result["input"] = size.input
    result["value"] = list(size.value) if isinstance(size.value, tuple) else size.value
    return result


def _dump(value: Any, depth: int = 0) -> str:
    """Indented JSON, with lists that hold no object or list on one line."""
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, Mapping) and value:
        items = [f"{json.dumps(k, ensure_ascii=False)}: {_dump(v, depth + 1)}" for k, v in value.items()]
        return "{" + inner + f",{inner}".join(items) + outer + "}"
    if isinstance(value, list) and any(isinstance(v, (list, Mapping)) for v in value):
        return "[" + inner + f",{inner}".join(_dump(v, depth + 1) for v in value) + outer + "]"
    return json.dumps(value, ensure_ascii=False)


def _read(document: dict[str, Any]) -> Plan:
    model = document["model"]
    return Plan(
        model=Fingerprint(
            _text(model["file"]),
            _text(model["sha256"]),
            _text(model["structure"]),
            {_text(k): _naturals(v) for k, v in _object(model["shapes"]).items()},
        ),
        options=dict(_object(document["options"])),
        notes=tuple(_text(n) for n in _list(document["notes"])),
        groups=tuple(_read_group(g) for g in _list(document["groups"])),
        take={name: _read_constant(t) for name, t in _object(document["take"]).items()},
        hide={name: _read_axes(axes) for name, axes in _object(document["hide"]).items()},
        sizes=tuple(_read_size(s) for s in _list(document["sizes"])),
        gathers=tuple(_read_gather(g) for g in _list(document["gathers"])),
        io={name: _naturals(axes) for name, axes in _object(document["io"]).items()},
        drop=tuple(_read_drop(d) for d in _list(document["drop"])),
    )


def _read_group(group: dict[str, Any]) -> PlannedGroup:
    width = _natural(group["width"])
    spans = tuple((_text(name), _natural(axis)) for name, axis in _list(group["spans"]))
    return PlannedGroup(_text(group["name"]), _text(group["kind"]), width, _kept(group["keep"], width), spans)


def _read_drop(drop: dict[str, Any]) -> Drop:
    names = tuple(_text(n) for n in _list(drop["interface"]))
    return Drop(_text(drop["name"]), _text(drop["node"]), _natural(drop["input"]), _text(drop["keeps"]), names)


def _read_constant(take: dict[str, Any]) -> ConstantTake:
    clone, values, removed = take.get("clone_of"), take.get("values"), take.get("removed", False)
    if not isinstance(removed, bool):
        raise ValueError(f"{removed!r} is neither true nor false")
    return ConstantTake(
        axes=_read_axes(take["axes"]),
        values=None if values is None else tuple(_int(v) for v in _list(values)),
        clone_of=None if clone is None else _text(clone),
        uses=tuple((_text(node), _natural(i)) for node, i in _list(take.get("uses", []))),
        removed=removed,
    )


def _read_axes(axes: dict[str, Any]) -> dict[int, AxisTake]:
    result = {}
    for key, take in _object(axes).items():
        size = _natural(take["of"])
        result[_natural(int(key))] = AxisTake(size, _kept(take["keep"], size))
    return result


def _read_size(size: dict[str, Any]) -> SizeEdit:
    value, attribute = size["value"], size.get("attribute")
    return SizeEdit(
        _text(size["node"]),
        None if attribute is not None else _natural(size["input"]),
        None if attribute is None else _text(attribute),
        tuple(_int(v) for v in value) if isinstance(value, list) else _int(value),
    )


def _read_gather(gather: dict[str, Any]) -> GatherEdit:
    nodes = tuple(_text(n) for n in _list(gather["nodes"]))
    indices = _naturals(gather["indices"])
    if not nodes or not indices:
        raise ValueError("a selection without nodes or indices")
    return GatherEdit(nodes, _text(gather["source"]), _text(gather["result"]), _natural(gather["axis"]), indices)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not an object")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _natural(value: Any) -> int:
    if _int(value) < 0:
        raise ValueError(f"{value} is negative")
    return int(value)


def _naturals(values: Any) -> tuple[int, ...]:
    return tuple(_natural(v) for v in _list(values))


def _kept(values: Any, size: int) -> tuple[int, ...]:
    kept = tuple(_int(v) for v in _list(values))
    if not kept or kept[0] < 0 or kept[-1] >= size or any(a >= b for a, b in pairwise(kept)):
        raise ValueError(f"kept indices must be ascending, within 0..{size - 1}, and not empty")
    return kept
