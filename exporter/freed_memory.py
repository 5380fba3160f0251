"""Keep the memory of arrays that are gone for the next ones: new memory costs a page fault for every 4 KiB."""

from __future__ import annotations

import numpy as np

_LARGEST = 31 << 20
"""Bytes; glibc learns from no block above 32 MiB."""


def keep() -> None:
    """Let the C library keep up to 62 MiB of freed memory in each thread, where it is glibc; others do as they do.

    It maps blocks above 128 KiB one by one and gives them back at once, until one of them is freed: it then keeps what
    is as large (mallopt(3), M_MMAP_THRESHOLD, "dynamic").
    """
    np.empty(_LARGEST, np.uint8)
