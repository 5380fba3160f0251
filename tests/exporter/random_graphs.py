"""Random small networks for property tests: every draw is a valid graph with several coupled axes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto

from tests.onnx_builder import build, node

_CHANNELS = (4, 6, 8, 12)


@dataclass
class Draft:
    """A graph under construction: its nodes, constants, and the tensors that may be used next, with their shapes."""

    draw: object
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    pool: dict[str, tuple[int, ...]] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self):
        self.rng = np.random.default_rng(self.draw(st.integers(0, 2**16)))

    def pick(self, options):
        return self.draw(st.sampled_from(list(options)))

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def weight(self, *shape: int, positive: bool = False) -> str:
        same = [n for n, v in self.constants.items() if n[0] == "w" and v.shape == shape]
        if same and not positive and self.draw(st.integers(0, 9)) == 0:
            return self.pick(same)  # merged by the exporter, or shared on purpose
        name = f"w{len(self.constants)}"
        fan_in = max(int(np.prod(shape[1:])), 1)
        values = self.rng.standard_normal(shape) / np.sqrt(fan_in if len(shape) > 1 else 1)
        self.constants[name] = (np.abs(values) + 0.5 if positive else values).astype(np.float32)
        return name

    def ints(self, *values: int) -> str:
        name = f"i{len(self.constants)}"
        self.constants[name] = np.array(values, np.int64)
        return name

    def add(self, op: str, inputs: str, shape: tuple[int, ...] | None, **attributes) -> str:
        name = self.name()
        self.nodes.append(node(op, inputs, name, **attributes))
        if shape is not None:
            self.pool[name] = shape
        return name

    def any(self) -> tuple[str, tuple[int, ...]]:
        name = self.pick(self.pool)
        return name, self.pool[name]

    def like(self, shape: tuple[int, ...]) -> str | None:
        """Another tensor of the same shape."""
        same = [n for n, s in self.pool.items() if s == shape]
        return self.pick(same) if same else None


# -- moves over images [N, C, H, W]; N is dynamic, 2 in the shapes here -------------------------------------------


def conv(d: Draft):
    x, (n, c, h, w) = d.any()
    out = d.pick(_CHANNELS)
    group = d.pick([g for g in (1, 2, 4, c) if c % g == 0 and out % g == 0])
    kernel = d.pick([1, 3])
    pads = {"pads": [kernel // 2] * 4}
    bias = f" {d.weight(out)}" if d.pick([True, False]) else ""
    d.add("Conv", f"{x} {d.weight(out, c // group, kernel, kernel)}{bias}", (n, out, h, w), group=group, **pads)


def depthwise(d: Draft):
    x, (n, c, h, w) = d.any()
    d.add("Conv", f"{x} {d.weight(c, 1, 3, 3)}", (n, c, h, w), group=c, pads=[1] * 4)


def activation(d: Draft):
    x, shape = d.any()
    d.add(d.pick(["Relu", "Sigmoid", "Tanh", "HardSwish", "Abs"]), x, shape)


def batch_norm(d: Draft):
    x, shape = d.any()
    c = shape[1]
    d.add("BatchNormalization", f"{x} {d.weight(c)} {d.weight(c)} {d.weight(c)} {d.weight(c, positive=True)}", shape)


def scale(d: Draft):
    x, shape = d.any()
    d.add(d.pick(["Mul", "Add"]), f"{x} {d.weight(1, shape[1], 1, 1)}", shape)


def residual(d: Draft):
    x, shape = d.any()
    other = d.like(shape)
    d.add(d.pick(["Add", "Mul", "Max"]), f"{x} {other}", shape)


def concat(d: Draft):
    x, (n, c, h, w) = d.any()
    other = d.pick([m for m, s in d.pool.items() if (s[0], *s[2:]) == (n, h, w)])
    total = c + d.pool[other][1]
    if total <= 24:
        d.add("Concat", f"{x} {other}", (n, total, h, w), axis=1)


def split(d: Draft):
    x, (n, c, h, w) = d.any()
    at = d.draw(st.integers(1, c - 1))
    a, b = d.name(), d.name()
    d.nodes.append(node("Split", f"{x} {d.ints(at, c - at)}", f"{a} {b}", axis=1))
    for name, size in ((a, at), (b, c - at)):
        if size > 1:
            d.pool[name] = (n, size, h, w)


def slice_(d: Draft):
    x, (n, c, h, w) = d.any()
    step = d.pick([1, 1, 2, -1])
    start = d.draw(st.integers(0, c - 2))
    stop = d.draw(st.integers(start + 2, c))
    if step == -1:
        d.add("Slice", f"{x} {d.ints(-1)} {d.ints(-c - 1)} {d.ints(1)} {d.ints(-1)}", (n, c, h, w))
        return
    size = len(range(start, stop, step))
    if size > 1:
        d.add("Slice", f"{x} {d.ints(start)} {d.ints(stop)} {d.ints(1)} {d.ints(step)}", (n, size, h, w))


def gather(d: Draft):
    x, (n, c, h, w) = d.any()
    order = d.draw(st.lists(st.integers(0, c - 1), min_size=2, max_size=c))
    d.add("Gather", f"{x} {d.ints(*order)}", (n, len(order), h, w), axis=1)


def shuffle(d: Draft):
    x, (n, c, h, w) = d.any()
    groups = d.pick([g for g in (2, 3, 4) if c % g == 0] or [1])
    if groups > 1:
        a = d.add("Reshape", f"{x} {d.ints(0, groups, c // groups, h, w)}", None)
        b = d.add("Transpose", a, None, perm=[0, 2, 1, 3, 4])
        d.add("Reshape", f"{b} {d.ints(d.pick([0, -1]), c, h, w)}", (n, c, h, w))


def pad(d: Draft):
    x, (n, c, h, w) = d.any()
    before, after = d.draw(st.integers(0, 2)), d.draw(st.integers(0, 2))
    d.add("Pad", f"{x} {d.ints(0, before, 0, 0, 0, after, 0, 0)}", (n, c + before + after, h, w))


def squeeze_excite(d: Draft):
    x, shape = d.any()
    c, inner = shape[1], d.pick([2, 3, 4])
    a = d.add("GlobalAveragePool", x, None)
    b = d.add("Conv", f"{a} {d.weight(inner, c, 1, 1)}", None)
    e = d.add("Relu", b, None)
    f = d.add("Conv", f"{e} {d.weight(c, inner, 1, 1)}", None)
    g = d.add("Sigmoid", f, None)
    d.add("Mul", f"{x} {g}", shape)


def group_norm(d: Draft):
    x, shape = d.any()
    c = shape[1]
    groups = d.pick([g for g in (1, 2, 3, 4) if c % g == 0])
    d.add("GroupNormalization", f"{x} {d.weight(c)} {d.weight(c)}", shape, num_groups=groups)


def attention(d: Draft):
    """Channels as features, pixels as tokens: fused or separate projections, heads, residual."""
    x, (n, c, h, w) = d.any()
    heads, inner, value = d.pick([2, 3]), d.pick([2, 3]), d.pick([2, 3])
    flat = d.add("Reshape", f"{x} {d.ints(0, c, h * w)}", None)
    tokens = d.add("Transpose", flat, None, perm=[0, 2, 1])
    if d.pick([True, False]):
        tokens = d.add("LayerNormalization", f"{tokens} {d.weight(c)} {d.weight(c)}", None)
    parts = []
    for size in (inner, inner, value):
        projected = d.add("MatMul", f"{tokens} {d.weight(c, heads * size)}", None)
        apart = d.add("Reshape", f"{projected} {d.ints(0, h * w, heads, size)}", None)
        parts.append(d.add("Transpose", apart, None, perm=[0, 2, 1, 3]))
    _attend(d, x, (n, c, h, w), parts, heads * value)


def _attend(d: Draft, x, shape, parts, width):
    """Softmax attention of queries, keys and values [n, heads, pixels, size], projected and added to the image x."""
    n, c, h, w = shape
    keys = d.add("Transpose", parts[1], None, perm=[0, 1, 3, 2])
    weights = d.add("Softmax", d.add("MatMul", f"{parts[0]} {keys}", None), None)
    mixed = d.add("Transpose", d.add("MatMul", f"{weights} {parts[2]}", None), None, perm=[0, 2, 1, 3])
    joined = d.add("Reshape", f"{mixed} {d.ints(0, h * w, width)}", None)
    out = d.add("MatMul", f"{joined} {d.weight(width, c)}", None)
    image = d.add("Reshape", f"{d.add('Transpose', out, None, perm=[0, 2, 1])} {d.ints(0, c, h, w)}", None)
    d.add("Add", f"{x} {image}", (n, c, h, w))


def residual_block(d: Draft):
    """x + f(x): a bottleneck, sometimes with a block of its own inside, a gate, or a scale."""
    x, shape = d.any()
    c, inner = shape[1], d.pick([3, 4, 6])
    a = d.add("Conv", f"{x} {d.weight(inner, c, 1, 1)} {d.weight(inner)}", None)
    if d.pick([True, False]):
        b = d.add("Relu", a, None)
        e = d.add("Conv", f"{b} {d.weight(inner, inner, 3, 3)}", None, pads=[1] * 4)
        a = d.add("Add", f"{a} {e}", None)
    f = d.add(d.pick(["Relu", "Sigmoid"]), a, None)
    g = d.add("Conv", f"{f} {d.weight(c, inner, 1, 1)}", None)
    if d.pick([True, False]):
        g = d.add("Mul", f"{g} {d.weight(c, 1, 1)}", None)
    d.add("Add", d.pick([f"{x} {g}", f"{g} {x}"]), shape)


def parallel_block(d: Draft):
    """Two branches on one normalised input, added in either order."""
    x, shape = d.any()
    c = shape[1]
    normed = d.add("GroupNormalization", f"{x} {d.weight(c)} {d.weight(c)}", None, num_groups=1)
    branches = []
    for inner in (d.pick([3, 4]), d.pick([2, 5])):
        a = d.add("Relu", d.add("Conv", f"{normed} {d.weight(inner, c, 1, 1)}", None), None)
        branches.append(d.add("Conv", f"{a} {d.weight(c, inner, 1, 1)}", None))
    first, second, third = d.pick([(x, *branches), (*branches, x), (branches[0], x, branches[1])])
    d.add("Add", f"{d.add('Add', f'{first} {second}', None)} {third}", shape)


def grouped_query_attention(d: Draft):
    """Query heads that share keys and values, by Expand and Reshape; rotary halves on either."""
    x, (n, c, h, w) = d.any()
    groups, per, inner = d.pick([2, 3]), 2, d.pick([2, 4])
    flat = d.add("Reshape", f"{x} {d.ints(0, c, h * w)}", None)
    tokens = d.add("Transpose", flat, None, perm=[0, 2, 1])
    turned = d.pick([True, False])
    cosine, sine = d.weight(inner), d.weight(inner)
    parts = []
    for k, heads in enumerate((groups * per, groups, groups)):
        projected = d.add("MatMul", f"{tokens} {d.weight(c, heads * inner)}", None)
        apart = d.add("Reshape", f"{projected} {d.ints(0, h * w, heads, inner)}", None)
        part = d.add("Transpose", apart, None, perm=[0, 2, 1, 3])
        if turned and k < 2:
            half = inner // 2
            one = d.add("Slice", f"{part} {d.ints(0)} {d.ints(half)} {d.ints(3)}", None)
            two = d.add("Slice", f"{part} {d.ints(half)} {d.ints(inner)} {d.ints(3)}", None)
            other = d.add("Concat", f"{d.add('Neg', two, None)} {one}", None, axis=-1)
            part = d.add(
                "Add", f"{d.add('Mul', f'{part} {cosine}', None)} {d.add('Mul', f'{other} {sine}', None)}", None
            )
        if k:
            a = d.add("Unsqueeze", f"{part} {d.ints(2)}", None)
            b = d.add("Expand", f"{a} {d.ints(1, 1, per, 1, 1)}", None)
            part = d.add("Reshape", f"{b} {d.ints(0, groups * per, h * w, inner)}", None)
        parts.append(part)
    _attend(d, x, (n, c, h, w), parts, groups * per * inner)


def recurrent(d: Draft):
    """Pixels as a sequence through one layer, of one direction or both."""
    x, (n, c, h, w) = d.any()
    op, directions, hidden = d.pick(["LSTM", "GRU", "RNN"]), d.pick([1, 2]), d.pick([3, 4])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    flat = d.add("Reshape", f"{x} {d.ints(0, c, h * w)}", None)
    steps = d.add("Transpose", flat, None, perm=[2, 0, 1])
    w_, r = d.weight(directions, gates * hidden, c), d.weight(directions, gates * hidden, hidden)
    b = d.weight(directions, 2 * gates * hidden)
    attributes = {"direction": "bidirectional"} if directions == 2 else {}
    if op == "GRU":
        attributes["linear_before_reset"] = d.pick([0, 1])
    y = d.add(op, f"{steps} {w_} {r} {b}", None, hidden_size=hidden, **attributes)
    joined = d.add("Reshape", f"{d.add('Transpose', y, None, perm=[2, 1, 3, 0])} {d.ints(0, -1, h, w)}", None)
    d.pool[joined] = (n, directions * hidden, h, w)


def tokens_mlp(d: Draft):
    """Pixels as tokens: normalised over the channels, through a gated layer, and back, with or without a shortcut."""
    x, (n, c, h, w) = d.any()
    inner = d.pick([3, 4, 6])
    tokens = d.add("Transpose", x, None, perm=[0, 2, 3, 1])
    normed = d.add(d.pick(["LayerNormalization", "Identity"]), tokens, None)
    if d.nodes[-1].op_type == "LayerNormalization":
        d.nodes[-1].input.append(d.weight(c))
    gate = d.add("Sigmoid", d.add("MatMul", f"{normed} {d.weight(c, inner)}", None), None)
    up = d.add("MatMul", f"{normed} {d.weight(c, inner)}", None)
    down = d.add("MatMul", f"{d.add('Mul', f'{gate} {up}', None)} {d.weight(inner, c)}", None)
    if d.pick([True, False]):
        down = d.add("Add", f"{tokens} {down}", None)
    d.add("Transpose", down, (n, c, h, w), perm=[0, 3, 1, 2])


def up_and_down(d: Draft):
    x, (n, c, h, w) = d.any()
    out = d.pick(_CHANNELS)
    group = d.pick([g for g in (1, 2) if c % g == 0 and out % g == 0])
    a = d.add("ConvTranspose", f"{x} {d.weight(c, out // group, 2, 2)}", None, strides=[2, 2], group=group)
    d.add(d.pick(["MaxPool", "AveragePool"]), a, (n, out, h, w), kernel_shape=[2, 2], strides=[2, 2])


def einsum(d: Draft):
    x, (n, c, h, w) = d.any()
    out = d.pick(_CHANNELS)
    d.add("Einsum", f"{x} {d.weight(c, out)}", (n, out, h, w), equation="nchw,co->nohw")


def along_channels(d: Draft):
    """Operators whose result depends on the order or the sum of the channels."""
    x, shape = d.any()
    op = d.pick(["Softmax", "LpNormalization", "CumSum", "ArgMax"])
    if op == "ArgMax":
        best = d.add("Cast", d.add("ArgMax", x, None, axis=1), None, to=1)
        d.add("Add", f"{x} {best}", shape)
    elif op == "CumSum":
        d.constants["one"] = np.array(1, np.int64)
        d.add("CumSum", f"{x} one", shape)
    else:
        d.add(op, x, shape, axis=1)


def take_apart(d: Draft):
    """A chain of splits, slices and concatenations in another order."""
    x, (n, c, h, w) = d.any()
    first, second = (c + 1) // 2, c // 2
    a, b = d.name(), d.name()
    d.nodes.append(node("Split", x, f"{a} {b}", axis=1, num_outputs=2))
    e = d.add("Slice", f"{a} {d.ints(0)} {d.ints(d.pick([first, 2**31 - 1]))} {d.ints(1)}", None)
    d.add("Concat", f"{b} {d.add('Tanh', e, None)}", (n, first + second, h, w), axis=1)


def repeat(d: Draft):
    x, (n, c, h, w) = d.any()
    if c <= 8:
        times = d.pick([2, 3])
        if d.pick([True, False]):
            d.add("Tile", f"{x} {d.ints(1, times, 1, 1)}", (n, c * times, h, w))
        else:
            a = d.add("Unsqueeze", f"{x} {d.ints(2)}", None)
            b = d.add("Expand", f"{a} {d.ints(1, 1, times, 1, 1)}", None)
            d.add("Reshape", f"{b} {d.ints(0, c * times, h, w)}", (n, c * times, h, w))


def channel_pool(d: Draft):
    x, shape = d.any()
    a = d.add(d.pick(["ReduceMean", "ReduceMax", "ReduceSum"]), f"{x} {d.ints(1)}", None)
    d.add("Mul", f"{x} {a}", shape)


def depth_to_space_and_back(d: Draft):
    x, (n, c, h, w) = d.any()
    if c % 4 == 0 and c >= 8:
        a = d.add("DepthToSpace", x, None, blocksize=2, mode=d.pick(["DCR", "CRD"]))
        d.add("SpaceToDepth", a, (n, c, h, w), blocksize=2)


MOVES = (
    conv,
    conv,
    depthwise,
    activation,
    batch_norm,
    scale,
    residual,
    residual,
    concat,
    split,
    slice_,
    gather,
    shuffle,
    pad,
    squeeze_excite,
    group_norm,
    attention,
    repeat,
    channel_pool,
    depth_to_space_and_back,
    residual_block,
    residual_block,
    parallel_block,
    grouped_query_attention,
    recurrent,
    tokens_mlp,
    up_and_down,
    einsum,
    along_channels,
    take_apart,
)


@st.composite
def networks(draw, least: int = 2, most: int = 9) -> ModelProto:
    """A network over ``x[N, 3, 4, 4]``: a first convolution, random moves, and a linear layer over what they left."""
    d = Draft(draw)
    first = d.pick(_CHANNELS)
    d.pool["x"] = (2, 3, 4, 4)
    d.add("Conv", f"x {d.weight(first, 3, 1, 1)} {d.weight(first)}", (2, first, 4, 4))
    del d.pool["x"]
    for _ in range(draw(st.integers(least, most))):
        d.pick(MOVES)(d)
    last = list(d.pool)[-1]
    ends = {last, d.pick(d.pool)}
    scores = []
    for name in sorted(ends):
        pooled = d.add("GlobalAveragePool", name, None)
        flat = d.add("Flatten", pooled, None)
        scores.append(d.add("MatMul", f"{flat} {d.weight(d.pool[name][1], 5)}", None))
    d.nodes.append(node("Sum", " ".join(scores), "y"))
    return build(d.nodes, {"x": ["N", 3, 4, 4]}, ["y"], d.constants)
