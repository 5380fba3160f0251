"""What agreement is judged by: outputs, or what they are put together of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.model_file import from_model
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
    from exporter.training.losses import asked, judged, make_loss

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
    from exporter.training.losses import judged

    nodes = [node("MatMul", "x w", "a"), node("Softmax", "a", "y"), node("Relu", "a", "r"),
             node("Unsqueeze", "r last", "z")]  # fmt: skip
    constants = weights(w=(3, 4)) | {"last": np.array([1], np.int64)}
    graph = from_model(build(nodes, {"x": ["N", 3]}, ["y", "z"], constants))
    assert [(o.name, o.form, o.weight) for o in judged(graph)] == [("y", "probabilities", 1.0), ("z", "values", 1.0)]
    assert [(o.name, o.form) for o in judged(detector(), "kl")] == [("y", "logits")]
    assert [o.name for o in judged(graph, output="z")] == ["z"]


def test_what_the_student_lacks_is_judged_as_a_whole():
    from exporter.training.losses import judged

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


def test_gradients_reach_the_scores_as_they_do_the_boxes():
    """Their derivatives are a hundredth of those of the boxes, and so were their scores of importance."""
    from exporter.autograd import to_torch
    from exporter.training.losses import asked, probe

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
