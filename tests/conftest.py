"""For all tests: no cache of the user's, one thread for a session, and nothing that ONNX Runtime is too old for."""

from __future__ import annotations

import gc

import onnxruntime
import pytest

from tests.onnx_builder import refused


class _Threads:
    """What a session takes that does not say how many; 0: what ONNX Runtime thinks best.

    Tests open some 30,000 sessions of small models. Starting a second thread for each, which then waits by spinning,
    takes three times as long as the tests themselves.
    """

    number = 1


def _limit(make):
    def start(self, model, sess_options=None, *rest, **options):
        settings = sess_options or onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.intra_op_num_threads or _Threads.number
        make(self, model, settings, *rest, **options)

    return start


onnxruntime.InferenceSession.__init__ = _limit(onnxruntime.InferenceSession.__init__)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def all_threads(monkeypatch):
    """Sessions take as many threads as ONNX Runtime thinks best."""
    monkeypatch.setattr(_Threads, "number", 0)


@pytest.fixture(autouse=True)
def _all_threads_where_time_counts(request):
    if request.node.get_closest_marker("timing"):
        request.getfixturevalue("all_threads")


def pytest_collection_finish():
    """What is there now stays until the end: nobody need look for garbage among thousands of tests and models again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    """Skip a test that is given a model, or a row or case with one, which ONNX Runtime refused when it was built."""
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    for value in given:
        if reason := refused(value) or refused(getattr(value, "model", None)):
            pytest.skip(reason)
