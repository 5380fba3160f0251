"""Layouts: the strides they name are those numpy has, and what numpy would have to copy is refused."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.sparsity.layouts import stored

MOVES = {
    "joined": ((4, 6, 2), [("reshape", (24, 2))]),
    "divided": ((24, 2), [("reshape", (2, 3, 4, 2))]),
    "divided-and-joined": ((4, 6), [("reshape", (2, 12)), ("reshape", (8, 3))]),
    "ones": ((4, 6), [("reshape", (1, 4, 1, 6, 1)), ("reshape", (4, 6))]),
    "transposed": ((4, 6, 2), [("transpose", (2, 0, 1))]),
    "transposed-then-joined": ((4, 6, 2), [("transpose", (2, 0, 1)), ("reshape", (2, 24))]),
    "transposed-then-divided": ((4, 6), [("transpose", (1, 0)), ("reshape", (2, 3, 4))]),
    "back-again": ((4, 6), [("transpose", (1, 0)), ("reshape", (3, 2, 4)), ("reshape", (6, 4)), ("transpose", (1, 0))]),
}


@pytest.mark.parametrize(("dims", "moves"), MOVES.values(), ids=MOVES)
def test_strides_are_numpys(dims, moves):
    layout, array = stored(dims), np.arange(np.prod(dims)).reshape(dims)
    flat = array.reshape(-1)
    for kind, argument in moves:
        layout = layout.reshaped(argument) if kind == "reshape" else layout.transposed(argument)
        array = array.reshape(argument) if kind == "reshape" else array.transpose(argument)
        assert layout.dims == array.shape
        view = np.lib.stride_tricks.as_strided(flat, layout.dims, [8 * s for s in layout.strides])
        assert (view == array).all()


COPIES = {
    "joined-after-transpose": ((4, 6), (1, 0), (24,)),
    "crossed": ((4, 6), (1, 0), (8, 3)),
    "partly": ((4, 6, 2), (1, 0, 2), (24, 2)),
}


@pytest.mark.parametrize(("dims", "order", "after"), COPIES.values(), ids=COPIES)
def test_copies_are_refused(dims, order, after):
    assert stored(dims).transposed(order).reshaped(after) is None
