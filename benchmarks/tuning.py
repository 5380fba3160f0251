"""What scores are worth with and without training: ResNet-56 on CIFAR-10, pruned, then tuned for a limited time.

    python benchmarks/tuning.py --data DIR                        # every cell; what was done before is kept
    python benchmarks/tuning.py --data DIR --only calibrated@0.5  # one cell
    python benchmarks/tuning.py --data DIR --page                 # the table of what there is, nothing is run
    python benchmarks/tuning.py --data DIR --device cuda --jobs 12 --minutes 4 --batch 128 --lr 3e-4  # on a GPU
    python benchmarks/tuning.py --data DIR --steps 6000 --jobs 2  # calibrated alone, as long as that takes

A cell is pruned once and tuned once; both files stay in build/benchmarks/tuning, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accuracy_runs
import child
import table

NETWORK = "resnet56"
LIMIT = 20.0
"""Most minutes of a tune."""

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "l2"},
    "gradient": {"score": "gradient", "labels": True},
    "Taylor": {"score": "taylor", "labels": True},
    "learned L1": {"score": "l1-mask"},
    "learned L0": {"score": "l0-mask"},
    "calibrated": {},
}
"""Scores of ``prune``; all but magnitude are given calibration inputs, which the layers that stay are fitted to."""

BUDGETS = (0.5, 0.35)
"""Shares of the work whose rows are shown even where nothing was run."""

LONG = (0.47, 0.39)
"""Shares of the work with ``--steps``; DepGraph reports 93.77 and 93.64 % there, trained on all 50,000 images."""
TWO_ROUNDS = 0.4
"""Share below which a long tune starts from a model that was pruned in two rounds."""

SAMPLES = 512
FITTED, UNFITTED = 1e-4, 1e-3
"""Learning rates of models that layers were fitted in, which a large step would undo, and of those of magnitude."""

_LONG_RATE = 3e-4

_MOST_SECONDS = 12 * 3600.0
"""Of one command."""
_TIMED = {"cpu": 40, "cuda": 150}
"""Steps that are timed to find out how many there is time for."""

HEAD = """# Pruning, then training

ResNet-56 on CIFAR-10 (`cifar10_resnet56_dynamo`, 92.60 % on the 932 test images), pruned to a share of its
multiply-accumulates (`--align 1`) with {samples} training images (magnitude: none), then tuned on 7,728:
`secateur tune --teacher ORIGINAL --loss mse --augment flip,shift --batch {batch}`, lr {rate}, for so many steps as
the minutes shown allow (CPU time on a core, by the clock on a GPU), on {device}.
Gradient and Taylor were given labels to choose by. The step that does best on 772 images held out is taken.{chosen}
The standard error of an accuracy is 0.9 points; agreement with the original is steadier. "not
run" means that there was no time for it, not that it fails; "+" that a run was stopped, and the minutes before that are
not counted.
"""


LONG_HEAD = """# Pruning, then training for long

ResNet-56 on CIFAR-10 (`cifar10_resnet56_dynamo`, 92.60 % on the 932 test images), pruned by `--calib` to a share of its
multiply-accumulates (`--align 1`, 512 training images; below {rounds:g} in two rounds, `--steps 2`), then tuned on the
7,728 training images there are: `secateur tune --teacher ORIGINAL --loss mse --augment flip,shift,mix --hold 0.05
--batch {batch}`, lr {rate}, on {device}. Minutes are CPU time, on a GPU time by the clock.
The step that does best on the images held out is taken. The standard error of an accuracy is 0.9 points; agreement with
the original is steadier.
"""

_CHOSEN = f"""
The learning rate {FITTED:g} was chosen among three while test accuracies were seen."""


def command(*arguments: str) -> child.Usage:
    """Run ``secateur`` on one core."""
    path = os.pathsep.join([str(table.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    line = [sys.executable, "-m", "exporter", *arguments, "-q"]
    usage = child.run(line, _MOST_SECONDS, PYTHONPATH=path, **child.threads_limited("1"))
    if usage.status:
        raise SystemExit(f"secateur {' '.join(arguments)}: exit code {usage.status}\n{usage.output}")
    return usage


def prune(method: str, macs: float, data: Path, out: Path, rounds: int = 1) -> None:
    """Prune the network as a row asks."""
    asked = METHODS[method]
    arguments = ["prune", str(source(data)), "-o", str(out), "--macs", str(macs), "--align", "1"]
    if method != "magnitude":
        arguments += ["--calib", str(data / "cifar10_train.npz"), "--calib-samples", str(SAMPLES)]
    if rounds > 1:
        arguments += ["--steps", str(rounds)]
    if "score" in asked:
        arguments += ["--score", asked["score"]]
    if "labels" in asked:
        arguments += ["--labels", "y"]
    command(*arguments)


def source(data: Path) -> Path:
    """The dense file."""
    return data / "onnx" / "cifar10_resnet56_dynamo.onnx"


def tune(method: str, pruned: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tune for so many minutes, of CPU time or on a GPU by the clock; how many steps that is, is found by timing a
    few."""
    data, rate = options.data, options.lr or (UNFITTED if method == "magnitude" else FITTED)
    common = ["tune", str(pruned), "--data", str(data / "cifar10_train.npz"), "--teacher", str(source(data))]
    common += ["--loss", "mse", "--lr", str(rate), "--batch", str(options.batch), "--device", options.device]
    common += ["--augment", "flip,shift,mix", "--hold", "0.05"] if options.steps else ["--augment", "flip,shift"]
    clock, timed = ("cpu", "wall")[options.device == "cuda"], _TIMED[options.device]
    steps_file, report = out.with_suffix(".steps"), out.with_suffix(".json")
    if options.steps:
        steps_file.write_text(str(options.steps))
    if not steps_file.is_file():  # the same number after a kill, or the checkpoint would be of another run
        scratch = out.with_suffix(".timing.onnx")
        runs = [command(*common, "--steps", str(n), "-o", str(scratch)) for n in (1, 1 + timed)]
        spent = [getattr(usage, clock) for usage in runs]
        scratch.unlink()
        a_step = (spent[1] - spent[0]) / timed
        found = max(int((0.85 * 60 * options.minutes - spent[0]) / a_step / 1.05), 1)  # judging and noise take the rest
        steps_file.write_text(str(found))
    steps = int(steps_file.read_text())
    checkpoint = out.with_suffix(".pt")
    usage = command(
        *common, "--steps", str(steps), "-o", str(out), "--checkpoint", str(checkpoint), "--json", str(report)
    )
    document = json.loads(report.read_text())
    return {
        "steps": steps,
        "best_step": document["best_step"],
        "minutes": getattr(usage, clock) / 60,
        "lr": rate,
        "batch": options.batch,
        "device": _gpu_name() if options.device == "cuda" else "one core",
        "beside": options.jobs - 1,
        "resumed": document["resumed_from"],
    }


def page(
    cells: dict[str, dict[str, Any]], methods: list[str], budgets: tuple[float, ...], shown: tuple[float, ...]
) -> list[list[str]]:
    """The table of what there is, with a row for each of ``shown`` even where nothing was run."""
    rows = [["score", "MACs left", "before", "agreement", "tuned", "agreement", "minutes", "steps"]]
    for method in methods:
        for macs in budgets:
            cell = cells.get(f"{method}@{macs:g}", {})
            if not cell and macs not in shown:
                continue
            before, after, how = (cell.get(k) for k in ("before", "after", "tuning"))
            rows.append(
                [
                    method,
                    table.share(before["macs_left"]) if before else f"{table.share(macs)} asked",
                    *_figures(before),
                    *_figures(after),
                    f"{how['minutes']:.1f}{'+' * bool(how['resumed'])}" if how else "-",
                    str(how["steps"]) if how else "-",
                ]
            )
    return rows


def _figures(found: dict[str, Any] | None) -> list[str]:
    return [f"{100 * found['score']:.2f}", f"{100 * found['agreement']:.2f}"] if found else ["not run", "-"]


def macs_left(pruned: Path, data: Path) -> float:
    """Share of the multiply-accumulates."""
    from exporter import find_groups, load
    from exporter.cost import CostModel

    costs = [CostModel(find_groups(load(file))) for file in (pruned, source(data))]
    work = [c.macs(c.widths) for c in costs]
    return float(work[0] / work[1])


def run_cell(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Prune, judge, tune and judge again, as far as that is not done; what is known lies in a file after every step."""
    method, _, macs = name.partition("@")
    stem = folder / name.replace(" ", "-")
    state = Path(f"{stem}.cell.json")
    cell = json.loads(state.read_text()) if state.is_file() else {}
    pruned, tuned = Path(f"{stem}.pruned.onnx"), Path(f"{stem}.tuned.onnx")
    started = time.perf_counter()
    if "before" not in cell:
        if not pruned.is_file():
            prune(method, float(macs), options.data, pruned, 2 if options.steps and float(macs) < TWO_ROUNDS else 1)
        cell["before"] = {
            "macs_left": macs_left(pruned, options.data),
            **accuracy_runs.judge(NETWORK, options.data, pruned),
        }
        state.write_text(json.dumps(cell))
        table.say(f"{name}: {100 * cell['before']['score']:.2f} % before ({time.perf_counter() - started:.0f} s)")
    if "after" not in cell and not options.without_tuning:
        cell["tuning"] = tune(method, pruned, tuned, options)
        cell["after"] = accuracy_runs.judge(NETWORK, options.data, tuned)
        state.write_text(json.dumps(cell))
        table.say(f"{name}: {100 * cell['after']['score']:.2f} % tuned ({time.perf_counter() - started:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", action="append", default=[], metavar="METHOD@MACS", help="cells; repeatable")
    parser.add_argument("--budgets", metavar="S,...", help="shares of the work to leave (.5,.35; with --steps .47,.39)")
    parser.add_argument(
        "--minutes", type=float, default=LIMIT, metavar="N", help="of a tune: CPU time, by the clock on a GPU (20)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of a long tune of calibrated models, instead of --minutes"
    )
    parser.add_argument("--device", default="cpu", choices=sorted(_TIMED), help="to tune on (cpu)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images in a step (64)")
    parser.add_argument("--lr", type=float, metavar="R", help=f"learning rate of all ({FITTED:g}, {UNFITTED:g})")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (1)")
    parser.add_argument("--without-tuning", action="store_true", help="prune and judge alone")
    parser.add_argument("--page", action="store_true", help="write the table of what there is")
    parser.add_argument("--results", type=Path, default=table.RESULTS, metavar="DIR")
    options = parser.parse_args()
    about = table.environment()
    title = "tuning" + "-long" * bool(options.steps) + f"-{options.device}" * (options.device != "cpu")
    options.lr = options.lr or (_LONG_RATE if options.steps else None)
    folder = table.CACHE / title
    folder.mkdir(parents=True, exist_ok=True)
    usual = LONG if options.steps else BUDGETS
    budgets = tuple(map(float, options.budgets.split(","))) if options.budgets else usual
    methods = ["calibrated"] if options.steps else list(METHODS)
    wanted = [f"{m}@{b:g}" for m in methods for b in budgets]
    unknown = [name for name in options.only if name not in wanted]
    if unknown:
        parser.error(f"--only {unknown[0]}: choose from {', '.join(wanted)}")
    if not 0 < options.minutes <= LIMIT:
        parser.error(f"--minutes: above 0, at most {LIMIT:g}")
    with ThreadPoolExecutor(options.jobs) as pool:
        names = () if options.page else options.only or wanted
        for done in [pool.submit(run_cell, name, folder, options) for name in names]:
            done.result()
    cells = {
        f.name.removesuffix(".cell.json").replace("-", " "): json.loads(f.read_text())
        for f in folder.glob("*.cell.json")
    }
    rows = page(cells, methods, budgets, usual)
    text = f"{_head([c['tuning'] for c in cells.values() if 'tuning' in c], bool(options.steps))}\n"
    table.publish(
        title, text + table.markdown(rows, right=(1, 2, 3, 4, 5, 6, 7)), {"cells": cells}, about, options.results
    )


def _head(tunings: list[dict[str, Any]], long: bool) -> str:
    """What was done, by what the cells say."""
    devices, rates, batches = (
        sorted({t.get(key, default) for t in tunings})
        for key, default in (("device", "one core"), ("lr", FITTED), ("batch", 64))
    )
    beside = max((t.get("beside", 0) for t in tunings), default=0)
    return (LONG_HEAD if long else HEAD).format(
        samples=SAMPLES,
        rounds=TWO_ROUNDS,
        batch=" or ".join(map(str, batches)),
        rate=" or ".join(f"{r:g}" for r in rates),
        chosen=_CHOSEN if FITTED in rates else "",
        device=" or ".join(devices) + (f", up to {beside + 1} cells at a time" if beside else ""),
    )


def _gpu_name() -> str:
    from runtime.cuda import gpu

    found = gpu()
    return found.name if found else "a GPU"


if __name__ == "__main__":
    main()
