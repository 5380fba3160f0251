"""For all tests: nothing is looked for or left in the user's cache, and what ONNX Runtime is too old for is skipped."""

from __future__ import annotations

import pytest

from tests.onnx_builder import refused


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_runtest_setup(item):
    """Skip a test that is given a model, or a row or case with one, which ONNX Runtime refused when it was built."""
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    for value in given:
        if reason := refused(value) or refused(getattr(value, "model", None)):
            pytest.skip(reason)
