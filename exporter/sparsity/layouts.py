"""How a layer sees a constant behind transposes and reshapes: sizes, and steps through the constant as it is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A view of a stored array that covers it once.

    Attributes:
        dims: sizes of the axes.
        strides: for each axis, the distance in elements between neighbours.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]

    def transposed(self, order: Sequence[int]) -> Layout:
        """The axes in another order."""
        return Layout(tuple(self.dims[k] for k in order), tuple(self.strides[k] for k in order))

    def reshaped(self, dims: Sequence[int]) -> Layout | None:
        """The same elements, in the same order, with other sizes; None where no strides describe that.

        Axes next to each other that are stored as one are joined, and the joined ones are divided anew.
        """
        runs: list[list[int]] = []  # size, step of the last
        for size, stride in zip(self.dims, self.strides, strict=True):
            if size == 1:
                continue
            if runs and runs[-1][1] == stride * size:
                runs[-1] = [runs[-1][0] * size, stride]
            else:
                runs.append([size, stride])
        strides = [1] * len(dims)
        left = [k for k in range(len(dims)) if dims[k] != 1]
        for size, stride in reversed(runs):
            step, last = stride, stride * size
            while step < last:
                if not left or last % (step * dims[left[-1]]):
                    return None
                k = left.pop()
                strides[k] = step
                step *= dims[k]
        return None if left else Layout(tuple(dims), tuple(strides))


def stored(dims: Sequence[int]) -> Layout:
    """The layout of an array as it is stored: the last axis runs fastest."""
    return Layout(tuple(dims), tuple(math.prod(dims[k + 1 :]) for k in range(len(dims))))
