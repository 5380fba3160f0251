"""What a long job says of itself: lines of text, which know how far it is where its steps are counted."""

from __future__ import annotations


class Count(str):
    """A line such as ``fitting layers, 3 of 20``, for whoever draws a bar: anyone else can print it as it is.

    Attributes:
        what: the step that is counted.
        done, total: how much of it is finished, and how much there is.
        unit: ``s`` where seconds are counted, ``B`` for bytes, "" for things.
        note: what else there is to say, such as the loss so far.
    """

    what: str
    done: float
    total: float
    unit: str
    note: str

    def __new__(cls, what: str, done: float, total: float, unit: str = "", note: str = "") -> Count:
        """Make the line.

        Args:
            what: the step that is counted.
            done, total: how much of it is finished, and how much there is.
            unit: of both.
            note: what else there is to say.
        """
        made = super().__new__(cls, f"{what}, {_amounts(done, total, unit)}{f' ({note})' if note else ''}")
        made.what, made.done, made.total, made.unit, made.note = what, done, total, unit, note
        return made

    @property
    def amounts(self) -> str:
        """How much of how much, in words."""
        return _amounts(self.done, self.total, self.unit)


def _amounts(done: float, total: float, unit: str) -> str:
    if unit != "B":
        return f"{done:.0f} of {total:.0f} {unit}".rstrip()
    scale, name = (1e9, "GB") if total >= 1e8 else (1e6, "MB")
    return f"{done / scale:.1f} of {total / scale:.1f} {name}"
