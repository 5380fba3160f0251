"""How many threads linear algebra takes: one for small matrices, where more only wait for each other in loops."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_LARGE = 1536
"""Columns from which on all threads are taken. Measured with OpenBLAS on two cores: at 576 columns two threads take
two to eight times the processor time of one and longer by the clock, at 2304 they are faster."""


def threads_for(columns: int) -> AbstractContextManager[object]:
    """A context in which linear algebra on matrices with so many columns takes as many threads as it is worth.

    Args:
        columns: of the largest matrix.
    """
    return nullcontext() if columns >= _LARGE else _controller().limit(limits=1, user_api="blas")


@lru_cache
def _controller() -> ThreadpoolController:
    import numpy  # noqa: F401  # the libraries are looked for once, so this one has to be there
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
