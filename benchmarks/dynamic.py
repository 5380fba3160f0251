"""Eight bits without data: transformers whose products compute on integers, beside other ways to store them.

    python benchmarks/dynamic.py

The networks have the sizes of BERT-base and ViT-B/16 and seeded random weights, so time and size are theirs; output
errors are those of random inputs. Accuracy of trained networks is in results/quantization.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import table
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tuning import command

Row = dict[str, Any]
Array = NDArray[Any]

WIDTH, HEADS, HIDDEN, LAYERS = 768, 12, 3072, 12
VOCABULARY, LONGEST = 30522, 512
PIXELS, PATCH, CLASSES = 224, 16, 1000
JUDGING = 8
SHAPES = {
    "bert-16": ("BERT-base, 16 tokens", (1, 16)),
    "bert-128": ("BERT-base, 128 tokens", (1, 128)),
    "vit": ("ViT-B/16", (1, 3, PIXELS, PIXELS)),
}
WAYS = {
    "int8-weight": ["--precision", "int8-weight"],
    "int8, ranges of 32 made-up inputs": [
        "--precision", "int8", "--calib", "synthetic", "--calib-samples", "32", "--no-fit"
    ],
    "**int8-dynamic**": ["--precision", "int8-dynamic"],
}  # fmt: skip
PEER = "onnxruntime.quantization, dynamic, a scale for each channel"

HEAD = """# Eight bits without data

One thread, ONNX Runtime: times as long as the float model, measured in pairs, with the 95 % interval; the size of the
file; the error of the outputs on random inputs, as a share of their variance (of all outputs together).
"""


class Blocks(nn.Module):
    """The layers both networks have."""

    def __init__(self) -> None:
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, "gelu", batch_first=True)  # noqa: E731
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """Run them; [batch, tokens, width] to the same."""
        for layer in self.layers:
            x = layer(x)
        return x


class Text(nn.Module):
    """A classifier of the size of BERT-base."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks, self.head = Blocks(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [batch, 2] of ids [batch, tokens]."""
        scores: Tensor = self.head(self.blocks(self.words(x) + self.places.weight[: x.shape[1]])[:, 0])
        return scores


class Image(nn.Module):
    """A classifier of the size of ViT-B/16."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks, self.head = Blocks(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [batch, classes] of images [batch, 3, 224, 224]."""
        scores: Tensor = self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return scores


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(SHAPES), help="some of them")
    parser.add_argument("--seconds", type=float, default=10.0, help="most for a comparison (10)")
    parser.add_argument("--results", type=Path, default=table.RESULTS, metavar="DIR")
    options = parser.parse_args()
    about = table.environment()
    with tempfile.TemporaryDirectory() as scratch:
        networks = options.networks.split(",")
        rows = table.told((r for n in networks for r in _measured(n, Path(scratch), options.seconds)), _cells)
    head = ["network", "how", "times as long", "size", "output error"]
    page = HEAD + "\n" + table.markdown([head, *map(_cells, rows)], right=(2, 3, 4))
    table.publish("dynamic", page + "\n", {"rows": rows}, about, options.results)


def _cells(row: Row) -> list[str]:
    ratio = "{value:.3f} ({low:.3f} .. {high:.3f})".format(**row["ratio"])
    return [row["network"], row["how"], ratio, table.share(row["size"]), f"{row['error']:.2g}"]


def _measured(name: str, folder: Path, seconds: float) -> Iterator[Row]:
    """Rows of one network."""
    title, shape = SHAPES[name]
    text = len(shape) == 2
    model = folder / ("text.onnx" if text else "image.onnx")
    if not model.exists():
        _export(Text() if text else Image(), text, model)
    size = f"x:{'x'.join(map(str, shape))}"
    for how in (*WAYS, PEER):
        out = folder / f"{model.stem}.out.onnx"
        if how == PEER:
            _by_onnxruntime(model, out)
        else:
            command("quantize", str(model), "-o", str(out), "--seconds", "0", *WAYS[how], "--shape", size)
        told = out.with_suffix(".json")
        timed = ["--shape", size, "--threads", "1", "--seconds", str(seconds), "--json", str(told)]
        command("compare", str(model), str(out), *timed)
        yield {"network": title, "how": how, "ratio": json.loads(told.read_text())["ratio"],
               "size": out.stat().st_size / model.stat().st_size, "error": _error(model, out, shape)}  # fmt: skip


def _export(network: nn.Module, text: bool, path: Path) -> None:
    torch.backends.mha.set_fastpath_enabled(False)  # the slow path exports as plain operators
    torch.manual_seed(0)
    for parameter in network.parameters():  # biases and normalisations too: none is alike
        spread = 0.02 if parameter.dim() > 1 else 0.1
        mean = 1.0 if parameter.dim() == 1 and float(parameter.detach().min()) == 1 else 0.0
        nn.init.normal_(parameter, mean, spread)
    x = torch.zeros((2, 16), dtype=torch.int64) if text else torch.zeros((2, 3, PIXELS, PIXELS))
    axes = {0: "batch", 1: "tokens"} if text else {0: "batch"}
    torch.onnx.export(network.eval(), (x,), path, input_names=["x"], output_names=["y"], dynamic_shapes=(axes,),
                      dynamo=True, external_data=False, verbose=False)  # fmt: skip


def _by_onnxruntime(model: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(onnx.load(model), out, per_channel=True, weight_type=QuantType.QInt8)


def _error(model: Path, out: Path, shape: tuple[int, ...]) -> float:
    from runtime.backends import open_session

    rng = np.random.default_rng(0)
    feeds = [rng.integers(0, VOCABULARY, shape) if len(shape) == 2 else rng.standard_normal(shape).astype(np.float32)
             for _ in range(JUDGING)]  # fmt: skip
    want, got = (
        np.concatenate([session.run({"x": x})["y"] for x in feeds]) for session in map(open_session, (model, out))
    )
    return float(np.square(got - want).mean() / want.var())


if __name__ == "__main__":
    main()
