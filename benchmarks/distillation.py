"""A small language model pruned to a share of its work, then distilled from the original on text that this one wrote.

    python benchmarks/distillation.py --data DIR [--macs 0.7] [--rows 384] [--steps 300]

DIR holds ``onnx/stories260K_llama_dynamo.onnx``, ``_legacy.onnx`` (whose weights the writer has, with a cache) and
``stories260K_selfsampled_tokens.npz``: its first 24 rows choose units and fit layers, its last 24 judge. No text is
needed: the original writes ``--rows`` texts itself. Every step is kept in build/benchmarks/distillation, so that a run
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import table
from language_model import BEGIN, FILES, TEST_ROWS, TOKENS, _Decoder, _loss
from tuning import command

CALIBRATION_ROWS = 24
LENGTH = 160
TOGETHER = 64
"""Texts written at a time."""
RATES = {"magnitude": 3e-3, "calibrated": 1e-3}
"""How units are chosen, and the learning rate: a model whose layers were fitted takes smaller steps."""

HEAD = """# A language model, pruned and distilled

Loss in nats per token over {tokens} tokens that played no part in anything else (uniform: 6.238). The Llama
(`{file}`) is pruned to {macs:g} of its multiply-accumulates (`--align 1`; calibrated: on 24 other texts), and
distilled from the original on {rows} texts that this one wrote: `secateur tune --teacher ORIGINAL --loss kl`,
{steps} steps of 16 texts. The step that does best on a tenth of these texts is taken.
Minutes are {clock}.
"""


def written(options: argparse.Namespace, out: Path) -> None:
    """Texts that the original writes, drawn token by token from its own distribution."""
    import cached_llama

    decoder_file = out.with_suffix(".onnx")
    cached_llama.export(options.data / "onnx" / FILES[1], decoder_file)
    decoder = _Decoder(decoder_file.read_bytes())
    rng = np.random.default_rng(0)
    texts = []
    for first in range(0, options.rows, TOGETHER):
        text, past = np.full((min(TOGETHER, options.rows - first), 1), BEGIN, np.int64), None
        while text.shape[1] < LENGTH:
            logits, past = decoder.step(text[:, -1:], past)
            noise = rng.gumbel(size=logits[:, -1].shape)  # the largest of logits and this is a draw
            text = np.concatenate([text, (logits[:, -1] + noise).argmax(-1)[:, None]], 1)
        texts.append(text)
        table.say(f"{first + len(text)} of {options.rows} texts written")
    np.savez(out, input_ids=np.concatenate(texts))


def cell(options: argparse.Namespace, name: str, folder: Path, held: np.ndarray) -> dict:
    """Prune and distil in one way; losses before and after."""
    source = options.data / "onnx" / FILES[0]
    pruned, distilled = folder / f"{name}.pruned.onnx", folder / f"{name}.distilled.onnx"
    told = pruned.with_suffix(".json")
    if not told.is_file():
        calib = ["--calib", str(folder / "calibration.npz")] if name == "calibrated" else []
        command("prune", str(source), "-o", str(pruned), "--macs", str(options.macs), "--align", "1", *calib, "--json",
                str(told))  # fmt: skip
    table.say(f"{name}: {_loss(pruned, held):.3f} after pruning")
    done = folder / f"{name}.tuned.json"
    if not done.is_file():
        report = folder / f"{name}.report.json"
        used = command(
            "tune", str(pruned), "-o", str(distilled), "--data", str(folder / "written.npz"), "--teacher", str(source),
            "--loss", "kl", "--steps", str(options.steps), "--batch", "16", "--lr", str(RATES[name]), "--checkpoint",
            str(folder / f"{name}.pt"), "--device", options.device, "--json", str(report),
        )  # fmt: skip
        found = json.loads(report.read_text())
        kept = {k: found[k] for k in ("best_step", "loss_before", "loss_after", "resumed_from")}
        done.write_text(json.dumps({**kept, "minutes": (used.wall if options.device == "cuda" else used.cpu) / 60}))
    row = json.loads(told.read_text())
    return {
        "macs_left": row["after"]["macs"] / row["before"]["macs"],
        "pruned": _loss(pruned, held),
        "distilled": _loss(distilled, held),
        **json.loads(done.read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--macs", type=float, default=0.7, help="share of the multiply-accumulates to leave (0.7)")
    parser.add_argument("--rows", type=int, default=384, metavar="N", help="texts the original writes (384)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of the optimizer (300)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="to distil on (cpu)")
    parser.add_argument("--results", type=Path, default=table.RESULTS, metavar="DIR")
    options = parser.parse_args()
    about = table.environment()
    folder = table.CACHE / "distillation" / f"{options.macs:g}-{options.rows}-{options.steps}-{options.device}"
    folder.mkdir(parents=True, exist_ok=True)
    tokens = np.load(options.data / TOKENS)["tokens"]
    held = tokens[-TEST_ROWS:]
    np.savez(folder / "calibration.npz", input_ids=tokens[:CALIBRATION_ROWS])
    if not (folder / "written.npz").is_file():
        written(options, folder / "written.npz")
    dense = _loss(options.data / "onnx" / FILES[0], held)
    cells = {name: cell(options, name, folder, held) for name in RATES}
    rows = [["units chosen by", "MACs left", "dense", "pruned", "distilled", "best step", "minutes"]]
    for name, found in cells.items():
        losses = [f"{x:.3f}" for x in (dense, found["pruned"], found["distilled"])]
        rows.append([name, table.share(found["macs_left"]), *losses, str(found["best_step"]),
                     f"{found['minutes']:.1f}"])  # fmt: skip
    head = HEAD.format(
        tokens=held[:, 1:].size,
        file=Path(FILES[0]).stem,
        macs=options.macs,
        rows=options.rows,
        steps=options.steps,
        clock="of the GPU, by the clock" if options.device == "cuda" else "of one core",
    )
    page = f"{head}\n{table.markdown(rows, right=(1, 2, 3, 4, 5, 6))}"
    title = "distillation" if options.device == "cpu" else f"distillation-{options.device}"
    table.publish(title, page, {"dense": dense, "cells": cells}, about, options.results)


if __name__ == "__main__":
    main()
