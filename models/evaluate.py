"""Print the share of the digits' test images that ONNX files get right.

    python models/evaluate.py FILE.onnx...

The files take images of shape (batch, 1, 8, 8) with pixels in [0, 1]. Needs ONNX Runtime only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

DIGITS = Path(__file__).resolve().parent / "digits.npz"


def accuracy(file: Path) -> float:
    """Share of the test images whose largest logit is the right one."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with np.load(DIGITS) as data:
        images, labels = data["x_test"], data["y_test"]
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return float((logits.argmax(1) == labels).mean())


def main() -> None:
    """Print one line per file."""
    files = [Path(name) for name in sys.argv[1:]]
    if not files:
        sys.exit("usage: python models/evaluate.py FILE.onnx...")
    for file in files:
        print(f"{accuracy(file):7.2%}  {file}")


if __name__ == "__main__":
    main()
