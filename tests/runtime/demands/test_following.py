"""Sizes of dynamic axes that follow from the graph: what is bound runs, and what is taken by default would not."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from exporter import load
from runtime import feeds
from runtime.backends import SessionOptions, open_session
from runtime.demands.facts import FOLLOWED
from runtime.demands.following import demands_of, followed
from runtime.demands.settling import holds
from runtime.demands.terms import number_of
from runtime.errors import RunError
from tests.onnx_builder import build, ints, node, weights
from tests.rows.all import ROWS

IMAGE = ["N", "C", "H", "W"]
PATCHES = [node("Conv", "x k", "p", strides=[8, 8]), node("Shape", "p", "s"), node("Slice", "s zero two", "front"),
           node("Concat", "front rest", "t", axis=0), node("Reshape", "p t", "flat"),
           node("Transpose", "flat", "tokens", perm=[0, 2, 1])]  # fmt: skip
BATCH = [node("Shape", "x", "xs"), node("Gather", "xs none", "n"), node("Unsqueeze", "n zero", "n1"),
         node("Concat", "n1 rest rest", "want", axis=0), node("Shape", "want", "length"),
         node("ConstantOfShape", "length", "ones", value=onnx.helper.make_tensor("v", 7, [1], [1])),
         node("Mul", "ones rest", "minus"), node("Equal", "want minus", "same"),
         node("Where", "same ones want", "to"), node("Expand", "first to", "class"),
         node("Concat", "class tokens", "all", axis=1), node("Add", "all table", "y")]  # fmt: skip
PLACES = {"zero": ints(0), "two": ints(2), "rest": ints(-1), "none": np.int64(0)}
HEADS = {"num_heads": 4, "kv_num_heads": 2}
LENGTHS = [node("Shape", "mask", "ms"), node("Gather", "ms one", "m"), node("Cast", "m", "total", to=6),
           node("ReduceSum", "mask ones", "sum", keepdims=0), node("Sub", "sum ones", "less"),
           node("Cast", "less", "lengths", to=6), node("Gather", "table ids", "e"),
           node("MatMul", "e w", "q")]  # fmt: skip
CACHE = {"ids": ["batch", "seq"], "mask": ["batch", "total"], "past_k": ["batch", 2, "past", "dim"],
         "past_v": ["batch", 2, "past", "dim"]}  # fmt: skip
GROUPED = "com.microsoft::GroupQueryAttention"

ASKED = {
    "channels of a kernel": (
        [node("Relu", "x", "r"), node("Conv", "r k", "y")], {"x": IMAGE}, weights(k=(4, 3, 3, 3)),
        {"x": (2, 3, 224, 224)},
    ),
    "channels of grouped kernels": (
        [node("Conv", "x k", "y", group=5)], {"x": IMAGE}, weights(k=(10, 3, 3, 3)), {"x": (2, 15, 224, 224)},
    ),
    "channels last": (
        [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t k", "y")], {"x": IMAGE},
        weights(k=(4, 24, 3, 3)), {"x": (2, 16, 224, 24)},
    ),
    "channels of a norm": (
        [node("InstanceNormalization", "x s b", "y")], {"x": IMAGE}, weights(s=(6,), b=(6,)), {"x": (2, 6, 224, 224)},
    ),
    "an axis that is left out": (
        [node("Conv", "x k", "h", strides=[4, 4]), node("MaxPool", "h", "p", kernel_shape=[2, 2], strides=[2, 1]),
         node("Squeeze", "p two", "y")], {"x": IMAGE}, weights(k=(4, 3, 4, 4)) | {"two": ints(2)},
        {"x": (2, 3, 8, 224)},
    ),
    "rows of a weight": ([node("MatMul", "x w", "y")], {"x": ["N", "F"]}, weights(w=(7, 4)), {"x": (2, 7)}),
    "rows of a transposed weight": (
        [node("Gemm", "x w", "y", transB=1)], {"x": ["N", "F"]}, weights(w=(4, 7)), {"x": (2, 7)},
    ),
    "factors of a norm": (
        [node("LayerNormalization", "x s", "y")], {"x": ["N", "T", "F"]}, weights(s=(9,)), {"x": (2, 16, 9)},
    ),
    "inputs of a recurrent layer": (
        [node("GRU", "x w r - - h", "y", hidden_size=4)], {"x": ["T", "N", "F"], "h": [1, "M", "D"]},
        weights(w=(1, 12, 5), r=(1, 12, 4)), {"x": (2, 2, 5), "h": (1, 2, 4)},
    ),
    "a table of positions": (
        [node("Add", "x t", "y")], {"x": ["N", "T", 4]}, weights(t=(1, 33, 4)), {"x": (2, 33, 4)},
    ),
    "what is behind a table": (
        [node("Concat", "a x", "c", axis=1), node("Add", "c t", "y")], {"x": ["N", "T", 4], "a": ["N", 1, 4]},
        weights(t=(1, 33, 4)), {"x": (2, 32, 4), "a": (2, 1, 4)},
    ),
    "parts": (
        [node("Split", "x s", "y z", axis=1)], {"x": ["N", "F"]}, {"s": ints(5, 6)}, {"x": (2, 11)},
    ),
    "an axis that is baked in": (
        [node("Reshape", "x s", "y")], {"x": ["N", "T", 4]}, {"s": ints(2, 5, 4)}, {"x": (2, 5, 4)},
    ),
    "what an image is flattened to": (
        [node("Conv", "x k", "h", strides=[2, 2]), node("Flatten", "h", "f"), node("Gemm", "f w", "y")], {"x": IMAGE},
        weights(k=(2, 3, 2, 2), w=(2 * 7 * 7, 4)), {"x": (2, 3, 14, 14)},
    ),
    "patches of an image": (
        [*PATCHES, *BATCH], {"x": IMAGE},
        {**weights(k=(4, 3, 8, 8), first=(1, 1, 4), table=(1, 17, 4)), **PLACES}, {"x": (2, 3, 32, 32)},
    ),
    "a mask of the past, too": (
        [node("Concat", "past x", "all", axis=1), node("Mul", "all mask", "y")],
        {"x": ["N", "S", 4], "past": ["N", "P", 4], "mask": ["N", "T", 1]}, {},
        {"x": (2, 16, 4), "past": (2, 16, 4), "mask": (2, 32, 1)},
    ),
    "heads of a cache": (
        [*LENGTHS, node(GROUPED, "q - - past_k past_v lengths total", "y pk pv", **HEADS)], CACHE,
        {**weights(table=(9, 16), w=(16, 64)), "one": np.int64(1), "ones": ints(1)},
        {"ids": (1, 16), "mask": (1, 32), "past_k": (1, 2, 16, 8), "past_v": (1, 2, 16, 8)},
    ),
    "all heads": (
        [node("com.microsoft::MultiHeadAttention", "q q q - - b past_k past_v", "y pk pv", num_heads=4)],
        {"q": ["N", "S", 32], "b": [1, 1, "S", "T"], "past_k": ["N", "h", "P", "D"],
         "past_v": ["N", "h", "P", "D"]}, {},
        {"q": (2, 16, 32), "b": (1, 1, 16, 32), "past_k": (2, 4, 16, 8), "past_v": (2, 4, 16, 8)},
    ),
}  # fmt: skip


def made(row):
    nodes, inputs, constants, _ = row
    integers = {name: "i" for name in ("ids", "mask") if name in inputs and "ids" in inputs}
    made_of = {name for n in nodes for name in n.input}
    outputs = [name for n in nodes for name in n.output if name and name not in made_of]
    return build(nodes, inputs, outputs, constants, kinds=integers)


def ran(session, shapes, allowed):
    try:
        session.run(feeds.seeded(session.inputs, shapes, 0, allowed))
    except RunError:
        return False
    return True


@pytest.mark.parametrize("name", ASKED)
def test_sizes_follow_from_the_graph(name):
    model = made(ASKED[name])
    session, allowed = open_session(model.SerializeToString()), feeds.constraints(model.graph)
    demands = feeds.demands(model.graph, session.inputs)
    binding = feeds.bind(session.inputs, {}, asked=demands)
    assert binding.shapes == ASKED[name][3]
    assert ran(session, binding.shapes, allowed)
    assert not ran(session, feeds.bind(session.inputs, {}).shapes, allowed), "the default would have done"
    longer = feeds.longer(session.inputs, binding)
    assert longer.shapes != binding.shapes or name == "an axis that is baked in"
    assert ran(session, longer.shapes, allowed)


def test_a_past_is_read_by_several_samples_of_one_token():
    model = made(ASKED["heads of a cache"])
    session = open_session(model.SerializeToString())
    demands = feeds.demands(model.graph, session.inputs)
    one = feeds.bind(session.inputs, {}, asked=demands)
    assert feeds.longer(session.inputs, one).symbols == {"batch": 2, "seq": 1, "total": 18, "past": 17, "dim": 8}
    asked = feeds.bind(session.inputs, {}, asked=demands, batch=5)
    assert asked.symbols == {"batch": 5, "seq": 1, "total": 32, "past": 31, "dim": 8}
    assert ran(session, asked.shapes, feeds.constraints(model.graph))


def test_a_cache_of_a_window_holds_the_window():
    """And other layers as many tokens as fill it."""
    windowed = node(
        GROUPED, "q - - past_k past_v lengths total", "y pk pv", **HEADS, local_window_size=40, sliding_window_cache=1
    )
    whole = node(GROUPED, "q - - past_k2 past_v2 lengths total", "z pk2 pv2", **HEADS)
    more = {"past_k2": ["batch", 2, "long", "dim"], "past_v2": ["batch", 2, "long", "dim"]}
    constants = {**weights(table=(9, 16), w=(16, 64)), "one": np.int64(1), "ones": ints(1)}
    model = build(
        [*LENGTHS, windowed, whole], {**CACHE, **more}, ["y", "z"], constants, kinds={"ids": "i", "mask": "i"}
    )
    inputs = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    specs = [feeds.TensorSpec(name, np.dtype("f4"), tuple(dims)) for name, dims in inputs.items()]
    found = feeds.bind(specs, {}, asked=demands_of(model.graph, inputs)).symbols
    assert found == {"batch": 1, "seq": 16, "total": 64, "past": 40, "dim": 8, "long": 48}


def test_what_was_asked_for_stays():
    """Others follow it where they can, and a contradiction is left to whoever runs the model."""
    model = made(ASKED["a mask of the past, too"])
    session = open_session(model.SerializeToString())
    demands = feeds.demands(model.graph, session.inputs)
    found = feeds.bind(session.inputs, {"mask": (1, 50, 1), "x": (1, 3, 4)}, asked=demands)
    assert found.symbols == {"N": 1, "S": 3, "P": 47, "T": 50}
    asked = {"mask": (1, 50, 1), "x": (1, 3, 4), "past": (1, 4, 4)}
    assert feeds.bind(session.inputs, asked, asked=demands).shapes == asked


def test_sizes_that_meet_what_is_asked_stay():
    """An axis of one meets any; two inputs of one length keep it."""
    nodes = [node("Add", "x t", "h"), node("Mul", "h z", "y")]
    model = build(nodes, {"x": ["N", "T", 4], "z": ["M", "L", 4]}, ["y"], weights(t=(1, 1, 4)))
    session = open_session(model.SerializeToString())
    demands = feeds.demands(model.graph, session.inputs)
    assert feeds.bind(session.inputs, {}, asked=demands).shapes == feeds.bind(session.inputs, {}).shapes


def test_branches_ask_nothing():
    """They may never run."""
    inner = onnx.helper.make_graph(
        [node("MatMul", "x w", "t")], "then", [], [onnx.helper.make_tensor_value_info("t", 1, None)]
    )
    other = onnx.helper.make_graph(
        [node("Relu", "x", "e")], "else", [], [onnx.helper.make_tensor_value_info("e", 1, None)]
    )
    branches = node("If", "c", "y", then_branch=inner, else_branch=other)
    model = build([branches], {"x": ["N", "F"], "c": []}, ["y"], weights(w=(7, 4)), kinds={"c": "b"})
    assert demands_of(model.graph, {"x": ["N", "F"], "c": []}) == ()


def test_what_a_file_declares_helps_where_an_operator_is_not_known():
    nodes = [node("Tile", "x ones", "t"), node("MatMul", "t w", "y")]
    model = build(nodes, {"x": ["N", "F"]}, ["y"], {**weights(w=(7, 4)), "ones": ints(1, 1)})
    model.graph.ClearField("value_info")
    assert demands_of(model.graph, {"x": ["N", "F"]}) == ()
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("t", 1, ["N", "F"]))
    assert demands_of(model.graph, {"x": ["N", "F"]}) == ((("F", 7),),)


def test_terms_that_double_end():
    """Every node joins a tensor to itself along a dynamic axis: the term would have 2^60 symbols."""
    nodes = [node("Concat", f"x{k} x{k}", f"x{k + 1}", axis=0) for k in range(60)]
    model = build([*nodes, node("Add", "x60 t", "y")], {"x0": ["N", 4]}, ["y"], weights(t=(2, 4)))
    assert demands_of(model.graph, {"x0": ["N", 4]}) == ()


def test_sizes_that_take_gigabytes_are_not_tried():
    specs = [feeds.TensorSpec("x", np.dtype("f4"), ("N", "unknown", "H", "W"))]
    tried = feeds.bindings(specs, {})
    assert tried[0] == feeds.bind(specs, {})
    assert len(tried) > 1
    assert max(math.prod(t.shapes["x"]) for t in tried) < 1 << 26
    large = feeds.TensorSpec("z", np.dtype("f4"), (1 << 20, 1 << 10))
    assert [t.shapes["x"][1] for t in feeds.bindings([*specs, large], {})] == [feeds.PROFILES[0].other]


# -- what is followed is what runs ----------------------------------------------------------------------------------


def test_axes_are_those_of_every_operator(tmp_path):
    """Every row of the tests of operators, with all axes of its inputs dynamic."""
    wrong, checked = [], set()
    for row in ROWS:
        onnx.save(row.model, tmp_path / "m.onnx")
        graph = load(tmp_path / "m.onnx")
        shapes = {n: s for n, s in graph.binding.shapes.items() if s}
        sizes = {f"{n}:{k}": size for n, shape in shapes.items() for k, size in enumerate(shape)}
        inputs = {n: [f"{n}:{k}" for k in range(len(shape))] for n, shape in shapes.items()}
        facts = followed(graph.model.graph, inputs)
        wrong += [(row.name, demand) for demand in facts.demands if not holds(demand, sizes)]
        for proto in graph.model.graph.node:
            for name in proto.output:
                dims, shape = facts.dims.get(name), graph.shape(name) if name in graph.inferred.dims else None
                if dims is None or shape is None:
                    continue
                found = [number_of(d, sizes) for d in dims]
                same = len(found) == len(shape) and all(f in (None, n) for f, n in zip(found, shape, strict=True))
                wrong += [] if same else [(row.name, proto.op_type, name, found, shape)]
                checked |= {proto.op_type} if None not in found else set()
    assert not wrong
    assert len(checked & set(FOLLOWED)) > 100


def test_numbers_are_those_of_a_run():
    """Of every tensor of shape arithmetic in front of the patches of an image."""
    model = made(ASKED["patches of an image"])
    sizes = {"N": 2, "C": 3, "H": 32, "W": 32}
    facts = followed(model.graph, {"x": IMAGE})
    names = [name for n in model.graph.node for name in n.output if name in facts.numbers]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    session = open_session(model.SerializeToString(), options=SessionOptions(optimize=False))
    ran = session.run({"x": np.zeros((2, 3, 32, 32), np.float32)})
    assert len(names) >= 12
    for name in names:
        assert [number_of(n, sizes) for n in facts.numbers[name]] == ran[name].ravel().astype(int).tolist(), name
