"""A decoder with a key-value cache: groups of heads go, the caches shrink with them, and generation goes on."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from making import make, stacked

from exporter import prune

WIDTH, GROUPS, REPEAT, SIZE, NEURONS, WORDS, LAYERS, LONGEST = 64, 4, 2, 8, 128, 100, 2, 64
QUERIES = GROUPS * REPEAT * SIZE
CACHED = GROUPS * SIZE

LAYER = """
  LAYERn = LayerNormalization (INPUT, LAYERattention_scale)
  LAYERq = MatMul (LAYERn, LAYERwq)
  LAYERk = MatMul (LAYERn, LAYERwk)
  LAYERv = MatMul (LAYERn, LAYERwv)
  LAYERqr = Reshape (LAYERq, query)
  LAYERkr = Reshape (LAYERk, cached)
  LAYERvr = Reshape (LAYERv, cached)
  LAYERqt = Transpose <perm = [0, 2, 3, 1, 4]> (LAYERqr)
  LAYERkt = Transpose <perm = [0, 2, 1, 3]> (LAYERkr)
  LAYERvt = Transpose <perm = [0, 2, 1, 3]> (LAYERvr)
  present_key_NUMBER = Concat <axis = 2> (past_key_NUMBER, LAYERkt)
  present_value_NUMBER = Concat <axis = 2> (past_value_NUMBER, LAYERvt)
  LAYERk5 = Unsqueeze (present_key_NUMBER, two)
  LAYERv5 = Unsqueeze (present_value_NUMBER, two)
  LAYERkT = Transpose <perm = [0, 1, 2, 4, 3]> (LAYERk5)
  LAYERscores = MatMul (LAYERqt, LAYERkT)
  LAYERscaled = Mul (LAYERscores, factor)
  LAYERshares = Softmax <axis = -1> (LAYERscaled)
  LAYERmixed = MatMul (LAYERshares, LAYERv5)
  LAYERback = Transpose <perm = [0, 3, 1, 2, 4]> (LAYERmixed)
  LAYERflat = Reshape (LAYERback, stream)
  LAYERout = MatMul (LAYERflat, LAYERwo)
  LAYERsum = Add (INPUT, LAYERout)
  LAYERm = LayerNormalization (LAYERsum, LAYERmlp_scale)
  LAYERgate = MatMul (LAYERm, LAYERw1)
  LAYERup = MatMul (LAYERm, LAYERw3)
  LAYERsigma = Sigmoid (LAYERgate)
  LAYERswish = Mul (LAYERgate, LAYERsigma)
  LAYERboth = Mul (LAYERswish, LAYERup)
  LAYERdown = MatMul (LAYERboth, LAYERw2)
  LAYERend = Add (LAYERsum, LAYERdown)
"""


def decoder() -> onnx.ModelProto:
    """One untrained step: a token [N, 1], its position and caches [N, groups, P, size] to logits and caches."""
    caches = [f"{kind}_{i}" for i in range(LAYERS) for kind in ("key", "value")]
    past = ", ".join(f"float[N, {GROUPS}, P, {SIZE}] past_{c}" for c in caches)
    present = ", ".join(f"float[N, {GROUPS}, T, {SIZE}] present_{c}" for c in caches)
    text = f"""
    <ir_version: 10, opset_import: ["": 20]>
    decoder (int64[N, 1] input_ids, int64[N, 1] position_ids, {past}) => (float[N, 1, {WORDS}] logits, {present})
      <int64[5] query = {{0, 0, {GROUPS}, {REPEAT}, {SIZE}}}, int64[4] cached = {{0, 0, {GROUPS}, {SIZE}}},
       int64[3] stream = {{0, 0, {QUERIES}}}, int64[1] two = {{2}}, float factor = {{{SIZE**-0.5}}}>
    {{
      word = Gather (words, input_ids)
      place = Gather (positions, position_ids)
      embedded = Add (word, place)
      {stacked(LAYER, LAYERS)}
      last = LayerNormalization (l{LAYERS - 1}_end, last_scale)
      logits = MatMul (last, head)
    }}
    """
    shapes: dict[str, tuple[int, ...]] = {
        "words": (WORDS, WIDTH),
        "positions": (LONGEST, WIDTH),
        "last_scale": (WIDTH,),
        "head": (WIDTH, WORDS),
    }
    for i in range(LAYERS):
        own: dict[str, tuple[int, ...]] = {"wq": (WIDTH, QUERIES), "wk": (WIDTH, CACHED), "wv": (WIDTH, CACHED)}
        own |= {"wo": (QUERIES, WIDTH), "w1": (WIDTH, NEURONS), "w3": (WIDTH, NEURONS), "w2": (NEURONS, WIDTH)}
        own |= {"attention_scale": (WIDTH,), "mlp_scale": (WIDTH,)}
        shapes |= {f"l{i}_{name}": shape for name, shape in own.items()}
    return make(text, shapes)


def generate(file: str, steps: int = 6) -> tuple[list[int], int]:
    """The most likely tokens one after another; and the bytes of the caches at the end."""
    session = onnxruntime.InferenceSession(file)
    caches = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_")
    }
    names = [o.name for o in session.get_outputs()]
    token, tokens = 1, []
    for step in range(steps):
        feeds = {"input_ids": np.array([[token]]), "position_ids": np.array([[step]]), **caches}
        found = dict(zip(names, session.run(None, feeds), strict=True))
        caches = {name.replace("present", "past"): a for name, a in found.items() if name.startswith("present")}
        token = int(found["logits"].argmax())
        tokens.append(token)
    return tokens, sum(a.nbytes for a in caches.values())


def main() -> None:
    """Halve the groups of heads, first with the interface as it is, then with caches that may shrink."""
    onnx.save(decoder(), "decoder.onnx")
    closed = prune("decoder.onnx", "decoder-closed.onnx", ratio=0.5, granularity=["heads", "head_dims", "neurons"])
    opened = prune(
        "decoder.onnx",
        "decoder-open.onnx",
        ratio=0.5,
        granularity=["heads", "neurons"],
        io=["past_*:1", "present_*:1"],
    )
    print(f"closed: {closed.after.parameters / closed.before.parameters:.2f} of the parameters")
    print(f"open:   {opened.after.parameters / opened.before.parameters:.2f} of the parameters")
    for file in ("decoder.onnx", "decoder-closed.onnx", "decoder-open.onnx"):
        tokens, size = generate(file)
        print(f"{file}: {size:,} bytes of cache after {len(tokens)} tokens")


if __name__ == "__main__":
    main()
