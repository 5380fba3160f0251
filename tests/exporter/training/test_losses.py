"""What agreement is judged by: outputs, or what they are put together of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.model_file import from_model
from tests.exporter.calibration import networks
from tests.onnx_builder import build, node, weights

torch = pytest.importorskip("torch", reason="torch is not installed")


def detector(hidden=8):
    """Boxes of hundreds of pixels and scores below 1 in one tensor."""
    constants = weights(w=(3, hidden), boxes=(hidden, 4), scores=(hidden, 5)) | {"size": np.float32(100)}
    nodes = [
        node("MatMul", "x w", "h"), node("MatMul", "h boxes", "b"), node("Mul", "b size", "pixels"),
        node("MatMul", "h scores", "s"), node("Sigmoid", "s", "p"), node("Concat", "pixels p", "y", axis=2),
    ]  # fmt: skip
    return from_model(build(nodes, {"x": ["N", 20, 3]}, ["y"], constants))


def run(graph, module, names):
    inputs = {"x": torch.randn(6, 20, 3, generator=torch.Generator().manual_seed(0))}
    return module.run(inputs, names)


def test_boxes_and_scores_are_judged_each_by_its_own_variance():
    from exporter.autograd import to_torch
    from exporter.training.losses import make_loss
    from exporter.training.outputs import asked, judged

    graph = detector()
    outputs = judged(graph)
    assert [(o.name, o.form, o.weight) for o in outputs] == [("p", "values", 0.5), ("pixels", "values", 0.5)]
    names = asked(graph)
    assert set(names) == {"y", "p", "pixels"}
    with torch.no_grad():
        want = run(graph, to_torch(graph), names)
    wrong = dict(want) | {"p": 1 - want["p"]}
    loss = make_loss(graph, "auto", labelled=False)
    assert float(loss(want, want, {}, None)) == 0
    assert float(loss(wrong, want, {}, None)) > 0.5
    half = dict(want) | {"pixels": want["pixels"] + want["pixels"].std()}
    assert float(loss(half, want, {}, None)) == pytest.approx(0.5, rel=0.01)


def test_classes_and_single_tensors_are_judged_as_they_are():
    from exporter.training.outputs import judged

    nodes = [node("MatMul", "x w", "a"), node("Softmax", "a", "y"), node("Relu", "a", "r"),
             node("Unsqueeze", "r last", "z")]  # fmt: skip
    constants = weights(w=(3, 4)) | {"last": np.array([1], np.int64)}
    graph = from_model(build(nodes, {"x": ["N", 3]}, ["y", "z"], constants))
    assert [(o.name, o.form, o.weight) for o in judged(graph)] == [("y", "probabilities", 1.0), ("z", "values", 1.0)]
    assert [(o.name, o.form) for o in judged(detector(), "kl")] == [("y", "logits")]
    assert [o.name for o in judged(graph, output="z")] == ["z"]


def test_what_the_student_lacks_is_judged_as_a_whole():
    from exporter.training.outputs import judged

    teacher = detector()
    assert [o.name for o in judged(detector(6), teacher=teacher)] == ["p", "pixels"]
    other = from_model(
        build(
            [node("MatMul", "x w", "y")], {"x": ["N", 20, 3]}, ["y"], weights(w=(3, 9)),
        )
    )  # fmt: skip
    assert [o.name for o in judged(teacher, teacher=other)] == ["y"]
    model = onnx.ModelProto()
    model.CopyFrom(teacher.model)
    model.graph.node[-1].input[1] = "q"  # the parts are there, and are not those of this output
    model.graph.node.insert(0, node("Relu", "p", "q"))
    assert [o.name for o in judged(teacher, teacher=from_model(model))] == ["y"]


def test_what_is_as_long_as_what_was_found_is_judged_by_what_that_was_chosen_from():
    from exporter.training.losses import judged

    assert [o.name for o in judged(from_model(networks.finding_net()))] == ["s"]


def test_gradients_reach_the_scores_as_they_do_the_boxes():
    """Their derivatives are a hundredth of those of the boxes, and so were their scores of importance."""
    from exporter.autograd import to_torch
    from exporter.training.losses import probe
    from exporter.training.outputs import asked

    graph = detector()
    module = to_torch(graph)
    names, loss = asked(graph), probe(graph)
    loss(run(graph, module, names), {}, None, torch.Generator().manual_seed(1)).backward()
    sizes = {
        n: float((w * w.grad).square().mean().detach()) for n, w in module.weights.items() if n in ("boxes", "scores")
    }
    assert 0.01 < sizes["scores"] / sizes["boxes"] < 100


def test_a_student_is_asked_for_what_it_is_judged_by():
    from exporter.autograd import to_torch
    from exporter.training.targets import make_target

    graph = detector()
    target = make_target(graph, labelled=False, teacher=graph, device=torch.device("cpu"))
    assert set(target.names) == {"y", "p", "pixels"}
    module = to_torch(graph)
    with torch.no_grad():
        module.weights["scores"].neg_()
    loss, _ = target(module, {"x": torch.randn(6, 20, 3)}, None)
    assert float(loss.detach()) > 0.5


def head(*last, inputs=("N", 3, 6, 6), opset=21, seed=0, **constants):
    """A convolution to five channels, and what follows it."""
    nodes = [node("Conv", "x w", "c"), *last]
    held = {"w": 3 * weights(seed, w=(5, 3, 1, 1))["w"], **constants}
    return from_model(build(nodes, {"x": list(inputs)}, ["y"], held, opset=opset))


def pooled(opset=21, seed=0):
    """The head of SqueezeNet: probabilities of shape [N, 5, 1, 1]."""
    return head(node("GlobalAveragePool", "c", "p"), node("Softmax", "p", "y", axis=1), opset=opset, seed=seed)


def segmented(*moves, **constants):
    """Probabilities of every pixel, along the second axis of images that are wider than there are classes."""
    return head(node("Softmax", "c", "s" if moves else "y", axis=1), *moves, **constants)


AXES = {
    "squeezed": (pooled(), 1),
    "before operator set 13": (pooled(11), 1),
    "images": (segmented(), 1),
    "turned": (segmented(node("Transpose", "s", "y", perm=[0, 2, 3, 1])), 3),
    "reversed": (segmented(node("Transpose", "s", "y")), 2),
    "in a row": (segmented(node("Reshape", "s shape", "y"), shape=np.array([0, 5, -1], np.int64)), 1),
    "pixels first": (
        segmented(
            node("Transpose", "s", "t", perm=[0, 2, 3, 1]),
            node("Reshape", "t shape", "y"),
            shape=np.array([-1, 5], np.int64),
        ),
        1,
    ),
    "flat": (segmented(node("Flatten", "s", "y")), None),
    "cast": (segmented(node("Identity", "s", "i"), node("Cast", "i", "y", to=1)), 1),
    "all of an old one": (head(node("Softmax", "c", "y", axis=1), opset=11), None),
}


@pytest.mark.parametrize("what", AXES)
def test_the_axis_of_classes_is_that_of_the_softmax(what):
    from exporter.training.outputs import float_outputs

    graph, axis = AXES[what]
    assert [(o.form, o.axis) for o in float_outputs(graph)] == [("probabilities", axis)]


@pytest.mark.parametrize("make", [pooled, segmented])
def test_agreement_is_of_classes(make):
    from exporter.autograd import to_torch
    from exporter.training.losses import make_loss

    graph = make()
    x = {"x": torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))}
    module = to_torch(graph)
    with torch.no_grad():
        want = module.run(x)
        module.weights["w"].mul_(0.5)
        got = module.run(x)
    own, other = got["y"].log(), want["y"].log()
    divergence = (want["y"] * (other - own)).sum(1).mean()
    assert float(divergence) > 0.01
    assert float(make_loss(graph, "auto", False)(got, want, {}, None)) == pytest.approx(float(divergence), rel=1e-4)


def test_one_class_says_nothing():
    from exporter.errors import UsageError
    from exporter.training.losses import make_loss, probe

    graph = head(node("Softmax", "c", "y", axis=2), inputs=("N", 3, 1, 6))
    got = {"y": torch.ones(2, 5, 1, 6, requires_grad=True)}
    with pytest.raises(UsageError, match="no axis of two classes"):
        make_loss(graph, "auto", False)(got, got, {}, None)
    assert float(probe(graph)(got, {}, None, torch.Generator()).detach()) == 0


def test_chances_are_values_unless_asked():
    from exporter.training.losses import make_loss
    from exporter.training.outputs import judged

    graph = head(node("Sigmoid", "c", "y"))
    assert [[o.form for o in judged(graph, kind)] for kind in ("auto", "mse", "kl")] == [
        ["values"], ["values"], ["chances"],
    ]  # fmt: skip
    got, want = torch.tensor([[0.25]]), torch.tensor([[0.5]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert float(make_loss(graph, "kl", False)({"y": got}, {"y": want}, {}, None)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wide", [1, 8])
def test_a_teacher_of_another_shape_is_refused(wide):
    """One number for each sample would be broadcast."""
    from exporter.autograd import to_torch
    from exporter.errors import UsageError
    from exporter.training.targets import make_target

    student, teacher = (
        from_model(build([node("MatMul", "x w", "y")], {"x": ["N", 3]}, ["y"], weights(w=(3, n)))) for n in (4, wide)
    )
    target = make_target(student, labelled=False, teacher=teacher, device=torch.device("cpu"))
    with pytest.raises(UsageError, match=rf"shape \[6, 4\] in the model and \[6, {wide}\] in the teacher"):
        target(to_torch(student), {"x": torch.zeros(6, 3)}, None)


ODD = {"no axes": (), "one number": (1, 1), "one sample": (1, 3), "nothing": (2, 0), "a mask": (2, 3)}


@pytest.mark.parametrize("what", ODD)
def test_derivatives_of_odd_outputs_are_numbers(what):
    from exporter.training.losses import _probed, agreement
    from exporter.training.outputs import Output

    values = torch.ones(ODD[what]) + torch.rand(ODD[what])
    if what == "a mask":
        values[0, 0] = -torch.inf
    values.requires_grad_()
    if values.numel():
        _probed(Output("y", "values"), values, torch.Generator().manual_seed(0)).backward()
        assert torch.isfinite(values.grad).all()
        assert values.grad.any()
    assert float(agreement([Output("y", "values")])({"y": values}, {"y": values}, {}, None).detach()) == 0
