"""Broken models: bytes of a file changed at random, and graphs changed as a writer of files may get them wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Mutation = Callable[[random.Random, ModelProto], None]
MUTATIONS: dict[str, Mutation] = {}
HUGE = (1 << 31, 1 << 40, (1 << 63) - 1)


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def mutated(rng: random.Random, model: ModelProto) -> tuple[str, bytes]:
    """What was done, and the bytes of the file."""
    copy = ModelProto.FromString(model.SerializeToString())
    names = rng.sample(sorted(MUTATIONS), rng.choice((0, 1, 1, 1, 2)))
    for name in names:
        MUTATIONS[name](rng, copy)
    data = bytearray(copy.SerializeToString())
    if not names or rng.random() < 0.1:
        names = [*names, _damage(rng, data)]
    return " + ".join(names), bytes(data)


def _damage(rng: random.Random, data: bytearray) -> str:
    kind = rng.choice(("flip", "cut", "repeat", "insert"))
    place = rng.randrange(len(data))
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 3, 10))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[place : None if rng.random() < 0.5 else place + rng.randrange(1, 40)]
    elif kind == "repeat":
        data[place:place] = data[place : place + rng.randrange(1, 200)]
    else:
        data[place:place] = rng.randbytes(rng.randrange(1, 20))
    return f"{kind} at {place}"


def _node(rng: random.Random, model: ModelProto) -> NodeProto:
    return rng.choice(model.graph.node)


def _tensor(rng: random.Random, model: ModelProto) -> TensorProto:
    return rng.choice(model.graph.initializer) if model.graph.initializer else model.graph.initializer.add(name="t")


def _names(model: ModelProto) -> list[str]:
    return [n for node in model.graph.node for n in (*node.input, *node.output) if n]


@mutation
def dangling_input(rng, model):
    node = _node(rng, model)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(("nowhere", "", "\0", "x" * 1000))


@mutation
def other_input(rng, model):
    node = _node(rng, model)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(_names(model))


@mutation
def other_output(rng, model):
    node = _node(rng, model)
    if node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(_names(model))


@mutation
def fewer_inputs(rng, model):
    node = _node(rng, model)
    del node.input[rng.randrange(len(node.input) + 1) :]


@mutation
def more_inputs(rng, model):
    _node(rng, model).input.extend(rng.choices(_names(model), k=rng.randrange(1, 4)))


@mutation
def node_twice(rng, model):
    model.graph.node.append(_node(rng, model))


@mutation
def node_gone(rng, model):
    model.graph.node.remove(_node(rng, model))


@mutation
def nodes_in_another_order(rng, model):
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


@mutation
def other_operator(rng, model):
    _node(rng, model).op_type = rng.choice(
        ("Add", "MatMul", "Conv", "Gemm", "Reshape", "Transpose", "Split", "Gather", "Softmax", "Loop", "Nothing", "")
    )


@mutation
def other_domain(rng, model):
    _node(rng, model).domain = rng.choice(("com.microsoft", "ai.onnx.ml", "nobody", "ai.onnx"))


@mutation
def other_attribute(rng, model):
    node = _node(rng, model)
    if node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i, attribute.f = rng.choice((-1, 0, 1 << 40, -(1 << 63))), rng.choice((float("nan"), 1e38))
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((-1, 0, 7, 1 << 40))


@mutation
def strange_attribute(rng, model):
    name = rng.choice(("axis", "perm", "group", "pads", "strides", "kernel_shape", "to", "transB", "num_outputs"))
    value = rng.choice((-1, 99, 1 << 40, [1 << 40], [0, 0], "text", 0.5))
    node = _node(rng, model)
    for old in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(old)
    node.attribute.append(helper.make_attribute(name, value))


@mutation
def attribute_type(rng, model):
    node = _node(rng, model)
    if node.attribute:
        rng.choice(node.attribute).type = rng.choice(AttributeProto.AttributeType.values())


@mutation
def wrong_shape(rng, model):
    tensor = _tensor(rng, model)
    if tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, 1, 3, -1, *HUGE))


@mutation
def other_rank(rng, model):
    tensor = _tensor(rng, model)
    tensor.dims.append(1) if rng.random() < 0.5 or not tensor.dims else tensor.dims.pop()


@mutation
def wrong_type(rng, model):
    _tensor(rng, model).data_type = rng.choice((0, 1, 6, 7, 9, 10, 11, 16, 21, 99))


@mutation
def not_numbers(rng, model):
    tensor = _tensor(rng, model)
    if (
        tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) < 1 << 20
    ):  # another mutation may have been here
        values = np.full(tuple(tensor.dims), rng.choice((np.nan, np.inf, -np.inf, 3e38)), np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@mutation
def empty_tensor(rng, model):
    tensor = _tensor(rng, model)
    tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type or 1, dims=[0]))


@mutation
def same_name(rng, model):
    _tensor(rng, model).name = rng.choice(_names(model))


@mutation
def outside_the_folder(rng, model):
    tensor = _tensor(rng, model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    place = rng.choice(("/etc/passwd", "../secret", "model.onnx", "", "a\0b", "nowhere", "."))
    tensor.external_data.add(key="location", value=place)
    tensor.external_data.add(key="offset", value=rng.choice(("0", "-1", "x", str(1 << 62))))


@mutation
def declared_size(rng, model):
    value = rng.choice([*model.graph.input, *model.graph.output])
    for dim in value.type.tensor_type.shape.dim:
        if rng.random() < 0.5:
            dim.dim_value = rng.choice((-5, 0, 1, 3, 100, *HUGE))


@mutation
def declared_type(rng, model):
    value = rng.choice([*model.graph.input, *model.graph.output])
    value.type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 10, 99))


@mutation
def output_of_nothing(rng, model):
    model.graph.output.append(helper.make_tensor_value_info(rng.choice(("nowhere", *_names(model))), 1, None))


@mutation
def versions(rng, model):
    model.opset_import[0].version = rng.choice((-1, 0, 6, 7, 12, 19, 99, 1 << 40))
    model.ir_version = rng.choice((0, 2, 3, 8, 99))


@mutation
def bomb(rng, model):
    size = rng.choice(((1 << 40,), (1 << 20, 1 << 20), (1 << 62,)))
    model.graph.initializer.append(numpy_helper.from_array(np.array(size, np.int64), "bomb.size"))
    first, name = model.graph.node[0], model.graph.node[0].input[0] if model.graph.node[0].input else ""
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["bomb.size"], ["bomb"]))
    model.graph.node.insert(1, helper.make_node("ReduceMax", ["bomb"], ["bomb.top"], keepdims=0))
    model.graph.node.insert(2, helper.make_node("Add", [name, "bomb.top"], ["bomb.sum"]))
    if first.input:
        model.graph.node[3].input[0] = "bomb.sum"


@mutation
def recursive_function(rng, model):
    again = helper.make_node("f", ["a"], ["b"], domain="local")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    nodes = [again, helper.make_node("f", ["b"], ["c"], domain="local")]
    model.functions.append(helper.make_function("local", "f", ["a"], ["c"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node("f", [rng.choice(_names(model))], ["f.out"], domain="local"))


@mutation
def deep_nesting(rng, model):
    graph = helper.make_graph(
        [helper.make_node("Identity", [rng.choice(_names(model))], ["inner"])],
        "deep",
        [],
        [helper.make_tensor_value_info("inner", 1, None)],
    )
    for k in range(rng.choice((3, 10, 20))):
        node = helper.make_node(
            "If", ["deep.yes"], [f"deep{k}"], then_branch=graph, else_branch=graph if k < 4 else None
        )
        graph = helper.make_graph([node], "deep", [], [helper.make_tensor_value_info(f"deep{k}", 1, None)])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "deep.yes"))
    model.graph.node.extend(graph.node)


def seeds() -> list[ModelProto]:
    """Small models to start from."""
    from tests.exporter.files import mlp, wide
    from tests.rows.networks import ROWS

    return [mlp(), wide(), *(row.model for row in ROWS[:6])]


def parsed(data: bytes) -> bool:
    """Whether onnx itself accepts the bytes."""
    try:
        onnx.checker.check_model(data, full_check=True)
    except Exception:
        return False
    return True
