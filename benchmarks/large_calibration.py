"""Memory and time of ``prune --calib`` on a Llama-like model with a billion parameters, and what it takes after a kill.

    python benchmarks/large_calibration.py                       # 1.3 B parameters, fp16, 32 samples of 32 tokens
    python benchmarks/large_calibration.py --layers 4 --hidden 1024 --inner 2816 --heads 16 --vocabulary 8000

The model is written to a temporary folder (2.5 GB, and as much again for the result) and is random, so the figures say
nothing about accuracy. Peak memory is that of the process, mapped pages that were touched included, for each stretch of
the calculation. With ``--kill N`` a first run is killed once N layers are fitted, and what is measured goes on from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import child
import table

from runtime.nouns import counted

_SECONDS = 4 * 3600
SHAPE = {"layers": 22, "hidden": 2048, "inner": 5632, "heads": 32, "vocabulary": 32000}


def make(folder: str, samples: int, tokens: int, shape: dict[str, int]) -> dict[str, Any]:
    """Write the model and its inputs. To be called in a child."""
    import numpy as np
    from large_model import write

    wanted, done = json.dumps([tokens, shape]), Path(folder) / "shape.json"
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        write(Path(folder) / "llama.onnx", sequence=tokens, **shape)
        done.write_text(wanted, encoding="utf-8")
    size = sum(file.stat().st_size for file in Path(folder).glob("llama.*"))
    ids = np.random.default_rng(0).integers(0, shape["vocabulary"], (samples, tokens))
    np.savez(Path(folder) / "ids.npz", ids=ids)
    return {"bytes": size}


def calibrated(
    folder: str, macs: float, granularity: str, only: list[str], prove: bool, kill: int = 0
) -> dict[str, Any]:
    """Prune and fit; for each stretch its seconds and the peak memory. To be called in a child.

    Args:
        folder: of the model and its inputs.
        macs: share of the multiply-accumulates to leave.
        granularity: kinds of groups to cut.
        only: what to cut alone; empty for all.
        prove: whether the rewrite is proved.
        kill: end at once when so many layers are fitted; 0: never.
    """
    from exporter import prune
    from runtime.steps import Count

    stretches: list[dict[str, Any]] = []
    told = Path(folder) / "stretches.json"
    os.environ["SECATEUR_CACHE"] = str(Path(folder) / "cache")

    def note(line: str) -> None:
        if isinstance(line, Count) and line.what.startswith("fitting the layers") and kill and line.done >= kill:
            os.kill(os.getpid(), signal.SIGKILL)
        what = line.what if isinstance(line, Count) else line
        if stretches:
            stretches[-1] |= {"seconds": time.perf_counter() - stretches[-1]["start"]}
            stretches[-1]["peak"] = max(stretches[-1]["peak"], _peak())
        if not stretches or stretches[-1]["what"] != what:
            stretches.append({"what": what, "start": time.perf_counter(), "seconds": 0.0, "peak": 0})
        told.write_text(json.dumps(stretches, indent=1), encoding="utf-8")  # for whoever waits

    result = prune(
        Path(folder) / "llama.onnx",
        Path(folder) / "out.onnx",
        macs=macs,
        granularity=granularity.split(","),
        only=only,
        calib=str(Path(folder) / "ids.npz"),
        cache=True,
        prove=prove,
        progress=note,
    )
    note("")
    fidelity = result.fidelity
    return {
        "stretches": [s for s in stretches if s["what"]],
        "parameters": result.before.parameters,
        "fitted": sum(r.damping is not None for r in fidelity.refits) if fidelity else 0,
        "error": [fidelity.plain, fidelity.error] if fidelity else [],
        "warnings": list(result.warnings),
    }


def _peak() -> int:
    """Most bytes resident since the last call."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return 1024 * found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="of each sample")
    parser.add_argument("--macs", type=float, default=0.8, help="share of the multiply-accumulates to leave")
    parser.add_argument("--granularity", default="neurons", help="kinds of groups to cut")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cut this alone, as for prune")
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="kill a first run after N fitted layers")
    parser.add_argument("--no-verify", action="store_true", help="as for prune: small fp16 models fail by rounding")
    parser.add_argument("--folder", type=Path, help="where the model is written, and kept")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    about = table.environment()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        shape = {name: getattr(options, name) for name in SHAPE}
        made = child.call(
            "large_calibration:make",
            _SECONDS,
            folder=str(folder),
            samples=options.samples,
            tokens=options.tokens,
            shape=shape,
        )
        if made.error:
            raise SystemExit(made.error)
        arguments = {
            "folder": str(folder),
            "macs": options.macs,
            "granularity": options.granularity,
            "only": options.only,
            "prove": not options.no_verify,
        }
        runs = []
        for kill in [options.kill, 0] if options.kill else [0]:
            found = child.call("large_calibration:calibrated", _SECONDS, **arguments, kill=kill)
            table.say(f"{found.usage.cpu:.0f} CPU-seconds, {found.usage.wall:.0f} s, {found.error or 'done'}")
            if found.error and not kill:
                raise SystemExit(found.error)
            runs.append({"cpu": found.usage.cpu, "wall": found.usage.wall, **found.value})
            if kill and not found.error:
                table.say(f"there were no {kill} layers to fit: nothing was killed")
                break
    data = {
        "shape": shape,
        "only": options.only,
        "options": {k: str(v) for k, v in vars(options).items()},
        **made.value,
        "runs": runs,
    }
    table.publish("large_calibration", page(data), data, about, options.results)


def page(data: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    last, first = data["runs"][-1], data["runs"][0]
    peak = max(s["peak"] for s in last["stretches"])
    options = data["options"]
    asked = " ".join(
        [f"--macs {options['macs']} --granularity {options['granularity']}", *(f"--only '{g}'" for g in data["only"])]
    )
    rows = [["step", "seconds", "peak memory, GB"]]
    for what in dict.fromkeys(s["what"] for s in last["stretches"]):
        parts = [s for s in last["stretches"] if s["what"] == what]
        rows.append([what, f"{sum(s['seconds'] for s in parts):.0f}", f"{max(s['peak'] for s in parts) / 1e9:.2f}"])
    lines = [
        "# Calibration of a large model",
        "",
        f"{last['parameters'] / 1e6:,.0f} M parameters in fp16, {data['bytes'] / 1e9:.2f} GB; {options['samples']} "
        f"samples of {options['tokens']} tokens; `{asked} --calib`, "
        f"{child.THREADS} threads. {counted(last['fitted'], 'layer')} fitted; peak memory {peak / 1e9:.2f} GB, "
        f"{peak / data['bytes']:.2f} of the file; {last['cpu']:.0f} CPU-seconds, {last['wall']:.0f} s.",
        "",
        table.markdown(rows, right=(1, 2)),
    ]
    if len(data["runs"]) > 1:
        went_on = next(w for w in last["warnings"] if "interrupted" in w)
        lines += [
            "",
            f"A first run was killed after {first['cpu']:.0f} CPU-seconds ({first['wall']:.0f} s); {went_on}.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
