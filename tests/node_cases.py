"""The onnx package's own node tests, collected once for all tests that run them."""

from __future__ import annotations

import functools
import warnings


@functools.cache
def node_cases():
    """All of them, as onnx makes them; this takes a while."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)
