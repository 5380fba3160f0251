"""A keyword spotter: convolutions over time and a GRU, cut with calibration inputs, and measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from making import make

from exporter import find_groups, load, prune
from runtime.comparison import compare_models
from runtime.runners import Asked

BANDS, CHANNELS, HIDDEN, WORDS, FRAMES = 40, 128, 96, 12, 96

TEXT = f"""
<ir_version: 10, opset_import: ["": 18]>
spotter (float[N, {BANDS}, {FRAMES}] mel) => (float[N, {WORDS}] logits) <int64[1] zero = {{0}}>
{{
  a = Conv <kernel_shape = [5], strides = [2], pads = [2, 2]> (mel, first, first_bias)
  b = Relu (a)
  c = Conv <kernel_shape = [5], strides = [2], pads = [2, 2]> (b, second, second_bias)
  d = Relu (c)
  frames = Transpose <perm = [2, 0, 1]> (d)
  sequence, state = GRU <hidden_size = {HIDDEN}> (frames, gru_input, gru_state)
  last = Squeeze (state, zero)
  logits = Gemm (last, classify, classify_bias)
}}
"""


def spotter() -> onnx.ModelProto:
    """The untrained network: logarithmic mel bands [N, 40, 96] to one logit for each word [N, 12]."""
    shapes = {
        "first": (CHANNELS, BANDS, 5),
        "first_bias": (CHANNELS,),
        "second": (CHANNELS, CHANNELS, 5),
        "second_bias": (CHANNELS,),
        "gru_input": (1, 3 * HIDDEN, CHANNELS),
        "gru_state": (1, 3 * HIDDEN, HIDDEN),
        "classify": (HIDDEN, WORDS),
        "classify_bias": (WORDS,),
    }
    return make(TEXT, shapes)


def main() -> None:
    """Cut with recordings for calibration, and measure what came of it."""
    onnx.save(spotter(), "spotter.onnx")
    for group in find_groups(load("spotter.onnx")):
        print(f"{group.width:4} {group.kind:9} {group.name}")
    mel = np.random.default_rng(0).normal(size=(64, BANDS, FRAMES)).astype(np.float32)
    result = prune("spotter.onnx", "spotter-half.onnx", macs=0.5, calib=[{"mel": mel}])
    print(f"{result.before.macs:,} multiply-accumulates became {result.after.macs:,}")
    print(f"error of the outputs: {result.fidelity.plain:.3f} as cut, {result.fidelity.error:.3f} fitted")

    asked = Asked()
    found = compare_models(Path("spotter.onnx"), Path("spotter-half.onnx"), asked, asked, seconds=1.0)
    print(f"takes {found.ratio.value:.2f} times as long: {found.verdict}")


if __name__ == "__main__":
    main()
