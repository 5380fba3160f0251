"""One row per operator: a small graph around it, and the groups the analysis must find."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import ModelProto


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        name: id of the test.
        covers: the operators the row stands for.
        model: the graph.
        widths: width of every group that must be found, sorted.
        frozen: a reason that must be reported (part of its text), for what stays on purpose.
        io: inputs and outputs that may shrink, as ``find_groups`` takes them.
        inner: the proof compares inner tensors, because the outputs do not show the cut or are whole numbers.
    """

    name: str
    covers: tuple[str, ...]
    model: ModelProto = field(repr=False)
    widths: tuple[int, ...]
    frozen: str = ""
    inner: bool = False
    io: tuple[str, ...] = ()
