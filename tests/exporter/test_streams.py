"""What is written in blocks is in the file, in order, and hashed; whatever the disk says of it."""

from __future__ import annotations

import errno
import hashlib
import os

import numpy as np
import pytest

from exporter import streams
from exporter.streams import HashedStream

BLOCK = 1 << 13
DIRECT = getattr(os, "O_DIRECT", 0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "_BLOCK", BLOCK)


def parts(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]


def written(path, given):
    with path.open("wb", buffering=0) as file, HashedStream(file) as stream:
        for part in given:
            stream.write(part)
            part.fill(7)  # it is not needed any more
    return stream


SIZES = [
    (),
    (0,),
    (1,),
    (BLOCK,),
    (BLOCK, 1),
    (BLOCK - 1, 1),
    (BLOCK - 1, 2, 0, BLOCK),
    (4 * BLOCK,),
    (20 * BLOCK + 5,),
    (3, 9 * BLOCK, 100, 4096, 1),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_all_is_in_the_file(tmp_path, sizes):
    want = b"".join(part.tobytes() for part in parts(*sizes))
    stream = written(tmp_path / "f", parts(*sizes))
    assert (tmp_path / "f").read_bytes() == want
    assert stream.written == len(want)
    assert stream.hexdigest() == hashlib.sha256(want).hexdigest()


def test_padding_is_zeros(tmp_path):
    with (tmp_path / "f").open("wb", buffering=0) as file, HashedStream(file) as stream:
        stream.write(np.full(3, 5, np.uint8))
        stream.pad(0)
        stream.pad(5)
    assert (tmp_path / "f").read_bytes() == b"\5\5\5" + bytes(5)


def _failing(monkeypatch, wrong):
    """Let ``wrong(block, size)`` raise, or say how many bytes of a block are written, before it is."""
    write, sizes = os.write, []

    def instead(handle, block):
        taken = wrong(block, sum(sizes))
        sizes.append(write(handle, block[:taken]))
        return sizes[-1]

    monkeypatch.setattr("os.write", instead)


def _direct(handle):
    import fcntl

    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & DIRECT)


@pytest.mark.parametrize("begins", [0, 3 * BLOCK])
def test_a_disk_that_refuses_such_writes_gets_others(tmp_path, monkeypatch, begins):
    refused = []

    def wrong(block, before):
        if before >= begins and not refused:
            refused.append(len(block))
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(streams, "_past_the_cache", lambda file, on: on)
    _failing(monkeypatch, wrong)
    written(tmp_path / "f", parts(5 * BLOCK + 3))
    assert refused
    assert (tmp_path / "f").read_bytes() == parts(5 * BLOCK + 3)[0].tobytes()


def test_a_block_that_is_written_in_parts(tmp_path, monkeypatch):
    _failing(monkeypatch, lambda block, _: 1000)
    written(tmp_path / "f", parts(3 * BLOCK + 3))
    assert (tmp_path / "f").read_bytes() == parts(3 * BLOCK + 3)[0].tobytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("begins", [0, 6 * BLOCK])
@pytest.mark.parametrize("size", [7 * BLOCK, 40 * BLOCK])
def test_an_error_of_the_disk_is_told(tmp_path, monkeypatch, code, begins, size):
    def wrong(block, before):
        if before >= begins:
            raise OSError(code, os.strerror(code))

    _failing(monkeypatch, wrong)
    with pytest.raises(OSError, match=os.strerror(code)):
        written(tmp_path / "f", parts(size))


def test_an_error_of_the_caller_is_told_and_nothing_waits(tmp_path):
    with (tmp_path / "f").open("wb", buffering=0) as file:
        stream = HashedStream(file)
        with pytest.raises(ZeroDivisionError), stream:  # noqa: PT012
            stream.write(parts(3 * BLOCK)[0])
            raise ZeroDivisionError
        with pytest.raises(RuntimeError, match="after shutdown"):
            stream.write(parts(9 * BLOCK)[0])


def test_large_blocks_go_past_the_cache_and_the_rest_does_not(tmp_path, monkeypatch):
    with (tmp_path / "probe").open("wb", buffering=0) as file:
        if not streams._past_the_cache(file, True):
            pytest.skip("the disk takes no direct writes")
        assert _direct(file.fileno())
        assert not streams._past_the_cache(file, False)
        assert not _direct(file.fileno())
    seen, write = [], os.write
    monkeypatch.setattr("os.write", lambda handle, b: seen.append((_direct(handle), len(b))) or write(handle, b))
    written(tmp_path / "f", parts(2 * BLOCK + 3))
    assert seen == [(True, BLOCK), (True, BLOCK), (False, 3)]
