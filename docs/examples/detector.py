"""A detector of the YOLO kind: splits, concatenations and two scales, of which the outputs stay as they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from making import make

from exporter import find_groups, load, prune

WIDTH = 32
CLASSES = 3

CONV = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
TEXT = f"""
<ir_version: 10, opset_import: ["": 18]>
detector (float[N, 3, 64, 64] image) => (float[N, {4 + CLASSES}, 320] boxes)
  <int64[3] flat = {{0, {4 + CLASSES}, -1}}, float[4] double = {{1, 1, 2, 2}}>
{{
  a = Conv <{CONV}, strides = [2, 2]> (image, stem, stem_bias)
  b = HardSwish (a)
  c = Conv <{CONV}, strides = [2, 2]> (b, down, down_bias)
  d = HardSwish (c)
  e, f = Split <axis = 1, num_outputs = 2> (d)
  g = Conv <{CONV}> (f, inner, inner_bias)
  h = HardSwish (g)
  i = Add (f, h)
  j = Concat <axis = 1> (e, f, i)
  k = Conv (j, fuse, fuse_bias)
  fine = HardSwish (k)
  l = Conv <{CONV}, strides = [2, 2]> (fine, deep, deep_bias)
  m = HardSwish (l)
  n = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (m)
  o = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (n)
  p = Concat <axis = 1> (m, n, o)
  q = Conv (p, pool, pool_bias)
  coarse = HardSwish (q)
  r = Resize <mode = "nearest"> (coarse, , double)
  s = Concat <axis = 1> (r, fine)
  t = Conv <{CONV}> (s, merge, merge_bias)
  merged = HardSwish (t)
  u = Conv (merged, head_fine, head_fine_bias)
  v = Conv (coarse, head_coarse, head_coarse_bias)
  u_flat = Reshape (u, flat)
  v_flat = Reshape (v, flat)
  boxes = Concat <axis = 2> (u_flat, v_flat)
}}
"""


def detector() -> onnx.ModelProto:
    """The untrained detector: images [N, 3, 64, 64] to boxes and class scores [N, 4 + classes, 320]."""
    w, out = WIDTH, 4 + CLASSES
    kernels = {
        "stem": (w, 3, 3, 3),
        "down": (2 * w, w, 3, 3),
        "inner": (w, w, 3, 3),
        "fuse": (2 * w, 3 * w, 1, 1),
        "deep": (4 * w, 2 * w, 3, 3),
        "pool": (4 * w, 12 * w, 1, 1),
        "merge": (2 * w, 6 * w, 3, 3),
        "head_fine": (out, 2 * w, 1, 1),
        "head_coarse": (out, 4 * w, 1, 1),
    }
    return make(TEXT, kernels | {f"{name}_bias": shape[:1] for name, shape in kernels.items()})


def main() -> None:
    """List the groups and what is frozen, cut half of the work, and run both."""
    onnx.save(detector(), "detector.onnx")
    groups = find_groups(load("detector.onnx"))
    for group in groups:
        weights = ", ".join(f"{span.tensor}[{span.axis}]" for span in group.parameters)
        print(f"{group.width:4} {group.kind}: {weights}")
    result = prune("detector.onnx", "detector-half.onnx", macs=0.5, keep=["stem"])
    print(f"{result.before.macs:,} multiply-accumulates became {result.after.macs:,}")
    print(f"pruned and masked original differ by {result.proof.error:.1e} of the signal")

    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    for file in ("detector.onnx", "detector-half.onnx"):
        (boxes,) = onnxruntime.InferenceSession(file).run(None, {"image": image})
        print(f"{file}: boxes {list(boxes.shape)}")


if __name__ == "__main__":
    main()
