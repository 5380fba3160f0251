"""Memory that a run may take: what is free, and what happens beyond."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import bounds

MEMORY = "MemTotal:  24000000 kB\nMemAvailable:  8000000 kB\nSwapFree:   1000000 kB\nHugePages_Total:   0\n"
GROUP = {
    "memory.max": f"{6 << 30}\n",
    "memory.current": f"{4 << 30}\n",
    "memory.stat": f"anon 5\ninactive_file {1 << 30}\n",
}
FREE = {
    "machine": (MEMORY, {}, 9_000_000 << 10),
    "container": (MEMORY, GROUP, 3 << 30),
    "container without a limit": (MEMORY, {**GROUP, "memory.max": "max\n"}, 9_000_000 << 10),
    "hardly any": ("MemAvailable: 5 kB\n", {}, 1 << 30),
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_free(name, tmp_path, monkeypatch):
    said, group, free = FREE[name]
    for file, text in {"meminfo": said, **group}.items():
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(bounds, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(bounds, "_GROUP", tmp_path)
    assert bounds.available() == free


def test_a_system_that_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "_MEMORY", tmp_path / "meminfo")
    assert bounds.available() is None
    with bounds.memory(None):
        assert np.ones(10).sum() == 10


def test_beyond_the_limit_nothing_is_given():
    with bounds.memory(1 << 28), pytest.raises(MemoryError):
        np.ones(1 << 27)
    assert np.ones(1 << 20).sum() == 1 << 20
