"""A BERT-like encoder: attention with a mask, heads and neurons cut with token ids for calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from making import make, stacked

from exporter import Plan, load, prune, verify

WIDTH, HEADS, NEURONS, WORDS, LAYERS, LENGTH = 64, 4, 256, 200, 2, 12
SIZE = WIDTH // HEADS

LAYER = """
  LAYERq = MatMul (INPUT, LAYERwq)
  LAYERk = MatMul (INPUT, LAYERwk)
  LAYERv = MatMul (INPUT, LAYERwv)
  LAYERqb = Add (LAYERq, LAYERbq)
  LAYERvb = Add (LAYERv, LAYERbv)
  LAYERqr = Reshape (LAYERqb, heads)
  LAYERkr = Reshape (LAYERk, heads)
  LAYERvr = Reshape (LAYERvb, heads)
  LAYERqt = Transpose <perm = [0, 2, 1, 3]> (LAYERqr)
  LAYERkt = Transpose <perm = [0, 2, 3, 1]> (LAYERkr)
  LAYERvt = Transpose <perm = [0, 2, 1, 3]> (LAYERvr)
  LAYERscores = MatMul (LAYERqt, LAYERkt)
  LAYERscaled = Mul (LAYERscores, factor)
  LAYERmasked = Add (LAYERscaled, hidden)
  LAYERshares = Softmax <axis = -1> (LAYERmasked)
  LAYERmixed = MatMul (LAYERshares, LAYERvt)
  LAYERback = Transpose <perm = [0, 2, 1, 3]> (LAYERmixed)
  LAYERflat = Reshape (LAYERback, stream)
  LAYERout = MatMul (LAYERflat, LAYERwo)
  LAYERsum = Add (INPUT, LAYERout)
  LAYERnorm = LayerNormalization (LAYERsum, LAYERattention_scale, LAYERattention_bias)
  LAYERup = MatMul (LAYERnorm, LAYERw1)
  LAYERupb = Add (LAYERup, LAYERb1)
  LAYERact = Gelu (LAYERupb)
  LAYERdown = MatMul (LAYERact, LAYERw2)
  LAYERsum2 = Add (LAYERnorm, LAYERdown)
  LAYERend = LayerNormalization (LAYERsum2, LAYERmlp_scale, LAYERmlp_bias)
"""


def bert() -> onnx.ModelProto:
    """The untrained encoder: ids and mask [N, S] to one score for each class [N, 3]."""
    text = f"""
    <ir_version: 10, opset_import: ["": 20]>
    bert (int64[N, S] input_ids, int64[N, S] attention_mask) => (float[N, 3] scores)
      <int64[4] heads = {{0, 0, {HEADS}, {SIZE}}}, int64[3] stream = {{0, 0, {WIDTH}}}, float factor = {{{SIZE**-0.5}}},
       int64[2] new_axes = {{1, 2}}, float one = {{1}}, float low = {{10000}}, int64 first = {{0}}>
    {{
      embedded = Gather (words, input_ids)
      shown = Cast <to = 1> (attention_mask)
      shown_4d = Unsqueeze (shown, new_axes)
      gap = Sub (shown_4d, one)
      hidden = Mul (gap, low)
      {stacked(LAYER, LAYERS)}
      start = Gather <axis = 1> (l{LAYERS - 1}_end, first)
      scores = Gemm (start, classify, classify_bias)
    }}
    """
    shapes: dict[str, tuple[int, ...]] = {"words": (WORDS, WIDTH), "classify": (WIDTH, 3), "classify_bias": (3,)}
    for i in range(LAYERS):
        own = dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH))
        own |= dict.fromkeys(("bq", "bv"), (WIDTH,))
        own |= {f"{part}_{kind}": (WIDTH,) for part in ("attention", "mlp") for kind in ("scale", "bias")}
        own |= {"w1": (WIDTH, NEURONS), "b1": (NEURONS,), "w2": (NEURONS, WIDTH)}
        shapes |= {f"l{i}_{name}": shape for name, shape in own.items()}
    return make(text, shapes)


def main() -> None:
    """Cut heads and neurons, keep the plan, and prove the result once more from the files."""
    onnx.save(bert(), "bert.onnx")
    generator = np.random.default_rng(0)
    ids = generator.integers(0, WORDS, (64, LENGTH))
    mask = (np.arange(LENGTH) < generator.integers(4, LENGTH + 1, (64, 1))).astype(np.int64)

    result = prune(
        "bert.onnx",
        "bert-small.onnx",
        macs=0.6,
        granularity=["heads", "neurons"],
        calib=[{"input_ids": ids, "attention_mask": mask}],
    )
    result.plan.save("bert-plan.json")
    print(f"{result.before.parameters:,} parameters became {result.after.parameters:,}")
    print(f"error of the outputs: {result.fidelity.plain:.3f} as cut, {result.fidelity.error:.3f} fitted")
    kept = json.loads(Path("bert-plan.json").read_text())["take"]
    print(f"the plan says what stays of {len(kept)} constants, the first of them {next(iter(kept))}")

    untouched = prune("bert.onnx", "bert-cut.onnx", plan=Plan.load("bert-plan.json"))
    proof = verify(load("bert-cut.onnx"), load("bert.onnx"), untouched.plan)
    print(f"proved again from the files: {proof.error:.1e}")


if __name__ == "__main__":
    main()
