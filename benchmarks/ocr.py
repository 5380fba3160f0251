"""A published text recogniser, pruned, made sparse and quantized from its ONNX file and made-up lines without labels.

    pip download --no-deps rapidocr-onnxruntime==1.4.4 && unzip rapidocr_onnxruntime-*.whl -d wheel
    python benchmarks/ocr.py wheel/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx

PP-OCRv4's recogniser (Apache-2.0) reads lines of 48 pixels and gives one of 6,625 characters for each eighth column.
Lines are drawn with Pillow's own font; 512 calibrate, 1,024 others judge. Needs Pillow.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import table
from numpy.typing import NDArray
from tuning import command

Row = dict[str, Any]
Array = NDArray[Any]

HEIGHT, WIDTH = 48, 320
CALIBRATING, JUDGING = 512, 1024
TOGETHER = 32
SIZES = f"1x3x{HEIGHT}x{WIDTH}"
PRUNED = {
    f"pruned to {macs} of the work, {how}": ["prune", "--macs", macs, *extra]
    for macs in ("0.8", "0.6", "0.4")
    for how, extra in (("by magnitude", []), ("**fitted**", ["--calib"]))
}
SPARSE = {
    "2:4 zeros, by magnitude": ["sparsify", "--pattern", "2:4"],
    "2:4 zeros, **fitted**": ["sparsify", "--pattern", "2:4", "--calib"],
}
QUANTIZED = {
    "int8, to the nearest": ["quantize", "--precision", "int8", "--seconds", "0", "--no-fit", "--calib"],
    "int8, **fitted**": ["quantize", "--precision", "int8", "--seconds", "0", "--calib"],
    "int8-weight, **fitted**": ["quantize", "--precision", "int8-weight", "--seconds", "0", "--calib"],
}
STEPS = PRUNED | SPARSE | QUANTIZED
BOTH = "pruned to 0.6 of the work, **fitted**", "int8, **fitted**"

HEAD = f"""# A text recogniser

PP-OCRv4's recogniser as it is published, and {JUDGING:,} made-up lines of text: how many are read without a fault
(spaces apart), and how many characters. Latency: times as long as the original on one line and one thread, measured in
pairs, with the 95 % interval. "To the nearest" is `--no-fit`, what onnxruntime.quantization makes, but for ranges that
end where what reads a tensor is flat.
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--results", type=Path, default=table.RESULTS, metavar="DIR")
    options = parser.parse_args()
    about = table.environment()
    lines = list(_lines(CALIBRATING + JUDGING))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "lines.npz"
        np.savez(data, x=np.stack([image for image, _ in lines[:CALIBRATING]]))
        rows = table.told(_measured(options.model, data, lines[CALIBRATING:], folder), _cells)
    head = ["model", "lines right", "characters right", "size", "times as long", "CPU s"]
    page = HEAD + "\n" + table.markdown([head, *map(_cells, rows)], right=(1, 2, 3, 4, 5))
    table.publish("ocr", page + "\n", {"rows": rows}, about, options.results)


def _cells(row: Row) -> list[str]:
    ratio = "" if row["ratio"] is None else "{value:.3f} ({low:.3f} .. {high:.3f})".format(**row["ratio"])
    spent = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
    return [row["how"], f"{row['lines']:.1f}", f"{row['characters']:.1f}", table.share(row["size"]), ratio, spent]


def _measured(model: Path, data: Path, test: list[tuple[Array, str]], folder: Path) -> Iterator[Row]:
    """The original, and what each command makes of it."""
    yield {"how": "as published", "size": None, "ratio": None, "seconds": None, **_read(model, test)}
    made: dict[str, Path] = {}
    for how, line in STEPS.items():
        made[how] = folder / f"{len(made)}.onnx"
        yield {"how": how, **_made(line, model, model, data, made[how]), **_read(made[how], test)}
    first, then = BOTH
    out = folder / "both.onnx"
    yield {"how": f"{first}, then {then}", **_made(STEPS[then], made[first], model, data, out), **_read(out, test)}


def _made(line: list[str], source: Path, original: Path, data: Path, out: Path) -> Row:
    """Carry a command out, and compare with the original."""
    inputs = [str(data)] if line[-1] == "--calib" else []
    spent = command(line[0], str(source), "-o", str(out), *line[1:], *inputs).cpu
    told = out.with_suffix(".json")
    timed = ["--shape", f"x:{SIZES}", "--threads", "1", "--seconds", "5", "--json", str(told)]
    command("compare", str(original), str(out), *timed)
    size = out.stat().st_size / original.stat().st_size
    return {"size": size, "ratio": json.loads(told.read_text())["ratio"], "seconds": spent}


def _read(path: Path, test: list[tuple[Array, str]]) -> Row:
    """Shares of lines and of characters that are read right, in per cent."""
    from runtime.backends import open_session

    session = open_session(path)
    known = next(p.value for p in onnx.load(path, load_external_data=False).metadata_props if p.key == "character")
    characters = ["", *known.splitlines(), " "]
    right, wrong, total = 0, 0, 0
    for i in range(0, len(test), TOGETHER):
        part = test[i : i + TOGETHER]
        (found,) = session.run({session.inputs[0].name: np.stack([image for image, _ in part])}).values()
        for codes, (_, text) in zip(found.argmax(-1), part, strict=True):
            kept = [a for k, a in enumerate(codes) if a and (not k or a != codes[k - 1])]
            got, want = "".join(characters[a] for a in kept).replace(" ", ""), text.replace(" ", "")
            right += got == want
            wrong += min(_changes(got, want), len(want))
            total += len(want)
    return {"lines": 100 * right / len(test), "characters": 100 * (1 - wrong / total)}


def _changes(got: str, want: str) -> int:
    """Fewest characters to put in, take out or exchange (Levenshtein, 1965)."""
    row = list(range(len(want) + 1))
    for i, a in enumerate(got, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(want, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _lines(count: int) -> Iterator[tuple[Array, str]]:
    """Lines of text: images [3, 48, 320] in -1 .. 1, and what they say."""
    from PIL import Image, ImageDraw, ImageFont

    rng, noise = random.Random(0), np.random.default_rng(0)
    for _ in range(count):
        text = _text(rng)
        paper, ink = rng.randint(150, 255), rng.randint(0, 90)
        image = Image.new("RGB", (WIDTH, HEIGHT), tuple(paper - rng.randint(0, 25) for _ in range(3)))
        size = rng.randint(20, 36)
        size = min(size, int(size * (WIDTH - 12) / ImageFont.load_default(size).getlength(text)))
        ImageDraw.Draw(image).text(
            (rng.randint(2, 6), HEIGHT // 2 + rng.randint(-4, 4)), text, anchor="lm",
            font=ImageFont.load_default(size), fill=tuple(ink + rng.randint(0, 40) for _ in range(3)),
        )  # fmt: skip
        pixels = np.asarray(image, np.float32) + noise.normal(0, rng.uniform(0, 20), (HEIGHT, WIDTH, 3))
        yield ((pixels.clip(0, 255) / 255 - 0.5) / 0.5).transpose(2, 0, 1).astype(np.float32), text


def _text(rng: random.Random) -> str:
    """Words of syllables, numbers, and what is half of each."""

    def word() -> str:
        kind = rng.random()
        if kind < 0.25:
            return str(rng.randint(0, 10 ** rng.randint(1, 9)))
        if kind < 0.35:
            return "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(3, 8)))
        said = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
        said += rng.choice(["", "n", "s", "r", "x"])
        return said.capitalize() if rng.random() < 0.3 else said

    return " ".join(word() for _ in range(rng.randint(1, 3)))


if __name__ == "__main__":
    main()
