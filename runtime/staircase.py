"""The staircase: how long convolutions and matrix products take against their width, measured on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runtime import clocks
from runtime.backends import SessionOptions, open_session
from runtime.cache import keep, read_cached
from runtime.engine.flavour import gpu_facts
from runtime.environment import fingerprint
from runtime.runners import bound
from runtime.sampling import best_clock, take
from runtime.steps import Count

WIDTHS: tuple[int, ...] = (
    *(8, 12, 14, 15, 16, 20, 24, 28, 30, 31, 32, 36, 40, 44, 46, 47, 48, 52, 56, 60, 62, 63, 64),
    *(72, 80, 88, 96, 112, 120, 124, 126, 127, 128),
)
KINDS = ("Conv", "depthwise Conv", "MatMul")
GPU_WIDTHS: tuple[int, ...] = (512, 516, 520, 524, 528, 536, 544, 560, 576, 608, 640)
"""A GPU is busy with wide layers only; and as each may take an engine of its own, there are fewer."""

_STEPS = (1, 2, 4, 8, 16, 32)
_SAVES = 0.5
_SECONDS = 12.0
_ROUNDS = 120


@dataclass(frozen=True)
class _Sizes:
    """Of the layers whose width is varied: batch, channels outside and side of the image; rows and columns."""

    batch: int
    outer: int
    image: int
    rows: int
    columns: int


_ON_CPU = _Sizes(1, 64, 20, 96, 256)
_ON_GPU = _Sizes(8, 256, 28, 4096, 1024)


@dataclass(frozen=True)
class Staircase:
    """Times by kind of layer and width.

    Attributes:
        backend, threads: how they were measured.
        curves: seconds by width, for each of ``KINDS``; the width is the inner one of two layers in a row.
        cached: whether they were read from the cache.
    """

    backend: str
    threads: int
    curves: Mapping[str, Mapping[int, float]]
    cached: bool = False

    @cached_property
    def _lines(self) -> dict[str, tuple[float, float]]:
        """For each kind, seconds at no width and for each unit, along the best widths: multiples of the widest step."""
        lines = {}
        for kind, curve in self.curves.items():
            best = sorted(w for w in curve if w % _STEPS[-1] == 0)
            slope, start = np.polyfit(best, [curve[w] for w in best], 1)
            lines[kind] = (max(float(start), 0.0), float(slope))
        return lines

    def penalty(self, kind: str, width: int) -> float:
        """How many times as long a width takes as the line through the best widths says; at least 1.

        A width that was not measured is judged by the nearest one that is divisible by the same power of two.
        """
        curve = self.curves[kind]
        if width not in curve:
            alike = [w for w in curve if math.gcd(w, _STEPS[-1]) == math.gcd(width, _STEPS[-1])] or list(curve)
            width = min(alike, key=lambda w: abs(w - width))
        start, slope = self._lines[kind]
        return max(curve[width] / (start + slope * width), 1.0)

    def step(self, kind: str) -> int:
        """Widths to aim at are multiples of this: the smallest step that saves what it should.

        Between an odd multiple of a step and the next multiple the time ought to grow along the line; on a finer grid
        than the kernels' own blocks it does not, or even falls.
        """
        curve, (_, slope) = self.curves[kind], self._lines[kind]
        for step in _STEPS:
            pairs = [(w, w + step) for w in curve if w % (2 * step) == step and w + step in curve]
            saved = [(curve[wide] - curve[narrow]) / (slope * step) for narrow, wide in pairs]
            if saved and float(np.median(saved)) >= _SAVES:
                return step
        return _STEPS[-1]


def staircase(
    backend: str = "ort-cpu",
    threads: int = 1,
    *,
    half: bool = False,
    fresh: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Staircase:
    """Measure the staircase of this machine, or read it from the cache.

    Args:
        backend: a name in ``runtime.backends.BACKENDS``.
        threads: threads inside one operator.
        half: of layers in fp16; a GPU's kernels differ.
        fresh: measure again, even if the cache has it.
        progress: called with a line before each step.

    Raises:
        BackendMissing: the backend is not installed.
    """
    gpu = gpu_facts(backend)
    widths, sizes = (GPU_WIDTHS, _ON_GPU) if gpu else (WIDTHS, _ON_CPU)
    more = (sizes, half, *gpu) if gpu else ()
    name = f"staircase-{fingerprint(backend, threads, widths, *more)}"
    known = read_cached(name) if not fresh else None
    curves = _read(known, widths) if known is not None else None
    if curves is not None:
        return Staircase(backend, threads, curves, cached=True)
    step = progress or (lambda _: None)
    measured = {}
    for kind in KINDS:
        step(f"measuring {kind}")
        measured[kind] = _curve(
            kind, backend, threads, widths, sizes, np.dtype(np.float16 if half else np.float32), step
        )
    keep(name, {"curves": {kind: {str(w): t for w, t in curve.items()} for kind, curve in measured.items()}})
    return Staircase(backend, threads, measured)


def _read(document: Mapping[str, Any], widths: Sequence[int]) -> dict[str, dict[int, float]] | None:
    try:
        curves = {kind: {int(w): float(t) for w, t in document["curves"][kind].items()} for kind in KINDS}
    except (KeyError, AttributeError, TypeError, ValueError):
        return None
    return curves if all(set(curve) == set(widths) for curve in curves.values()) else None


def _curve(
    kind: str,
    backend: str,
    threads: int,
    widths: Sequence[int],
    sizes: _Sizes,
    dtype: np.dtype[Any],
    step: Callable[[str], None],
) -> dict[int, float]:
    """Seconds by width. All widths are sampled in turn; the lower quartile leaves out moments that were disturbed."""
    rng = np.random.default_rng(0)
    calls = []
    for width in widths:
        model = _model(kind, width, sizes, dtype, rng)
        session = open_session(model.SerializeToString(), backend, SessionOptions(threads=threads))
        shape = [d for d in session.inputs[0].shape if isinstance(d, int)]
        calls.append(bound(session, {"x": rng.standard_normal(shape).astype(dtype)}))

    def tick(rows: int) -> None:
        step(Count(f"measuring {kind}, rounds", min(rows, _ROUNDS), _ROUNDS))

    taken = take(calls, _SECONDS, lambda wall, _: wall.shape[1] >= _ROUNDS, tick=tick)
    times = best_clock(taken, threads == 1 and backend == "ort-cpu")
    return dict(zip(widths, map(float, np.percentile(times, 25, axis=1)), strict=True))


def _model(kind: str, width: int, sizes: _Sizes, dtype: np.dtype[Any], rng: np.random.Generator) -> onnx.ModelProto:
    """Two layers (three with a depthwise one) whose inner width is ``width``."""
    constants: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int) -> str:
        constants[name] = (rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))).astype(dtype)
        return name

    if kind == "MatMul":
        shape = [sizes.rows, sizes.columns]
        nodes = [
            helper.make_node("MatMul", ["x", weight("a", sizes.columns, width)], ["h"]),
            helper.make_node("MatMul", ["h", weight("b", width, sizes.columns)], ["y"]),
        ]
    else:
        shape = [sizes.batch, sizes.outer, sizes.image, sizes.image]
        size = 1 if kind == "depthwise Conv" else 3
        pads: dict[str, Any] = {"pads": [size // 2] * 4}
        nodes = [helper.make_node("Conv", ["x", weight("a", width, sizes.outer, size, size)], ["h"], **pads)]
        nodes.append(helper.make_node("Relu", ["h"], ["i"]))
        if kind == "depthwise Conv":
            nodes.append(
                helper.make_node("Conv", ["i", weight("d", width, 1, 3, 3)], ["j"], group=width, pads=[1, 1, 1, 1])
            )
        last = "j" if kind == "depthwise Conv" else "i"
        nodes.append(helper.make_node("Conv", [last, weight("b", sizes.outer, width, size, size)], ["y"], **pads))
    kind_of = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        nodes,
        "staircase",
        [helper.make_tensor_value_info("x", kind_of, shape)],
        [helper.make_tensor_value_info("y", kind_of, None)],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def usual_threads(backend: str, threads: int) -> int:
    """Threads to take a staircase with: that of one thread shows the kernels' steps best where none are asked for."""
    return threads or (1 if backend == "ort-cpu" else clocks.processors())
