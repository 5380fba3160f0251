"""How far timings can be trusted: the same model twice, and one made 3 % slower, judged by Secateur and in naive ways.

All methods judge the same two pairs in turn, on the same machine in the same minutes, one thread, and are given about
the same time. Every method answers with a ratio of times; a difference counts from one percent on. Secateur may also
say that it does not know. Also: what ``bench`` reports of a short model beside a hand-written loop.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import table
from onnx import helper, numpy_helper

SLOWER = 1.03
MARGIN = 0.01
_LONG = 10.0
_CLOSE = 0.003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=table.ROOT / "models" / "digits_cnn.onnx")
    parser.add_argument("--runs", type=int, default=20, help="judgements of each pair by each method (20)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of one judgement (2)")
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    options = parser.parse_args()
    about = table.environment()
    with tempfile.TemporaryDirectory() as scratch:
        slower, truth = _slower(options.model, Path(scratch))
        table.say(f"the slower model takes {truth:.4f} times as long")
        methods: dict[str, Callable[[Path, Path, float], tuple[float, str]]] = {
            "secateur compare, CPU time": _compare("cpu"),
            "secateur compare, wall time": _compare("wall"),
            "loop of runs, mean (as onnxruntime_perf_test)": _loop,
            "10 warm-ups, mean of 20 (as Olive)": _mean_of_20,
            "sequential medians": _medians,
        }
        found: dict[str, dict[str, list[tuple[float, str]]]] = {name: {"same": [], "slower": []} for name in methods}
        for number in range(options.runs):
            for name, judge in methods.items():
                for case, other in (("same", options.model), ("slower", slower)):
                    found[name][case].append(judge(options.model, other, options.seconds))
            table.say(f"{number + 1} of {options.runs}")
        tight = [_tight(options.model, Path(scratch)) for _ in range(5)]
    rows = [["method", "same model: right", "largest error", "slower: right", "error of the ratio (SD)"]]
    for name, cases in found.items():
        same = [abs(r - 1) < MARGIN or verdict == "inconclusive" for r, verdict in cases["same"]]
        late = [verdict == "slower" for _, verdict in cases["slower"]]
        errors = [r - 1 for r, _ in cases["same"]] + [r / truth - 1 for r, _ in cases["slower"]]
        worst = max(abs(r - 1) for r, _ in cases["same"])
        rows.append(
            [name, f"{sum(same)} of {len(same)}", f"{100 * worst:.1f} %", f"{sum(late)} of {len(late)}",
             f"{100 * float(np.std(errors)):.2f} %"]
        )  # fmt: skip
    ratio = statistics.median(tight)
    text = (
        f"# Repeatability\n\n`{options.model.name}` against itself, and against the same with extra work that takes "
        f"{100 * (truth - 1):.1f} % (measured for {_LONG:.0f} s); {options.runs} judgements of {options.seconds:g} s "
        f"by each method, in turn.\n\n{table.markdown(rows, right=(1, 2, 3, 4))}\n\n"
        f"A model of about 50 us: the median `bench` reports is {ratio:.3f} times that of a hand-written loop "
        f"(best of six loads of each; {min(tight):.3f} .. {max(tight):.3f} in five runs)."
    )
    table.publish("measurement", text, {"truth": truth, "found": found, "tight": tight}, about, options.results)


def _compare(clock: str) -> Callable[[Path, Path, float], tuple[float, str]]:
    def judge(first: Path, other: Path, seconds: float) -> tuple[float, str]:
        from runtime.backends import SessionOptions
        from runtime.comparison import compare_models
        from runtime.runners import Asked

        asked = Asked(options=SessionOptions(threads=1))
        found = compare_models(first, other, asked, seconds=2 * seconds, clock=clock, outputs=False)
        return found.ratio.value, found.verdict

    return judge


def _opened(path: Path) -> Callable[[], None]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in i.shape]).astype(np.float32)
        for i in session.get_inputs()
    }
    return lambda: session.run(None, feeds)


def _named(ratio: float) -> tuple[float, str]:
    verdict = "slower" if ratio >= 1 + MARGIN else "faster" if ratio <= 1 / (1 + MARGIN) else "same"
    return ratio, verdict


def _loop(first: Path, other: Path, seconds: float) -> tuple[float, str]:
    """Run one model for a time, then the other; the mean of each."""
    means = []
    for path in (first, other):
        run = _opened(path)
        run()
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            run()
            count += 1
        means.append((time.perf_counter() - started) / count)
    return _named(means[1] / means[0])


def _samples(path: Path, warm_ups: int, enough: Callable[[list[float], float], bool]) -> list[float]:
    run = _opened(path)
    for _ in range(warm_ups):
        run()
    taken: list[float] = []
    begun = time.perf_counter()
    while not enough(taken, time.perf_counter() - begun):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken


def _mean_of_20(first: Path, other: Path, _seconds: float) -> tuple[float, str]:
    means = [statistics.fmean(_samples(p, 10, lambda taken, _: len(taken) == 20)) for p in (first, other)]
    return _named(means[1] / means[0])


def _medians(first: Path, other: Path, seconds: float) -> tuple[float, str]:
    medians = [statistics.median(_samples(p, 2, lambda _, spent: spent > seconds)) for p in (first, other)]
    return _named(medians[1] / medians[0])


def _slower(path: Path, folder: Path) -> tuple[Path, float]:
    """The model with extra work that takes 3 % of its time, and how much it takes, measured at length."""
    target, width = folder / "slower.onnx", 1400
    tried: list[tuple[float, int, float]] = []
    for _ in range(4):
        _write_slower(path, target, width)
        ratio = _long_ratio(path, target)
        table.say(f"extra width {width}: {ratio:.4f}")
        tried.append((abs(ratio - SLOWER), width, ratio))
        if tried[-1][0] < _CLOSE:
            break
        width = max(int(width * float(np.clip((SLOWER - 1) / max(ratio - 1, 1e-4), 0.5, 2.0))), 64)
    _, width, ratio = min(tried)
    _write_slower(path, target, width)
    return target, ratio


def _long_ratio(first: Path, other: Path) -> float:
    from runtime.backends import SessionOptions
    from runtime.comparison import compare_models
    from runtime.runners import Asked

    asked = Asked(options=SessionOptions(threads=1))
    return compare_models(first, other, asked, seconds=_LONG, precision=1e-5, outputs=False).ratio.value


def _write_slower(path: Path, target: Path, width: int) -> None:
    """Add a matrix product of the first output, by zero, to it: the same outputs, more work."""
    model = onnx.load(path)
    name = model.graph.output[0].name
    size = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    for node in model.graph.node:
        for k, output in enumerate(node.output):
            if output == name:
                node.output[k] = "own"
    rng = np.random.default_rng(0)
    constants = {
        "extra.weight": rng.standard_normal((size, width)).astype(np.float32),
        "extra.zero": np.zeros((width, size), np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["own", "extra.weight"], ["extra.wide"]),
            helper.make_node("MatMul", ["extra.wide", "extra.zero"], ["extra.none"]),
            helper.make_node("Add", ["own", "extra.none"], [name]),
        ]
    )
    onnx.save(model, target)


def _tight(_model: Path, folder: Path) -> float:
    """What ``bench`` says of a model of about 50 microseconds, relative to a loop written by hand."""
    from runtime.latency import bench

    path = folder / "short.onnx"
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [64, 128]) for n in "xy"]
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "short", values[:1], values[1:], [weight]
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), path)
    ours, loop = [], []
    for _ in range(6):  # each with a load of its own: where the weights come to lie makes a tenth of so short a run
        ours.append(bench([path], threads=1, seconds=0.2)[0].median)
        loop.append(_by_hand(path, 0.2))
    return min(ours) / min(loop)


def _by_hand(path: Path, seconds: float) -> float:
    """Median of a loop written by hand."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32))
    binding.bind_output("y")
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
