"""The torch module of a graph: names, exact write-back, training, and what it says of what it cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exporter import load  # noqa: E402
from exporter.autograd import Unsupported, to_torch, write_back  # noqa: E402
from exporter.errors import ModelError  # noqa: E402
from exporter.model_file import finished, from_model  # noqa: E402
from runtime.backends import open_session  # noqa: E402
from tests.onnx_builder import build, node, weights  # noqa: E402

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def cnn():
    return load(MODELS / "digits_cnn.onnx")


def test_parameters_have_the_names_of_the_initializers(cnn):
    module = to_torch(cnn)
    named = dict(module.named_parameters())
    assert set(named) == set(module.weights) <= set(cnn.constants)
    assert all(named[name] is weight for name, weight in module.weights.items())
    assert set(module.state_dict()) >= set(named)


def test_statistics_scalars_and_bounds_are_not_trained():
    constants = weights(w=(4, 4), g=(4,), b=(4,), m=(4,)) | {
        "v": np.ones(4, np.float32),
        "low": np.float32(0),
        "two": np.float32(2),
    }
    nodes = [node("MatMul", "x w", "h"), node("BatchNormalization", "h g b m v", "n"), node("Clip", "n low", "c"),
             node("Mul", "c two", "y")]  # fmt: skip
    assert set(to_torch(from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))).weights) == {"w", "g", "b"}


@pytest.mark.parametrize("through", [False, True])
def test_a_tensor_that_is_weight_and_statistic_becomes_two(through):
    """As exporters merge them: zeros are bias and mean, ones are scale and variance, maybe through an Identity."""
    constants = weights(w=(4, 4)) | {"one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)}
    nodes = [node("MatMul", "x w", "h"), node("Identity", "zero", "same"),
             node("BatchNormalization", f"h one {'same' if through else 'zero'} same one", "y")]  # fmt: skip
    graph = from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants))
    assert write_back(to_torch(graph), graph).model.SerializeToString() == graph.model.SerializeToString()
    module = to_torch(graph)
    assert set(module.weights) == {"w", "one", "zero"}
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    module(x).square().sum().backward()
    assert all(weight.grad.any() for weight in module.weights.values())
    with torch.no_grad():
        module.weights["zero"].add_(2)
        module.weights["one"].mul_(3)
    after = write_back(module, graph)
    norm = next(n for n in after.nodes if n.op == "BatchNormalization")
    assert [after.array(n).mean() for n in norm.inputs[1:] if n in after.constants][-2:] == [0, 1]
    found = open_session(finished(after).SerializeToString()).run({"x": x.numpy()})["y"]
    assert np.allclose(found, 3 * (x.numpy() @ constants["w"]) / np.sqrt(1 + 1e-5) + 2, atol=1e-5)
    assert np.allclose(found, module(x).detach().numpy(), atol=1e-5)


AWKWARD = ("a", "a.b", "a..c", "forward", ".lead", "weights", "é %.x", "training")


def test_any_name_will_do():
    """Names that torch does not allow, or has itself, are still found, trained and written back."""
    names = [f"m{k}" for k in range(len(AWKWARD))]
    nodes = [node("MatMul", f"{'x' if not k else names[k - 1]} w{k}", names[k]) for k in range(len(AWKWARD))]
    model = build(
        nodes, {"x": ["N", 4]}, [names[-1]], {f"w{k}": np.eye(4, dtype=np.float32) for k in range(len(AWKWARD))}
    )
    for k, name in enumerate(AWKWARD):
        model.graph.initializer[k].name = name
        model.graph.node[k].input[1] = name
    graph = from_model(model)
    module = to_torch(graph)
    assert set(module.weights) == set(AWKWARD)
    x = torch.randn(2, 4)
    assert torch.equal(module(x), x)
    with torch.no_grad():
        for weight in module.weights.values():
            weight.mul_(2)
    assert all(np.array_equal(write_back(module, graph).array(n), 2 * np.eye(4)) for n in AWKWARD)


def test_write_back_without_a_change_changes_no_byte(cnn):
    assert write_back(to_torch(cnn), cnn).model.SerializeToString() == cnn.model.SerializeToString()


@pytest.mark.parametrize("kind", ["f", "h"])
def test_write_back_is_exact(kind):
    dtype = {"f": np.float32, "h": np.float16}[kind]
    constants = {name: value.astype(dtype) for name, value in weights(w1=(4, 6), b=(6,), w2=(6, 3)).items()}
    nodes = [node("MatMul", "x w1", "p"), node("Add", "p b", "q"), node("Relu", "q", "r"), node("MatMul", "r w2", "y")]
    graph = from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants, kinds={"x": kind, "y": kind}))
    module = to_torch(graph)
    with torch.no_grad():
        module.weights["w1"].add_(0.25)
    after = write_back(module, graph)
    assert np.array_equal(after.array("w1"), (torch.from_numpy(constants["w1"]) + 0.25).numpy())
    assert after.array("b").tobytes() == constants["b"].tobytes()
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(dtype)
    found = open_session(finished(after).SerializeToString()).run({"x": x})["y"]
    assert np.allclose(module(torch.from_numpy(x)).detach().numpy(), found, atol=2e-3 if kind == "h" else 1e-5)


def test_a_weight_that_is_not_finite_is_not_written(cnn):
    module = to_torch(cnn)
    with torch.no_grad():
        next(iter(module.weights.values())).fill_(float("nan"))
    with pytest.raises(ModelError, match="no longer finite"):
        write_back(module, cnn)


def test_a_step_of_training_lowers_the_loss(cnn):
    """Any optimizer takes it; the result runs in ONNX Runtime."""
    held = np.load(MODELS / "digits.npz", allow_pickle=False)
    x, y = torch.from_numpy(held["x_train"][:64]), torch.from_numpy(held["y_train"][:64]).long()
    module = to_torch(cnn)
    with torch.no_grad():
        for weight in module.weights.values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        want = module(x)
    found = open_session(finished(write_back(module, cnn)).SerializeToString()).run({"image": x.numpy()})["logits"]
    assert np.abs(found - want.numpy()).max() < 1e-3


def test_inner_tensors(cnn):
    """Any tensor of the main graph can be asked for: what distillation compares."""
    inner = next(n.key for n in cnn.nodes if n.op == "Conv")
    found = to_torch(cnn).run({"image": torch.zeros(2, 1, 8, 8)}, [inner, "logits"])
    assert list(found) == [inner, "logits"]
    assert found[inner].shape[0] == 2


def test_nodes_can_be_tapped(cnn):
    """A factor on what one node reads."""
    module = to_torch(cnn)
    last = next(n for n in reversed(cnn.nodes) if n.op in ("Gemm", "MatMul"))
    x = torch.rand(2, 1, 8, 8)
    dense = module(x)
    module.before[last.key, 0] = lambda value: value * 0
    assert not torch.allclose(module(x), dense)
    assert torch.allclose(module(x)[0], module(x)[1])


def test_quantized_models_pass_gradients():
    """Through rounding, as if it were not there, within the range."""
    constants = weights(w=(4, 3)) | {"s": np.float32(0.1), "z": np.int8(0)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("MatMul", "d w", "y")]
    module = to_torch(from_model(build(nodes, {"x": ["N", 4]}, ["y"], constants)))
    x = torch.tensor([[0.1, 100.0, -0.52, 0.0]], requires_grad=True)
    module(x).sum().backward()
    assert torch.allclose(x.grad[0, [0, 2, 3]], module.weights["w"].sum(1)[[0, 2, 3]])
    assert x.grad[0, 1] == 0


UNKNOWN = {
    "operator": (
        [node("com.microsoft::GatherBlockQuantized", "w i s", "y", block_size=16)],
        "no differentiable implementation",
    ),
    "attribute": ([node("Relu", "x", "y", strange=1)], "attribute 'strange'"),
    "input": ([node("Relu", "x w", "y")], "input 1"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_unknown_is_refused_before_anything_runs(what):
    """By the node's name, the operator and what it asks for."""
    from exporter.autograd.registry import entry_of
    from exporter.graph import make_nodes

    nodes, message = UNKNOWN[what]
    graph = __import__("onnx").GraphProto(node=nodes)
    with pytest.raises(Unsupported, match=message) as caught:
        entry_of(make_nodes(graph, {"": 21, "com.microsoft": 1})[0])
    assert "node_y" in str(caught.value)


def test_autocast_of_a_resize():
    """Its products are narrower than what it is given, and made what that is."""
    nodes = [node("Conv", "x w", "h"), node("Resize", "h - s", "y", mode="linear")]
    constants = weights(w=(2, 1, 1, 1)) | {"s": np.array([1, 1, 2, 2], np.float32)}
    module = to_torch(from_model(build(nodes, {"x": ["N", 1, 4, 4]}, ["y"], constants)))
    x = torch.rand(2, 1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    found.float().square().sum().backward()
    assert torch.allclose(found.float(), module(x), atol=0.05)


def test_autocast_leaves_float16_alone():
    """torch does not mix it with bfloat16."""
    constants = {name: w.astype(np.float16) for name, w in weights(w=(4, 4), c=(1, 4)).items()}
    nodes = [node("MatMul", "x w", "h"), node("Concat", "h c", "y", axis=0)]
    module = to_torch(from_model(build(nodes, {"x": [2, 4]}, ["y"], constants, kinds={"x": "h", "y": "h"})))
    x = torch.rand(2, 4).half()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), module(x))
        assert module(x).dtype == torch.float16


def test_a_missing_input_and_a_wrong_shape_are_named(cnn):
    module = to_torch(cnn)
    with pytest.raises(ModelError, match="lacks the input 'image'"):
        module.run({})
    with pytest.raises(ModelError, match=r"Conv .* fails in torch: .*Its inputs are float32 \[2, 3, 8, 8\]"):
        module(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ModelError, match="no tensor 'nothing'"):
        module.run({"image": torch.zeros(1, 1, 8, 8)}, ["nothing"])


def test_rotary_tables_are_not_trained():
    angle = np.outer(np.arange(7), [1, 0.1, 0.01]).astype(np.float32)
    constants = weights(w=(6, 6)) | {"cos": np.cos(angle), "sin": np.sin(angle)}
    nodes = [node("MatMul", "x w", "h"), node("Split", "h", "a b", axis=1, num_outputs=2), node("Mul", "a cos", "c"),
             node("Mul", "b sin", "d"), node("Sub", "c d", "y")]  # fmt: skip
    assert set(to_torch(from_model(build(nodes, {"x": [7, 6]}, ["y"], constants))).weights) == {"w"}


@pytest.mark.slow
def test_compiled(cnn):
    module = to_torch(cnn)
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(torch.compile(module, backend="eager")(x), module(x), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 64), (2, 64, 1)])
def test_signals_with_and_without_an_axis_of_parts(shape):
    """torch's exporter writes STFT on [batch, length], which the standard does not have and ONNX Runtime takes."""
    window = {"step": np.int64(8), "window": np.hanning(16).astype(np.float32)}
    model = build([node("STFT", "x step window", "y")], {"x": ["N", *shape[1:]]}, ["y"], window, opset=17)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    want = open_session(model.SerializeToString()).run({"x": x})["y"]
    module = to_torch(from_model(model))
    assert not module.weights  # a window is no weight
    np.testing.assert_allclose(module.run({"x": torch.from_numpy(x)})["y"].numpy(), want, atol=1e-5)
