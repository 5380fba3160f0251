"""What a budget in latency is worth in accuracy: ``--latency`` beside ``--macs`` at the same measured latency.

For each trained network: pruned to a share of its latency with calibration inputs, no training; and to a share of its
multiply-accumulates that is moved until the two files take the same time, measured side by side in one run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import accuracy_data
import child
import table

NETWORKS = ("digits_cnn", "digits_vit", "resnet20", "resnet56")
_LIMIT = 3600.0
_TRIES, _NEAR = 4, 0.015


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of trained models and data")
    parser.add_argument("--latency", type=float, default=0.5, help="share of the latency to leave (0.5)")
    parser.add_argument("--samples", type=int, default=512, help="calibration inputs (512)")
    parser.add_argument("--only", help="networks, separated by commas (all)")
    parser.add_argument("--cache", type=Path, default=table.CACHE)
    parser.add_argument("--results", type=Path, default=table.RESULTS)
    options = parser.parse_args()
    about = table.environment()
    folder = options.cache / "latency_accuracy"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in options.only.split(",") if options.only else NETWORKS:
        asked = {"data": str(options.data), "share": options.latency, "samples": options.samples}
        outcome = child.call("latency_accuracy:measured", _LIMIT, name=name, folder=str(folder), **asked)
        found[name] = {"error": outcome.error} if outcome.error else outcome.value
        table.say(f"{name}: {found[name]}")
    page = f"# Accuracy at half the latency\n\n{_page(found, options)}"
    whole = options.only is None
    table.publish("latency_accuracy", page, {"networks": found}, about, options.results if whole else folder)


def measured(name: str, data: str, share: float, samples: int, folder: str) -> dict[str, Any]:
    """Prune a network in both ways and judge them. To be called in a child."""
    from accuracy_runs import judge
    from latency import times

    from exporter import prune
    from exporter.latency.budget import Target, prune_to_latency
    from runtime.backends import SessionOptions
    from runtime.runners import Asked

    source, root = accuracy_data.NETWORKS[name].path(Path(data)), Path(data)
    feeds = accuracy_data.calibration(name, root, samples, 0)
    timed, counted = Path(folder) / f"{name}-latency.onnx", Path(folder) / f"{name}-macs.onnx"
    asked = Asked(options=SessionOptions(threads=1))
    options: dict[str, Any] = {"calib": feeds, "calib_samples": samples}
    result, _ = prune_to_latency(source, timed, Target(share=share), asked, **options)
    by_latency = {"macs": result.after.macs / result.before.macs, **judge(name, root, timed)}
    macs, tried = by_latency["macs"], 0
    while True:
        tried += 1
        result = prune(source, counted, macs=macs, **options)
        taken = {k: v["ratio"] for k, v in times(source, {"latency": timed, "macs": counted}, 20.0).items()}
        if tried == _TRIES or abs(taken["macs"] / taken["latency"] - 1) <= _NEAR:
            break
        macs *= taken["latency"] / taken["macs"]
    by_macs = {"macs": result.after.macs / result.before.macs, **judge(name, root, counted)}
    return {
        "latency": {**by_latency, "time": taken["latency"]},
        "macs": {**by_macs, "time": taken["macs"]},
        "tried": tried,
    }


def _page(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    rows = [["network", "dense", "budget", "time left", "MACs left", "pruned", "agreement", "output error"]]
    for name, row in found.items():
        label = accuracy_data.NETWORKS[name].title
        if "error" in row:
            rows.append([label, "", row["error"], *[""] * 5])
            continue
        for budget, text in (("latency", f"--latency {options.latency:g}x"), ("macs", "--macs, moved to that time")):
            cell = row[budget]
            rows.append([
                label, f"{100 * cell['dense']:.2f}", text, table.share(cell["time"]), table.share(cell["macs"]),
                f"{100 * cell['score']:.2f}", f"{100 * cell['agreement']:.1f}", f"{cell['output_error']:.4f}",
            ])  # fmt: skip
    return (
        f"{table.markdown(rows, right=(1, 3, 4, 5, 6, 7))}\n\nAccuracy and agreement with the dense network in %, "
        f"{options.samples} calibration inputs, no training. Time is CPU time of one thread, as a share of the dense "
        "network's, the three files of a network measured in one interleaved run."
    )


if __name__ == "__main__":
    main()
