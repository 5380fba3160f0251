"""The plan: which units each group keeps, and every edit that follows from it. Replayable, diffable, auditable.

A plan names tensors, axes and indices only, so it can be carried out, proved and audited without the analysis that made
it. ``schemas/plan.schema.json`` describes the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from exporter.errors import UsageError

FORMAT = "secateur-plan"
VERSION = 1


@dataclass(frozen=True)
class AxisTake:
    """Kept indices of one axis, ascending, and its size before."""

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
        axes: kept indices by axis; empty for one that stays as it is.
        clone_of: name of the constant this one is cut from, where uses of one constant part.
        uses: (node key, input index) of the uses that read a clone.
    """

    axes: Mapping[int, AxisTake] = field(default_factory=dict)
    clone_of: str | None = None
    uses: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class SizeEdit:
    """A constant input or an attribute of a node that holds sizes, and its new value.

    Attributes:
        node: key of the node (its first output).
        input: index of the input, or None.
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
        sizes: numbers in the file that follow the cut.
        gathers: selections that follow the cut.
    """

    model: Fingerprint
    options: Mapping[str, Any]
    notes: tuple[str, ...]
    groups: tuple[PlannedGroup, ...]
    take: Mapping[str, ConstantTake]
    hide: Mapping[str, Mapping[int, AxisTake]]
    sizes: tuple[SizeEdit, ...]
    gathers: tuple[GatherEdit, ...]

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
        return _dump(document)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan atomically.

        Raises:
            UsageError: the path cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            temporary.write_text(self.to_json(), encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise UsageError(f"the plan cannot be written to {target}: {error.strerror}.") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan file.

        Raises:
            UsageError: no such file, not a plan, or a version this program does not know.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the plan {path} cannot be read: {error}.") from error
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
            raise UsageError(
                f"{name} is not a Secateur plan. Make one with: secateur prune MODEL -o OUT --save-plan P.json"
            )
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


def _dump(document: Mapping[str, Any]) -> str:
    """Indented JSON with short lists, of numbers or of a name and a number, on one line."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s*(-?\d+(?:,\s*-?\d+)*)\s*\]", lambda m: "[" + re.sub(r"\s+", "", m.group(1)) + "]", text)
    return re.sub(r'\[\s*("(?:[^"\\]|\\.)*"),\s*(\d+)\s*\]', r"[\1, \2]", text) + "\n"


def _read(document: dict[str, Any]) -> Plan:
    model = document["model"]
    return Plan(
        model=Fingerprint(
            str(model["file"]),
            str(model["sha256"]),
            str(model["structure"]),
            {str(k): _ints(v) for k, v in model["shapes"].items()},
        ),
        options=dict(document["options"]),
        notes=tuple(str(n) for n in document["notes"]),
        groups=tuple(_read_group(g) for g in document["groups"]),
        take={str(name): _read_constant(t) for name, t in document["take"].items()},
        hide={str(name): _read_axes(axes) for name, axes in document["hide"].items()},
        sizes=tuple(_read_size(s) for s in document["sizes"]),
        gathers=tuple(
            GatherEdit(
                tuple(str(n) for n in g["nodes"]),
                str(g["source"]),
                str(g["result"]),
                _int(g["axis"]),
                _ints(g["indices"]),
            )
            for g in document["gathers"]
        ),
    )


def _read_group(group: dict[str, Any]) -> PlannedGroup:
    width = _int(group["width"])
    return PlannedGroup(
        str(group["name"]),
        str(group["kind"]),
        width,
        _kept(group["keep"], width),
        tuple((str(name), _int(axis)) for name, axis in group["spans"]),
    )


def _read_constant(take: dict[str, Any]) -> ConstantTake:
    clone = take.get("clone_of")
    uses = tuple((str(node), _int(i)) for node, i in take.get("uses", []))
    return ConstantTake(_read_axes(take["axes"]), None if clone is None else str(clone), uses)


def _read_axes(axes: dict[str, Any]) -> dict[int, AxisTake]:
    return {int(k): AxisTake(_int(a["of"]), _kept(a["keep"], _int(a["of"]))) for k, a in axes.items()}


def _read_size(size: dict[str, Any]) -> SizeEdit:
    value = size["value"]
    attribute = size.get("attribute")
    return SizeEdit(
        str(size["node"]),
        None if attribute is not None else _int(size["input"]),
        None if attribute is None else str(attribute),
        _ints(value) if isinstance(value, list) else _int(value),
    )


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _ints(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is not a list")
    return tuple(_int(v) for v in values)


def _kept(values: Any, size: int) -> tuple[int, ...]:
    kept = _ints(values)
    if not kept or kept[0] < 0 or kept[-1] >= size or any(a >= b for a, b in pairwise(kept)):
        raise ValueError(f"kept indices must be ascending, within 0..{size - 1}, and not empty")
    return kept
