"""What derived classes are made of, down to units: products are looked up for all layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.partitions import unique_rows, with_rows
from exporter.slots import Ids, Product

_MAX_DEPTH = 16


def expand(products: Sequence[Product], root: Ids, frozen: NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """Units of every class.

    Args:
        products: where several describe a class, the first counts.
        root: class of every slot, shape (slots,).
        frozen: classes that stay, of which nothing is made, shape (slots,).

    Returns:
        The units, shape (slots, k), padded with -1, and classes on a cycle of products, of which no unit is the end.
    """
    n = len(root)
    classes, rows = _factor_rows(products, root)
    factors = np.full((n, rows.shape[1]), -1, np.int64)
    derived = np.zeros(n + 1, bool)  # the last for the padding
    factors[classes] = rows
    derived[classes] = True
    parts = np.arange(n, dtype=np.int64)[:, None]
    parts[frozen] = -1
    open_ = np.flatnonzero(derived[parts[:, 0]])
    for _ in range(_MAX_DEPTH):
        if not open_.size:
            break
        old = parts[open_]
        here = derived[old]
        wide = np.where(here[:, :, None], factors[old], -1).reshape(len(old), -1)
        wide[frozen[wide]] = -1
        rows = unique_rows(wide if here.all() else np.concatenate([np.where(here, -1, old), wide], 1))
        parts = with_rows(parts, open_, rows)
        open_ = open_[derived[rows].any(1)]
    return parts, open_


def _factor_rows(products: Sequence[Product], root: Ids) -> tuple[Ids, Ids]:
    """Flat classes of all products, the last product first, and the factor classes of each, padded with -1.

    Shapes (positions,) and (positions, factors). Who writes them into a table in this order is left with the first
    product of every class. Products of equal sizes, as alike layers have them, are looked up together.
    """
    products = products[::-1]
    width = max((len(p.factors) for p in products), default=1)
    if not products:
        return np.empty(0, np.int64), np.empty((0, width), np.int64)
    classes = root[np.concatenate([p.flat for p in products])]
    ends = np.cumsum([p.flat.size for p in products])
    rows = np.full((classes.size, width), -1, np.int64)
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, product in enumerate(products):
        alike.setdefault(tuple(f.size for f in product.factors), []).append(number)
    for sizes, numbers in alike.items():
        grid = np.indices(sizes, np.int64).reshape(len(sizes), -1)
        places = ends[numbers, None] - grid.shape[1] + np.arange(grid.shape[1])
        for k, digits in enumerate(grid):
            rows[places, k] = root[np.stack([products[n].factors[k] for n in numbers])][:, digits]
    return classes, rows
