"""Weights of a large model, one at a time: chosen, looked at with other eyes and described when the file asks for them.

Nothing of a weight is kept but its row in the report, so a file of any size needs the memory of its largest tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from exporter.sparsity.check import Checked, Checker
from exporter.sparsity.layers import Weight
from exporter.tensors import Array

Row = TypeVar("Row")


class Stream(Mapping[str, Array], Generic[Row]):
    """New values of weights by name, made anew whenever they are asked for.

    Attributes:
        rows: the report of each weight that was asked for.
        seen: names of the weights that the check looked at.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        choose: Callable[[Weight], Array],
        describe: Callable[[Weight, Array], Row],
        checker: Checker | None,
        judge: Callable[[Sequence[Checked]], set[str]],
    ) -> None:
        """Args:
        weights: those that get the pattern.
        choose: makes the new values of one.
        describe: makes its row in the report.
        checker: looks at the layers that read it; None where there is no pattern to look for.
        judge: raises if a layer breaks the pattern; returns the names of the constants that were looked at.
        """
        self._weights = {w.name: w for w in weights}
        self._choose, self._describe, self._checker, self._judge = choose, describe, checker, judge
        self.rows: dict[str, Row] = {}
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Array:
        weight = self._weights[name]
        values = self._choose(weight)
        if self._checker is not None:
            self.seen |= self._judge(list(self._checker.rows(_Others(self, name, values), about=name)))
        self.rows[name] = self._describe(weight, values)
        return values

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def expect_all(self) -> None:
        """Raise an AssertionError if a weight was not asked for: the file lacks its values then."""
        assert self.rows.keys() == self._weights.keys(), sorted(self._weights.keys() - self.rows.keys())

    def chosen(self, name: str) -> Array:
        """New values alone, without check and report."""
        return self._choose(self._weights[name])


class _Others(Mapping[str, Array]):
    """The values of one weight, and those of others where a layer's weight is made of several."""

    def __init__(self, stream: Stream[Row], name: str, values: Array) -> None:
        self._stream, self._name, self._values = stream, name, values

    def __getitem__(self, name: str) -> Array:
        return self._values if name == self._name else self._stream.chosen(name)

    def __contains__(self, name: object) -> bool:
        return name in self._stream

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def __len__(self) -> int:
        return len(self._stream)
