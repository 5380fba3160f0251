"""Models whose weights lie outside: nothing is made before it is written, and proofs go piece by piece. Small files,
with the limits lowered, so that what runs is what runs at 14 GB."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from benchmarks.large_model import write as write_llama
from exporter import (
    GoalError,
    ModelError,
    excerpts,
    external_parts,
    find_groups,
    importance,
    load,
    make_plan,
    normalise,
    prune,
    rewrite,
    rewriter,
    save,
    score,
    sparsify,
    tensors,
    verify,
)
from exporter.calibration import portioned, runner, store
from exporter.halves import numbers
from exporter.model_file import from_model
from exporter.piecewise import pieces
from exporter.precision.converting import convert_precision
from exporter.sparsity import selection
from tests.exporter.calibration import networks
from tests.exporter.files import half, write, write_outside
from tests.rows.networks import ROWS

NETWORKS = {row.name: row for row in ROWS}
EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder / "llama.onnx", layers=2, hidden=64, inner=96, heads=4, vocabulary=50)
    return folder


@pytest.fixture
def llama(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "llama.onnx"


def cut(graph, ratio=0.5):
    groups = find_groups(graph)
    plan = make_plan(groups, score(groups), ratio=ratio)
    return rewrite(graph, plan), plan


def contents(path):
    graph = load(path)
    return {name: tensors.read(t, graph.folder) for name, t in graph.constants.items()}


def described(graph):
    return [t.name for t in graph.model.graph.initializer if external_parts.part_of(t) is not None]


STEPS = {
    "a run": [{0: [2, 3, 4]}],
    "scattered": [{0: [0, 3], 1: [1, 2, 5]}],
    "reordered": [{1: [5, 0, 3]}],
    "twice": [{0: [1, 2, 4], 1: [0, 2, 4, 5]}, {0: [0, 2], 1: [1, 3]}],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_described_part_reads_as_if_it_were_taken(steps, tmp_path):
    values = np.arange(30, dtype=np.float32).reshape(5, 6)
    values.tofile(tmp_path / "data")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=values.shape, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="data")
    for step in steps:
        part = onnx.TensorProto(name="w")
        external_parts.describe(part, tensor, step)
        tensor = part
        for axis, keep in step.items():
            values = values.take(keep, axis)
    assert tuple(tensor.dims) == values.shape
    assert np.array_equal(tensors.read(tensor, tmp_path), values)


def test_what_is_cut_stays_outside_until_it_is_written(llama, tmp_path, monkeypatch):
    plain, _ = cut(load(llama))
    assert not described(plain)
    save(plain, tmp_path / "plain.onnx")
    monkeypatch.setattr(rewriter, "_STAYS_OUTSIDE", 0)
    lazy, _ = cut(load(llama))
    assert len(described(lazy)) > 15
    save(lazy, tmp_path / "lazy.onnx")
    want, got = contents(tmp_path / "plain.onnx"), contents(tmp_path / "lazy.onnx")
    assert want.keys() == got.keys()
    assert all(np.array_equal(want[n], got[n]) for n in want)
    again, _ = cut(lazy)
    once, _ = cut(load(tmp_path / "lazy.onnx"))
    assert all(np.array_equal(again.array(n), once.array(n)) for n in once.constants)


def test_a_file_that_describes_a_part_is_refused(llama):
    model = onnx.load(llama, load_external_data=False)
    outside = next(t for t in model.graph.initializer if t.external_data)
    outside.external_data.add(key="secateur.part", value='{"dims": [1], "steps": []}')
    llama.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"secateur\.part"):
        load(llama)


def test_halves_are_read_exactly():
    assert np.array_equal(numbers(EVERY_HALF), EVERY_HALF.astype(np.float32), equal_nan=True)
    finite = EVERY_HALF[np.isfinite(EVERY_HALF)]
    assert np.array_equal(numbers(finite).view(np.uint32), finite.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("by", ["l1", "l2"])
def test_scores_by_rows(llama, monkeypatch, by):
    groups = find_groups(load(llama))
    want = score(groups, by)
    monkeypatch.setattr(importance, "_LARGE", 0)
    monkeypatch.setattr(importance, "_BLOCK", 1 << 10)
    got = score(groups, by)
    assert all(np.allclose(got[n], want[n], rtol=1e-5) for n in want)


@pytest.fixture(params=[1, 1 << 24], ids=["runs side by side", "runs alone"])
def fed_weights(request, monkeypatch):
    monkeypatch.setattr(excerpts, "_FED_BYTES", 0)
    monkeypatch.setattr(excerpts, "_READ_ONCE", request.param)


@pytest.mark.usefixtures("fed_weights")
@pytest.mark.parametrize("name", NETWORKS)
def test_proof_by_pieces(name, tmp_path):
    graph = load(write(NETWORKS[name].model, tmp_path))
    pruned, plan = cut(graph)
    proof = verify(pruned, graph, plan, piece_bytes=1)
    assert proof.pieces == len(pieces(graph, 1)) > 2
    assert proof.outputs.keys() == set(graph.outputs)
    assert proof.error < 1e-4


@pytest.mark.usefixtures("fed_weights")
@pytest.mark.parametrize("piece_bytes", [1, 30_000, 1 << 30], ids=["each layer", "some layers", "whole"])
def test_a_wrong_rewrite_fails_wherever_it_is(llama, piece_bytes):
    graph = load(llama)
    pruned, plan = cut(graph)
    assert verify(pruned, graph, plan, piece_bytes=piece_bytes).error < 1e-4
    weights = [t for t in pruned.model.graph.initializer if t.name.endswith(".weight") or t.name == "head"]
    for tensor in weights[:: len(weights) // 4]:
        before = onnx.TensorProto.FromString(tensor.SerializeToString())
        values = np.array(tensors.read(tensor, pruned.folder))
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1, axis=1), tensor.name))
        with pytest.raises(GoalError, match="differs from the masked original"):
            verify(pruned, graph, plan, piece_bytes=piece_bytes)
        tensor.CopyFrom(before)


def test_pieces_are_fed_lists_of_sizes():
    """Two Resizes to a size that both read: ONNX Runtime takes a list of open length for an empty one."""
    graph = from_model(networks.resized())
    plan = half(graph)
    assert verify(rewrite(graph, plan), graph, plan, piece_bytes=1).pieces > 5


def test_prune_says_that_it_went_piece_by_piece(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(normalise, "LARGEST", 1000)
    lines = []
    result = prune(llama, tmp_path / "out.onnx", ratio=0.5, progress=lines.append)
    assert result.proof.pieces == 1  # of up to 400 MB
    assert any("pieces" in w for w in result.warnings)
    assert any(line.startswith("writing the weights") for line in lines)
    assert any(line.startswith("comparing pieces") and line.endswith("0 of 1") for line in lines)
    with pytest.raises(ModelError, match="run of the whole model"):
        prune(llama, tmp_path / "other.onnx", layers=1)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_in_portions_is_that_of_the_whole(precision, tmp_path, request, monkeypatch):
    write_llama(tmp_path / "wide.onnx", layers=2, hidden=32, inner=80, heads=2, vocabulary=50, dtype="float32")
    want = convert_precision(tmp_path / "wide.onnx", tmp_path / "whole.onnx", precision)
    opened = request.getfixturevalue("portions")
    monkeypatch.setattr(normalise, "LARGEST", 1000)
    got = convert_precision(tmp_path / "wide.onnx", tmp_path / "portions.onnx", precision)
    assert len(opened) > 30
    same = {"path": None, "errors": {}, "output_error": 0.0, "after": 0}
    assert replace(got, **same) == replace(want, **same)
    assert want.error / 2 < got.error < 2 * want.error  # ONNX Runtime rounds otherwise where it joins nodes
    assert want.output_error / 4 < got.output_error < 4 * want.output_error
    one, other = contents(tmp_path / "whole.onnx"), contents(tmp_path / "portions.onnx")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    (tmp_path / "bad.onnx").write_text("what was there")
    with pytest.raises(GoalError, match="more than --max-error"):
        convert_precision(tmp_path / "wide.onnx", tmp_path / "bad.onnx", precision, max_error=1e-6)
    assert [p.read_text() for p in tmp_path.glob("bad*")] == ["what was there"]
    dry = convert_precision(tmp_path / "wide.onnx", None, precision)
    assert dry == replace(got, path=None, after=0)


def test_half_precision_in_portions_takes_batches_that_are_not_full(tmp_path, request, monkeypatch):
    write_llama(tmp_path / "wide.onnx", layers=1, hidden=32, inner=80, heads=2, vocabulary=50, dtype="float32")
    np.savez(tmp_path / "ids.npz", ids=np.random.default_rng(0).integers(0, 50, (9, 8)))
    settings = {"calib": str(tmp_path / "ids.npz"), "shapes": {"ids": (4, 8)}}
    want = convert_precision(tmp_path / "wide.onnx", None, "fp16", **settings)
    request.getfixturevalue("portions")
    monkeypatch.setattr(normalise, "LARGEST", 1000)
    got = convert_precision(tmp_path / "wide.onnx", None, "fp16", **settings)
    assert want.error / 2 < got.error < 2 * want.error < 0.1


@pytest.fixture
def portions(monkeypatch):
    """Whatever has weights is large, and nothing but a temporary file holds what is new. Counts the sessions."""
    opened = []
    whole = runner.Runner._session
    monkeypatch.setattr(runner.Runner, "_session", lambda self, *rest: opened.append(rest) or whole(self, *rest))
    for module, name in ((runner, "LARGE"), (portioned, "LARGE"), (runner, "_PORTION"), (runner, "_RENEWED")):
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setattr(runner, "_APART", 0)
    monkeypatch.setattr(store, "MEMORY", 0)
    monkeypatch.setattr(rewriter, "_STAYS_OUTSIDE", 0)
    return opened


def test_calibration_in_portions_is_that_of_the_whole(llama, tmp_path, request):
    """One session for each layer instead of one for all, new weights in files: the same choice and the same model."""
    ids = np.random.default_rng(0).integers(0, 50, (40, 8))
    np.savez(tmp_path / "ids.npz", ids=ids)
    settings = {"macs": 0.7, "align": 1, "calib": tmp_path / "ids.npz"}
    want = prune(llama, tmp_path / "whole.onnx", **settings)
    opened = request.getfixturevalue("portions")
    got = prune(llama, tmp_path / "portions.onnx", **settings)
    assert max(len(nodes) for nodes, *_ in opened) < 12 < len(load(llama).nodes)
    assert [g.keep for g in got.plan.groups] == [g.keep for g in want.plan.groups]
    assert got.fidelity.error == pytest.approx(want.fidelity.error, rel=0.02)
    assert got.fidelity.accuracy.pruned == pytest.approx(want.fidelity.accuracy.pruned, abs=0.21)
    assert sum(r.damping is not None for r in got.fidelity.refits) > 5
    one, other = contents(tmp_path / "whole.onnx"), contents(tmp_path / "portions.onnx")
    assert one.keys() == other.keys()
    for name in (n for n in one if n.endswith(".weight") or n == "head"):
        values = one[name]
        assert np.allclose(other[name], values, rtol=0.05, atol=0.05 * np.abs(values).max()), name


def told(result):
    return [(x.weight.name, x.after, x.kept) for x in result.layers]


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "0.7"])
def test_sparse_weights_outside_are_those_inside(pattern, llama, tmp_path):
    inside = onnx.load(llama)
    (tmp_path / "inside").mkdir()
    onnx.save(inside, tmp_path / "inside" / "llama.onnx")
    one = sparsify(llama, tmp_path / "out.onnx", pattern=pattern)
    other = sparsify(tmp_path / "inside" / "llama.onnx", tmp_path / "inside" / "out.onnx", pattern=pattern)
    assert told(one) == [(name, after, pytest.approx(kept, rel=1e-6)) for name, after, kept in told(other)]
    assert one.zeros == other.zeros > 0
    assert one.notes == other.notes
    want, got = contents(tmp_path / "inside" / "out.onnx"), contents(tmp_path / "out.onnx")
    assert all(np.array_equal(got[n], want[n]) for n in want)
    dry = sparsify(llama, pattern=pattern, dry_run=True)
    assert told(dry) == told(one)
    assert dry.output is None
    assert dry.after is None


def test_a_broken_stream_leaves_nothing(llama, tmp_path, monkeypatch):
    before = set(tmp_path.iterdir())
    whole = selection._thinned

    def wrong(graph, weight, *others):
        values = whole(graph, weight, *others)
        return np.ones_like(values) if weight.name == "layers.1.down.weight" else values

    monkeypatch.setattr(selection, "_thinned", wrong)
    with pytest.raises(GoalError, match=r"layers\.1\.down"):
        sparsify(llama, tmp_path / "out.onnx")
    assert set(tmp_path.iterdir()) == before


def test_external_weights_of_a_shared_file_are_written_once(tmp_path):
    path = write_outside(NETWORKS[next(iter(NETWORKS))].model, tmp_path)
    save(load(path), tmp_path / "out.onnx")
    assert all(np.array_equal(v, contents(path)[n]) for n, v in contents(tmp_path / "out.onnx").items())
