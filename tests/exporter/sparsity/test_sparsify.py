"""The command and the function behind it: what is written has the pattern, and little else has changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from exporter import GoalError, ModelError, load
from exporter.cli import main
from exporter.sparsity import selection
from exporter.sparsity.patterns import SCHEDULES
from exporter.sparsity.sparsifier import sparsify
from runtime import bounds
from tests.exporter.calibration import networks
from tests.exporter.files import run, write, write_outside
from tests.onnx_builder import build, node, weights

MODELS = Path(__file__).parents[3] / "models"
DIGITS = f"{MODELS / 'digits.npz'}:train"


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    monkeypatch.setattr("exporter.commands.console.QUIET_SECONDS", float("inf"))


@pytest.fixture
def cli(capsys):
    def call(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def accuracy(path):
    data = np.load(MODELS / "digits.npz")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["logits"], {session.get_inputs()[0].name: data["x_test"].astype(np.float32)})
    return float((scores.argmax(-1) == data["y_test"]).mean())


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
@pytest.mark.parametrize("model", ["digits_cnn", "digits_vit"])
def test_what_is_written_has_the_pattern(tmp_path, cli, model, pattern):
    source, target = MODELS / f"{model}.onnx", tmp_path / "out.onnx"
    code, out, _ = cli("sparsify", source, "-o", target, "--pattern", pattern)
    assert code == 0
    assert "byte for byte" in out
    assert target.stat().st_size == source.stat().st_size
    assert cli("verify", target, "--pattern", pattern)[0] == 0
    assert cli("verify", source, "--pattern", pattern)[0] == 1
    before, after = load(source), load(target)
    changed = [n for n in before.constants if not np.array_equal(before.array(n), after.array(n))]
    assert changed
    for name in changed:  # what is not zero is as it was
        old, new = before.array(name), after.array(name)
        assert (new[new != 0] == old[new != 0]).all()


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_narrow_types(tmp_path, cli, dtype):
    from ml_dtypes import bfloat16

    kind = bfloat16 if dtype == "bfloat16" else dtype
    wide = weights(w=(16, 8))["w"]
    number = onnx.TensorProto.BFLOAT16 if dtype == "bfloat16" else onnx.TensorProto.FLOAT16
    nodes = [node("Cast", "w", "v", to=1), node("MatMul", "x v", "y")]
    model = build(nodes, {"x": ["N", 16]}, ["y"], {"w": wide.astype(np.float16)})
    tensor = numpy_helper.from_array(wide.astype(kind), "w")
    tensor.data_type = number
    model.graph.initializer[0].CopyFrom(tensor)
    source = write(model, tmp_path)
    assert cli("sparsify", source, "-o", tmp_path / "out.onnx")[0] == 0
    found = load(tmp_path / "out.onnx").array("w")
    order = np.sort(np.abs(wide.astype(kind).astype(np.float32)).reshape(4, 4, 8), axis=1)
    assert np.isclose(np.abs(found.astype(np.float32)).sum(), order[:, 2:].sum(), rtol=1e-3)
    assert cli("verify", tmp_path / "out.onnx", "--pattern", "2:4")[0] == 0


def test_weights_outside_the_file(tmp_path, cli):
    model = build([node("MatMul", "x w", "y")], {"x": ["N", 16]}, ["y"], weights(w=(16, 8)))
    source = write_outside(model, tmp_path)
    assert cli("sparsify", source, "-o", tmp_path / "out.onnx")[0] == 0
    assert cli("verify", tmp_path / "out.onnx", "--pattern", "2:4")[0] == 0
    assert (load(source).array("w") != 0).all()


def converted(model):
    """To fp16, as a converter does it."""
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model


def quantized(model):
    """Weights in eight bits behind DequantizeLinear, with a zero point."""
    nodes = []
    for proto in model.graph.node:
        if proto.op_type in ("Conv", "Gemm", "MatMul"):
            name = proto.input[1]
            tensor = next(t for t in model.graph.initializer if t.name == name)
            values = numpy_helper.to_array(tensor)
            scale = np.float32((values.max() - values.min()) / 255)
            zero = np.uint8(np.round(-values.min() / scale))
            codes = np.clip(np.round(values / scale) + zero, 0, 255).astype(np.uint8)
            tensor.CopyFrom(numpy_helper.from_array(codes, name))
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"{name}.scale"))
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), f"{name}.zero"))
            nodes.append(node("DequantizeLinear", f"{name} {name}.scale {name}.zero", f"{name}.wide"))
            proto.input[1] = f"{name}.wide"
        nodes.append(proto)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


@pytest.mark.parametrize("convert", [converted, quantized])
def test_the_pattern_survives_conversion_and_one_broken_run_does_not_pass(tmp_path, cli, convert):
    source = write(networks.residual_mlp(), tmp_path)
    assert cli("sparsify", source, "-o", tmp_path / "sparse.onnx")[0] == 0
    model = convert(onnx.load(tmp_path / "sparse.onnx"))
    onnx.save(model, tmp_path / "other.onnx")
    code, out, _ = cli("verify", tmp_path / "other.onnx", "--pattern", "2:4")
    assert code == 0, out
    tensor = next(t for t in model.graph.initializer if t.name == "w2")
    values = numpy_helper.to_array(tensor).copy()
    values[:4, 0] = 77
    tensor.CopyFrom(numpy_helper.from_array(values, "w2"))
    onnx.save(model, tmp_path / "other.onnx")
    code, out, _ = cli("verify", tmp_path / "other.onnx", "--pattern", "2:4", "--allow-dense")
    assert code == 1
    assert "1 of 160 runs breaks 2:4" in out
    assert cli("verify", tmp_path / "other.onnx", "--pattern", "2:4", "--keep", "w2")[0] == 0


# -- calibrated -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The digits transformer at 2:4 by each method, and what was said of it."""
    folder = tmp_path_factory.mktemp("vit")
    options = {"fitted": {}, "wanda": {"method": "wanda", "refit": False}}
    return {
        name: sparsify(MODELS / "digits_vit.onnx", folder / f"{name}.onnx", calib=DIGITS, calib_samples=128, **more)
        for name, more in options.items()
    }


def test_fitted_keeps_the_accuracy_that_magnitude_loses(tmp_path, vit):
    plain = sparsify(MODELS / "digits_vit.onnx", tmp_path / "plain.onnx")
    dense, largest, fitted = (accuracy(p) for p in (MODELS / "digits_vit.onnx", plain.output, vit["fitted"].output))
    assert largest < dense - 0.05
    assert fitted > dense - 0.01


def test_what_is_said_is_measured(cli, vit):
    found = vit["fitted"]
    assert found.held.error < 0.2 * found.held.plain
    assert found.held.samples == 16
    assert found.held.agreement >= 0.9
    assert found.unchanged
    assert all(x.fit.error <= x.fit.plain for x in found.layers)
    assert {x.fit.method for x in found.layers} == {"obs"}
    assert found.layers[3].after == 0.5
    assert cli("verify", found.output, "--pattern", "2:4")[0] == 0


def test_without_a_refit_weights_stay_as_they_are(vit):
    before, after = load(MODELS / "digits_vit.onnx"), load(vit["wanda"].output)
    largest = 0
    for layer in vit["wanda"].layers:
        old, new = before.array(layer.weight.name), after.array(layer.weight.name)
        assert (new[new != 0] == old[new != 0]).all()
        largest += np.abs(new).sum() == pytest.approx(layer.kept * np.abs(old).sum(), rel=1e-4)
        assert layer.fit.damping is None
    assert largest == len(vit["wanda"].layers)


def inputs(count=96):
    return [{"x": v[None]} for v in np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32)]


def test_a_limit_lets_harmful_layers_stay_dense(tmp_path):
    source = write(networks.residual_mlp(), tmp_path)
    free = sparsify(source, tmp_path / "out.onnx", calib=inputs())
    limit = free.held.error / 3
    found = sparsify(source, tmp_path / "out.onnx", calib=inputs(), max_drop=limit)
    assert found.held.error <= limit
    dense = [x.weight.name for x in found.left if "--max-drop" in x.reason]
    assert 0 < len(dense) < len(free.layers)
    before, after = load(source), load(found.output)
    assert all((before.array(n) == after.array(n)).all() for n in dense)


def test_a_limit_out_of_reach_writes_nothing(tmp_path):
    source = write(networks.residual_mlp(), tmp_path)
    with pytest.raises(GoalError, match="--max-drop 1e-09 cannot be met"):
        sparsify(source, tmp_path / "out.onnx", calib=inputs(), max_drop=1e-9, pattern="1:4")
    assert not (tmp_path / "out.onnx").exists()


def test_all_at_once(tmp_path, cli):
    """Reordered, fitted, written, checked."""
    target = tmp_path / "out.onnx"
    code, out, _ = cli("sparsify", MODELS / "digits_vit.onnx", "-o", target, "--permute", "--calib", DIGITS,
                       "--calib-samples", "64", "--only", "blocks.0.[ud]*", "--json", tmp_path / "r.json")  # fmt: skip
    assert code == 0
    assert "reordered" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["permutation"]["after"] > report["permutation"]["before"]
    assert {w["chosen_by"] for w in report["weights"]} == {"obs"}
    assert accuracy(target) > 0.95
    assert cli("verify", target, "--pattern", "2:4", "--only", "blocks.0.[ud]*")[0] == 0


def test_codes_of_many_elements(tmp_path):
    """A zero point for each column, and more elements than are looked at in one piece."""
    rng = np.random.default_rng(0)
    zeros = rng.integers(100, 150, 640).astype(np.uint8)
    codes = np.where(rng.random((512, 640)) < 0.9, rng.integers(151, 255, (512, 640)), zeros).astype(np.uint8)
    nodes = [node("DequantizeLinear", "q s z", "w", axis=1), node("MatMul", "x w", "y")]
    constants = {"q": codes, "s": np.full(640, 0.01, np.float32), "z": zeros}
    found = sparsify(write(build(nodes, {"x": ["N", 512]}, ["y"], constants), tmp_path), tmp_path / "out.onnx")
    (layer,) = found.layers
    after = load(found.output).array("q")
    assert ((after == codes) | (after == zeros)).all()
    assert layer.before == pytest.approx((codes == zeros).mean())
    assert layer.after == pytest.approx((after == zeros).mean())
    assert layer.kept == pytest.approx((after - zeros.astype(float)).sum() / (codes - zeros.astype(float)).sum())


# -- unstructured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_share_of_zeros(tmp_path, cli, scope):
    target = tmp_path / "out.onnx"
    assert cli("sparsify", MODELS / "digits_cnn.onnx", "-o", target, "--pattern", "0.8", "--scope", scope)[0] == 0
    _, out, _ = cli("inspect", target, "--sparsity", "--json", "-")
    zeros = {w["weight"]: (w["zeros"], int(np.prod(w["shape"]))) for w in json.loads(out)["weights"]}
    assert sum(z * n for z, n in zeros.values()) / sum(n for _, n in zeros.values()) == pytest.approx(0.8, abs=1e-4)
    equal = all(abs(z - 0.8) < 0.5 / n + 1e-9 for z, n in zeros.values())
    assert equal == (scope == "local")


def test_sparse_storage_is_smaller_and_gives_the_same(tmp_path, cli):
    paths = {kind: tmp_path / f"{kind}.onnx" for kind in ("dense", "sparse")}
    for kind, path in paths.items():
        assert cli("sparsify", MODELS / "digits_cnn.onnx", "-o", path, "--pattern", "0.9", "--storage", kind)[0] == 0
    assert paths["sparse"].stat().st_size < 0.45 * paths["dense"].stat().st_size
    assert len(onnx.load(paths["sparse"]).graph.sparse_initializer) > 5
    feeds = {"image": np.load(MODELS / "digits.npz")["x_test"][:8].astype(np.float32)}
    dense, sparse = (run(p, feeds)["logits"] for p in paths.values())
    assert (dense == sparse).all()
    one, other = (load(p) for p in paths.values())  # and every other command can read it
    assert all(np.array_equal(one.array(n), other.array(n)) for n in one.constants)


def test_sparse_storage_of_a_model_that_returns_a_sequence(tmp_path):
    nodes = [node("MatMul", "x w", "a"), node("SequenceConstruct", "a a", "y")]
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", 1, [2, 64])],
        [onnx.helper.make_tensor_sequence_value_info("y", 1, None)],
        [numpy_helper.from_array(weights(w=(64, 64))["w"], "w")],
    )  # fmt: skip
    source = write(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), tmp_path
    )
    result = sparsify(source, tmp_path / "out.onnx", pattern="0.9", storage="sparse")
    assert "1 weight is a sparse initializer" in result.notes[0]
    assert result.after == (tmp_path / "out.onnx").stat().st_size < result.before


def test_nothing_is_written_where_sparse_storage_cannot_be_judged(tmp_path, monkeypatch):
    def fails(*_):
        raise ModelError("out of memory")

    monkeypatch.setattr("exporter.sparsity.writing.same_outputs", fails)
    source = write(build([node("MatMul", "x w", "y")], {"x": ["N", 64]}, ["y"], weights(w=(64, 64))), tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(ModelError, match="out of memory"):
        sparsify(source, source, pattern="0.9", storage="sparse")
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("ir", "pattern", "why"), [(5, "0.9", "IR version 5"), (10, "0.5", "no weight has zeros enough")]
)
def test_storage_that_does_not_pay_says_so(tmp_path, cli, ir, pattern, why):
    model = build([node("MatMul", "x w", "y")], {"x": ["N", 16]}, ["y"], weights(w=(16, 8)), ir=ir, opset=10)
    target = tmp_path / "out.onnx"
    code, out, _ = cli("sparsify", write(model, tmp_path), "-o", target, "--pattern", pattern, "--storage", "sparse")
    assert code == 0
    assert f"stored dense: {why}" in out
    assert not onnx.load(tmp_path / "out.onnx").graph.sparse_initializer


@pytest.mark.parametrize("method", ["obs", "magnitude", "taylor"])
def test_a_schedule_fits_in_between(tmp_path, method):
    if method == "taylor":
        pytest.importorskip("torch")
    source = write(networks.residual_mlp(), tmp_path)
    errors = {}
    for schedule in SCHEDULES:
        how = {"method": method, "schedule": schedule, "scope": "global"}
        found = sparsify(source, tmp_path / "o.onnx", pattern="0.6", calib=inputs(512), **how)
        errors[schedule] = found.held.error
        assert found.zeros / found.parameters == pytest.approx(0.6, abs=2e-3)
        assert found.held.error < found.held.plain
    assert len(set(errors.values())) == len(SCHEDULES)


@pytest.mark.parametrize("pattern", ["2:4", "0.5"])
def test_gradients_choose(tmp_path, cli, pattern):
    """Half of the units of a hidden layer are read by nobody: their weights go first, large as they are."""
    pytest.importorskip("torch")
    constants = networks.scaled(w1=(8, 16), w2=(16, 5))
    if pattern == "2:4":  # the first two inputs of each run tell the output nothing
        constants["w1"][[0, 1, 4, 5]] *= 10
        dead = np.s_[[0, 1, 4, 5]]
    else:
        constants["w1"][:, :8] *= 10
        constants["w2"][:8] = 0
        dead = np.s_[:, :8]
    model = build([node("MatMul", "x w1", "h"), node("Relu", "h", "a"), node("MatMul", "a w2", "y")], {"x": ["N", 8]},
                  ["y"], constants)  # fmt: skip
    feeds = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    feeds[:, [0, 1, 4, 5]] *= 0 if pattern == "2:4" else 1
    np.savez(tmp_path / "d.npz", x=feeds)
    source, target = write(model, tmp_path), tmp_path / "o.onnx"
    for method, gone in (("magnitude", False), ("gradient", True), ("taylor", True), ("fisher", True)):
        code, out, err = cli("sparsify", source, "-o", target, "--pattern", pattern, "--method", method, "--calib",
                             tmp_path / "d.npz", "--no-refit", "--only", "w1")  # fmt: skip
        assert code == 0, err
        values = load(target).array("w1")
        assert (values == 0).mean() == 0.5
        assert (values[dead] == 0).all() == gone
        assert method in out


def test_labels_judge(tmp_path, cli):
    target = tmp_path / "o.onnx"
    arguments = ["--calib", DIGITS, "--calib-samples", "64", "--labels", "y_train", "--only", "blocks.0.up*"]
    code, out, err = cli(
        "sparsify", MODELS / "digits_vit.onnx", "-o", target, *arguments, "--json", tmp_path / "r.json"
    )
    assert code == 0, err
    assert "top1 " in out
    assert "before" in out
    assert json.loads((tmp_path / "r.json").read_text())["fidelity"]["accuracy"]["metric"] == "top1"


# -- mistakes ---------------------------------------------------------------------------------------------------

WRONG = {
    "no-output": ([], 2, "name the file to write with -o OUT"),
    "pattern": (["-o", "o.onnx", "--pattern", "4:2"], 2, "N:M keeps N of every M"),
    "method": (["-o", "o.onnx", "--method", "obs"], 2, "--method obs needs inputs; add --calib DATA"),
    "unknown-method": (
        ["-o", "o.onnx", "--method", "luck"],
        2,
        "there is magnitude, wanda, obs, gradient, taylor, fisher",
    ),
    "limit": (["-o", "o.onnx", "--max-drop", "0.1"], 2, "--max-drop needs inputs"),
    "no-refit": (["-o", "o.onnx", "--no-refit"], 2, "--no-refit says what is done with --calib"),
    "schedule": (["-o", "o.onnx", "--schedule", "cubic", "--calib", DIGITS], 2, "--schedule is for a share of zeros"),
    "wanda-schedule": (
        ["-o", "o.onnx", "--pattern", "0.5", "--schedule", "cubic", "--method", "wanda", "--calib", DIGITS],
        2,
        "--schedule goes with any --method but wanda",
    ),
    "labels": (["-o", "o.onnx", "--labels", "y"], 2, "--labels and --metric say more of --calib"),
    "scope": (["-o", "o.onnx", "--scope", "global"], 2, "--scope is for a share of zeros"),
    "permute": (["-o", "o.onnx", "--pattern", "0.5", "--permute"], 2, "--permute is for N:M"),
    "keep": (["-o", "o.onnx", "--keep", "nothing*"], 2, "--keep 'nothing*' matches no layer"),
    "folder": (["-o", "no/such/folder/o.onnx"], 2, "there is no folder"),
    "everything-kept": (["-o", "o.onnx", "--keep", "*"], 3, "no weight that 2:4 can be put on: --keep"),
}


@pytest.mark.parametrize(("arguments", "code", "text"), WRONG.values(), ids=WRONG)
def test_mistakes_are_told(tmp_path, monkeypatch, cli, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    found, _, err = cli("sparsify", MODELS / "digits_vit.onnx", *arguments)
    assert found == code
    assert text in err
    assert not list(tmp_path.iterdir())


VERIFY_WRONG = {
    "neither": (["m.onnx"], "give ORIGINAL PRUNED --plan P.json"),
    "two-models": (["m.onnx", "n.onnx", "--pattern", "2:4"], "leave out PRUNED"),
    "share": (["m.onnx", "--pattern", "0.5"], "verify checks N:M"),
    "keep": (["m.onnx", "n.onnx", "--plan", "p.json", "--keep", "x"], "go with --pattern"),
    "no-file": (["m.onnx", "--pattern", "2:4"], "m.onnx cannot be read"),
}


@pytest.mark.parametrize(("arguments", "text"), VERIFY_WRONG.values(), ids=VERIFY_WRONG)
def test_verify_is_told_what_to_do(cli, arguments, text):
    code, _, err = cli("verify", *arguments)
    assert code == 2
    assert text in err


def test_inspect_lists_reasons_and_states(tmp_path, cli):
    target = tmp_path / "out.onnx"
    cli("sparsify", MODELS / "digits_vit.onnx", "-o", target, "--only", "blocks.0.*")
    code, out, _ = cli("inspect", target, "--sparsity")
    assert code == 0
    assert "1 input is no multiple of 4" in out
    assert out.count("has it") == 4
    assert "17 of 18 can have 2:4" in out
    assert cli("inspect", target, "--pattern", "2:4")[0] == 2


def test_a_broken_result_is_not_written(tmp_path, monkeypatch):
    """The check has the last word, whatever went wrong before."""
    monkeypatch.setattr(selection, "thin_runs", lambda stored, *_: stored.values)
    with pytest.raises(GoalError, match=r"runs? breaks? 2:4"):
        sparsify(MODELS / "digits_vit.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_small_systems_are_solved_by_one_thread(tmp_path, monkeypatch):
    """Two wait for each other in loops: on a busy machine that took twenty times as long."""
    from threadpoolctl import threadpool_info

    from exporter.sparsity import solver

    seen, refit = set(), solver.refit

    def looking(*arguments):
        seen.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return refit(*arguments)

    monkeypatch.setattr(solver, "refit", looking)
    sparsify(MODELS / "digits_cnn.onnx", tmp_path / "out.onnx", calib=DIGITS, calib_samples=64)
    assert seen == {1}


def test_numbers_that_are_quantized_for_an_integer_layer_become_zero(tmp_path):
    """Their codes then are the zero point."""
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s p"), node("QuantizeLinear", "w t z", "c"),
        node("MatMulInteger", "q c p z", "i"), node("Cast", "i", "y", to=1),
    ]  # fmt: skip
    constants = weights(w=(8, 6)) | {"t": np.array(0.1, np.float32), "z": np.array(113, np.uint8)}
    path = write(build(nodes, {"x": ["N", 8]}, ["y"], constants), tmp_path)
    result = sparsify(path, tmp_path / "out.onnx")
    assert [layer.weight.name for layer in result.layers] == ["w"]
    (kept,) = [t for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.name == "w"]
    assert (numpy_helper.to_array(kept) == 0).sum() == 24


def test_a_fit_that_does_not_help_is_left_out(tmp_path):
    """Two dozen inputs tell nothing of 96 columns: what is written is no further off than the weights as they were."""
    found = []
    for seed in (4, 5, 6):
        constants = weights(seed, w1=(48, 96), w2=(96, 96), w3=(96, 6))
        nodes = [node("MatMul", "x w1", "a"), node("Tanh", "a", "ta"), node("MatMul", "ta w2", "b"),
                 node("Tanh", "b", "tb"), node("MatMul", "tb w3", "y")]  # fmt: skip
        onnx.save(build(nodes, {"x": ["N", 48]}, ["y"], constants), tmp_path / "m.onnx")
        x = np.random.default_rng(seed).standard_normal((24, 48)).astype(np.float32)
        np.savez(tmp_path / "x.npz", x=x)
        result = sparsify(tmp_path / "m.onnx", tmp_path / "s.onnx", pattern="2:4", calib=tmp_path / "x.npz")
        assert result.held.error <= result.held.plain
        found += [note for note in result.notes if "fitting was left out" in note]
    assert found


@pytest.mark.parametrize("pattern", ["2:4", "0.6"])
def test_layers_too_wide_for_the_memory_are_chosen_by_magnitude(pattern, tmp_path, monkeypatch):
    """The others are fitted, and the report says which is which."""
    constants = weights(w1=(24, 16), w2=(16, 8), w3=(8, 4))
    nodes = [node("MatMul", "x w1", "a"), node("Relu", "a", "ra"), node("MatMul", "ra w2", "b"),
             node("Relu", "b", "rb"), node("MatMul", "rb w3", "y")]  # fmt: skip
    path = write(build(nodes, {"x": ["N", 24]}, ["y"], constants), tmp_path)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32))
    sparsify(path, tmp_path / "plain.onnx", pattern=pattern)
    monkeypatch.setattr(bounds, "available", lambda: 8 * (8 * 20**2 + 24 * 24 * 16))
    result = sparsify(path, tmp_path / "out.onnx", pattern=pattern, calib=tmp_path / "x.npz")
    assert [x.weight.name for x in result.layers if x.fit is None] == ["w1"]
    assert [n for n in result.notes if "memory" in n] == [
        "1 of 3 weights stays as chosen one by one: choosing by what they do together does not fit into memory"
    ]
    plain, made = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / name).graph.initializer}
        for name in ("plain.onnx", "out.onnx")
    )
    assert (made["w1"] == plain["w1"]).all()
    assert all((made[name] != plain[name]).any() for name in ("w2", "w3"))


@pytest.mark.parametrize("how", [[], ["--no-refit"], ["--method", "wanda"]])
def test_what_a_normalisation_lets_nothing_of_through_gets_the_pattern_too(how, tmp_path, cli):
    """Nothing tells which weights of a dead channel matter; the largest stay."""
    constants = weights(w=(16, 8, 1, 1), v=(4, 16, 1, 1), beta=(16,)) | {"gamma": np.ones(16, np.float32)}
    constants |= {"mean": np.zeros(16, np.float32), "var": np.ones(16, np.float32)}
    dead = [2, 7]
    constants["gamma"][dead] = 1e-12
    nodes = [node("Conv", "x w", "h"), node("BatchNormalization", "h gamma beta mean var", "n"),
             node("Relu", "n", "r"), node("Conv", "r v", "y")]  # fmt: skip
    source, out = write(build(nodes, {"x": ["N", 8, 4, 4]}, ["y"], constants), tmp_path), tmp_path / "s.onnx"
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((64, 8, 4, 4)).astype(np.float32))
    code, _, err = cli("sparsify", source, "-o", out, "--pattern", "2:4", "--calib", tmp_path / "x.npz", *how)
    assert (code, err) == (0, "")
    written = load(out).array("w")
    assert ((written.reshape(-1, 4) != 0).sum(1) <= 2).all()
    assert all(np.isin(written[k], [0, *constants["w"][k].ravel()]).all() and written[k].any() for k in dead)
