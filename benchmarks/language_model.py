"""A trained language model, pruned without training: what every kind of unit costs, and a decoder with a smaller cache.

    python benchmarks/language_model.py --data DIR [--score NAME] [--consumers]

DIR holds ``onnx/stories260K_llama_dynamo.onnx`` and ``_legacy.onnx`` (Llama, 5 layers, 8 query heads in 4 groups) and
``stories260K_selfsampled_tokens.npz``. The loss is over the last 24 rows of its tokens.

The second table exports the same network with a key-value cache, lets the caches shrink (``--io``), and generates token
by token: the pruned decoder with its shrunk cache, and the masked original with the full one.
"""

from __future__ import annotations

import argparse
import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import table

FILES = ("stories260K_llama_dynamo.onnx", "stories260K_llama_legacy.onnx")
TOKENS = "stories260K_selfsampled_tokens.npz"
TEST_ROWS = 24
CALIBRATION_ROWS = 4
"""Texts that rank the layers."""
RATIOS = (0.25, 0.5)
CACHES = ("past.*:1", "present.*:1")
BEGIN = 1
"""Token every text starts with."""
STEPS = 96
"""Tokens to generate."""

Row = dict[str, Any]


def main() -> None:
    """Prune, measure, print, write."""
    options = _options()
    about = table.environment()
    everything = np.load(options.data / TOKENS)["tokens"]
    calibration, tokens = everything[:CALIBRATION_ROWS], everything[-TEST_ROWS:]
    options.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        out = Path(scratch) / "pruned.onnx"
        rows = [
            r for name in FILES for r in _each_kind(options, options.data / "onnx" / name, out, tokens, calibration)
        ]
        cached = _with_cache(options, Path(scratch), tokens)
    data = {"tokens": int(tokens[:, 1:].size), "score": options.score, "kinds": rows, "cache": cached}
    table.publish("language_model", _page(rows, cached, data), data, about, options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the models and tokens are")
    parser.add_argument("--score", default="l2", metavar="NAME", help="how units are scored (l2)")
    parser.add_argument("--consumers", action="store_true", help="score the weights that read a unit as well")
    parser.add_argument("--cache", type=Path, default=table.CACHE, help="for scratch files (build/benchmarks)")
    parser.add_argument("--results", type=Path, default=table.RESULTS, help="where the table goes (benchmarks/results)")
    return parser.parse_args()


# -- one kind of unit at a time -----------------------------------------------------------------------------------


def _each_kind(options: argparse.Namespace, source: Path, out: Path, tokens: Any, calibration: Any) -> list[Row]:
    """The dense model, then every choice of units at every ratio."""
    dense = _loss(source, tokens)
    rows: list[Row] = [{"file": source.stem, "what": "dense", "loss": dense}]
    recorded = out.with_suffix(".npz")
    np.savez(recorded, input_ids=calibration)
    for what, choice in _choices(source, recorded).items():
        for ratio in RATIOS:
            table.say(f"{source.stem}: {what}, {ratio:g}")
            row = {"file": source.stem, "what": what, "ratio": ratio}
            rows.append({**row, **_pruned(options, source, out, ratio, choice), "loss": _loss(out, tokens)})
    return rows


def _choices(source: Path, recorded: Path) -> dict[str, dict[str, Any]]:
    """What to cut, by its name in the table: arguments for ``prune``. Layers are ranked on recorded texts."""
    from exporter import find_groups, load

    groups = find_groups(load(source))
    heads = [g for g in groups if g.kind == "heads"]
    # of the two factors of the query heads, the KV groups are also on the keys' and values' weights
    wide = [g for g in heads if all(_tensors(groups[p]) <= _tensors(g) for p in g.partners if groups[p] in heads)]
    inner = [g for g in heads if g not in wide]
    return {
        "KV groups with their query heads": {"granularity": ("heads",), "only": _exactly(wide)},
        "query heads in every group": {"granularity": ("heads",), "only": _exactly(inner)},
        "query, key and value dimensions": {"granularity": ("head_dims",)},
        "FFN neurons": {"granularity": ("neurons",)},
        "hidden width": {"granularity": ("hidden",)},
        "layers": {"granularity": ("layers",), "inputs": recorded},
        "KV groups, FFN and hidden width": {},
        "2 layers, KV groups, FFN and hidden width": {"layers": 2, "inputs": recorded},
    }


def _tensors(group: Any) -> set[str]:
    return {s.tensor for s in group.parameters}


def _exactly(groups: Sequence[Any]) -> tuple[str, ...]:
    return tuple(glob.escape(g.name) for g in groups)


def _pruned(
    options: argparse.Namespace, source: Path, out: Path, ratio: float, choice: dict[str, Any], io: Sequence[str] = ()
) -> Row:
    """Prune and prove; what is left."""
    from exporter import prune

    result = prune(source, out, ratio=ratio, align=1, score=options.score, consumers=options.consumers, io=io, **choice)
    assert result.proof is not None
    return {
        "groups": sum(len(g.keep) < g.width for g in result.plan.groups),
        "layers": len(result.plan.drop),
        "macs_left": result.after.macs / result.before.macs,
        "parameters_left": result.after.parameters / result.before.parameters,
        "error": result.proof.error,
        "warnings": list(result.warnings),
    }


def _loss(path: Path, tokens: Any) -> float:
    """Nats per token of a file without a cache."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: tokens[:, :-1]})
    return _nats(logits, tokens[:, 1:])


def _nats(logits: Any, targets: Any) -> float:
    """Mean cross entropy; logits (..., vocabulary), targets (...)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    chosen = np.take_along_axis(wide, targets[..., None], -1)[..., 0]
    return float((np.log(np.exp(wide).sum(-1)) - chosen).mean())


# -- with a cache -------------------------------------------------------------------------------------------------


def _with_cache(options: argparse.Namespace, scratch: Path, tokens: Any) -> list[Row]:
    """Export the decoder with a cache, prune it with its caches free, and generate."""
    import cached_llama

    from runtime.latency import bench, compare

    source, out = scratch / "cached.onnx", scratch / "cached_pruned.onnx"
    table.say("exporting the decoder with a cache")
    cached_llama.export(options.data / "onnx" / FILES[1], source)
    dense = _Decoder(source.read_bytes())
    rows: list[Row] = [{"what": "dense", "loss": dense.loss(tokens), "cache_bytes": dense.cache_bytes}]
    choices = {
        "KV groups with their query heads": {"granularity": ("heads",), "only": _kv_groups(source)},
        "KV groups, FFN and hidden width": {},
    }
    for what, choice in choices.items():
        for ratio in RATIOS:
            table.say(f"with a cache: {what}, {ratio:g}")
            row = {"what": what, "ratio": ratio, **_pruned(options, source, out, ratio, choice, CACHES)}
            pruned, masked = _Decoder(out.read_bytes()), _masked(options, source, ratio, choice)
            step = {"tokens": (1, 1)} | {name: (1, size, 128, width) for name, size, width in dense.caches}
            latency = compare(*bench([source, out], shapes=step, threads=1, seconds=1.0))
            rows.append(
                {
                    **row,
                    "loss": pruned.loss(tokens),
                    "cache_bytes": pruned.cache_bytes,
                    "generated": pruned.generate(),
                    "masked_generated": masked.generate(),
                    "step_time": latency.value,
                }
            )
    return rows


def _kv_groups(source: Path) -> tuple[str, ...]:
    """Groups of heads that span a cache."""
    from exporter import find_groups, load

    groups = find_groups(load(source), CACHES)
    return _exactly([g for g in groups if g.kind == "heads" and any(s.tensor.startswith("past.") for s in g.spans)])


def _masked(options: argparse.Namespace, source: Path, ratio: float, choice: dict[str, Any]) -> _Decoder:
    """The masked original of the same plan."""
    from exporter import load, prune
    from exporter.masked import masked_original

    planned = prune(
        source,
        ratio=ratio,
        align=1,
        score=options.score,
        consumers=options.consumers,
        io=CACHES,
        dry_run=True,
        **choice,
    )
    return _Decoder(masked_original(load(source), planned.plan).SerializeToString())


class _Decoder:
    """A decoder with a cache."""

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        inputs = [i for i in self.session.get_inputs() if i.name.startswith("past.")]
        self.caches = [(i.name, i.shape[1], i.shape[3]) for i in inputs]
        self.cache_bytes = 4 * sum(size * width for _, size, width in self.caches)

    def step(self, tokens: Any, past: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Logits of the next tokens, and the caches after them."""
        if past is None:
            past = {name: np.zeros((len(tokens), size, 0, width), np.float32) for name, size, width in self.caches}
        names = [o.name for o in self.session.get_outputs()]
        results = dict(zip(names, self.session.run(None, {"tokens": tokens, **past}), strict=True))
        return results["logits"], {name: results[name.replace("past", "present")] for name in past}

    def loss(self, tokens: Any) -> float:
        """Nats per token, one token at a time."""
        past, logits = None, []
        for place in range(tokens.shape[1] - 1):
            step, past = self.step(tokens[:, place : place + 1], past)
            logits.append(step)
        return _nats(np.concatenate(logits, 1), tokens[:, 1:])

    def generate(self) -> list[int]:
        """The likeliest continuation of an empty text."""
        text, past = [BEGIN], None
        while len(text) <= STEPS:
            logits, past = self.step(np.array([text[-1:]]), past)
            text.append(int(logits[0, -1].argmax()))
        return text


# -- the page -----------------------------------------------------------------------------------------------------


def _page(rows: Sequence[Row], cached: Sequence[Row], data: Row) -> str:
    head = [
        "file",
        "cut",
        "ratio",
        "groups cut",
        "layers dropped",
        "MACs left",
        "parameters left",
        "loss",
        "proof's error",
    ]
    cells = [
        [r["file"], r["what"], _number(r, "ratio", "g"), str(r.get("groups", "-")), str(r.get("layers", "-")),
         table.share(r.get("macs_left")), table.share(r.get("parameters_left")), f"{r['loss']:.3f}",
         _number(r, "error", ".1e")]
        for r in rows
    ]  # fmt: skip
    cache_head = ["cut", "ratio", "MACs left", "cache bytes per token", "loss", "step time", "generates as masked"]
    cache_cells = [
        [r["what"], _number(r, "ratio", "g"), table.share(r.get("macs_left")), str(r["cache_bytes"]),
         f"{r['loss']:.3f}", table.share(r.get("step_time")), _same(r)]
        for r in cached
    ]  # fmt: skip
    return "\n".join(
        [
            "# A trained language model",
            "",
            f"Loss in nats per token over {data['tokens']} tokens (uniform: {np.log(512):.3f}); units by "
            f"`{data['score']}` of their weights, layers by what they change on {CALIBRATION_ROWS} other texts; no "
            "training. Every pruned file was proved equal to its masked original. A layer is an attention or an FFN; "
            "there are ten.",
            "",
            table.markdown([head, *cells], right=range(2, 9)),
            "",
            "## With a key-value cache",
            "",
            f"`--io '{CACHES[0]}' --io '{CACHES[1]}'`: the caches shrink with the heads. Loss token by token through "
            f"the cache; time of one step after 128 tokens, relative to the dense decoder; {STEPS} tokens generated "
            "greedily by the pruned decoder, and by its masked original with the full cache.",
            "",
            table.markdown([cache_head, *cache_cells], right=range(1, 6)),
        ]
    )


def _number(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if key in row else "-"


def _same(row: Row) -> str:
    if "generated" not in row:
        return "-"
    one, other = row["generated"], row["masked_generated"]
    equal = next((k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    return f"all {STEPS} tokens" if equal == len(one) else f"the first {equal - 1} of {STEPS} tokens"


if __name__ == "__main__":
    main()
