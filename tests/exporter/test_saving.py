"""Saving: remarks are kept, data stays where it was, and a reader never sees half a file, whatever fails."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter import ModelError, UsageError, find_groups, load, make_plan, rewrite, save, score
from exporter.graph import Graph
from exporter.normalise import serialize_with_data
from tests.exporter.files import (
    Case,
    check,
    cut,
    feeds_for,
    half,
    run,
    versioned,
    wide,
    write,
    write_outside,
)

# -- remarks ----------------------------------------------------------------------------------------------------


def described(value, text):
    value.doc_string = f"about {text}"
    value.metadata_props.add(key="name", value=text)


def documented():
    """A model with a remark wherever ONNX has room for one."""
    model = versioned(21)
    model.doc_string = "about the model"
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "1.2", "org.maker", 7
    model.metadata_props.add(key="classes", value="cat,dog")
    described(model.graph, "graph")
    model.opset_import.add(domain="com.microsoft", version=1)
    for found in model.graph.node:
        described(found, found.op_type)
    for tensor in model.graph.initializer:
        described(tensor, tensor.name)
    model.graph.value_info.append(helper.make_tensor_value_info("c", 1, ["N", 8, 5, 5]))
    model.graph.value_info.append(helper.make_tensor_value_info("r", 1, ["N", 4, 5, 5]))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        described(value, value.name)
    for name in ("c", "w1", "r"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="low")
    return model


def test_every_remark_is_kept(tmp_path):
    path = write(documented(), tmp_path)
    save(cut(load(path)), tmp_path / "out.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
        assert getattr(after, name) == getattr(before, name)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.opset_import) == list(before.opset_import)
    assert after.graph.name == before.graph.name
    assert after.graph.doc_string == "about graph"
    assert list(after.graph.metadata_props) == list(before.graph.metadata_props)
    assert list(after.graph.quantization_annotation) == list(before.graph.quantization_annotation)
    for kind in ("node", "input", "output", "value_info", "initializer"):
        old = {v.output[0] if kind == "node" else v.name: v for v in getattr(before.graph, kind)}
        new = {v.output[0] if kind == "node" else v.name: v for v in getattr(after.graph, kind)}
        assert new.keys() == old.keys(), kind
        for name, value in new.items():
            assert value.name == old[name].name
            assert value.doc_string == old[name].doc_string, (kind, name)
            assert list(value.metadata_props) == list(old[name].metadata_props), (kind, name)
    declared = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in after.graph.value_info}
    assert declared == {"c": 4, "r": 2}  # declared shapes follow the cut


def test_a_size_follows_the_cut_under_its_name_and_remarks(tmp_path):
    """The bounds of the slice: half of the four channels it takes are left."""
    graph = load(write(documented(), tmp_path))
    plan = half(graph)
    save(rewrite(graph, plan), tmp_path / "out.onnx")
    written = {t.name: t for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert [written[n].doc_string for n in ("two", "six")] == ["about two", "about six"]
    (start,), (end,) = (numpy_helper.to_array(written[n]).tolist() for n in ("two", "six"))
    assert end - start == 2
    assert (plan.take["two"].values, plan.take["six"].values) == ((start,), (end,))


def test_reading_and_writing_changes_nothing(tmp_path):
    path = write(documented(), tmp_path)
    save(load(path), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(path)


# -- external data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["weights.bin", None], ids=["one file", "several files"])
@pytest.mark.parametrize("threshold", [0, 1000], ids=["all tensors", "large tensors"])
def test_external_data(location, threshold, tmp_path):
    path = write_outside(wide(), tmp_path, location=location, threshold=threshold)
    files = set(tmp_path.iterdir())
    assert len(files) == 1 + (1 if location else 4 if threshold == 0 else 2)
    graph = check(path, Case("external", wide(), (64,)), tmp_path / "out.onnx")
    assert graph.source.size == sum(f.stat().st_size for f in files)


def made_beside(out, before):
    return set(out.parent.iterdir()) - before - {out}


@pytest.mark.parametrize("threshold", [0, 1000], ids=["one tensor is not cut", "all external tensors are cut"])
def test_external_data_stays_external(threshold, tmp_path):
    path = write_outside(wide(), tmp_path, threshold=threshold)
    files = set(tmp_path.iterdir())
    save(cut(load(path)), tmp_path / "out.onnx")
    made = made_beside(tmp_path / "out.onnx", files)
    assert len(made) == 1
    assert made.pop().name.startswith("out-")


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "external"])
def test_the_same_plan_gives_the_same_bytes(outside, tmp_path):
    path = write_outside(wide(), tmp_path) if outside else write(wide(), tmp_path)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        graph = load(path)
        save(rewrite(graph, half(graph)), tmp_path / name / "out.onnx")
        contents.append({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 1 + outside


def test_the_data_file_is_named_by_its_content(tmp_path):
    """A reader of the old model must never meet new data under the old name."""
    path = write_outside(wide(), tmp_path)
    graph = load(path)
    groups = find_groups(graph)
    out = tmp_path / "out.onnx"
    names = []
    for ratio in (0.25, 0.5, 0.25):
        save(rewrite(graph, make_plan(groups, score(groups), ratio=ratio, align=1)), out)
        (data,) = tmp_path.glob("out-*.data")  # the file of the output replaced is gone
        names.append(data.name)
        assert load(out).parameters < graph.parameters
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("name", ["weights.bin", "out-mine.bin", "shared.data"])
def test_foreign_data_files_stay(name, tmp_path):
    """The output replaced kept its data in a file somebody else made, which other models may use."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    write_outside(wide(), target, location=name).rename(target / "out.onnx")
    kept = (target / name).read_bytes()
    save(cut(load(write_outside(wide(), source))), target / "out.onnx")
    assert (target / name).read_bytes() == kept
    assert load(target / "out.onnx").parameters < load(source / "model.onnx").parameters


def test_a_model_may_be_replaced_by_its_own_cut(tmp_path):
    path = write_outside(wide(), tmp_path)
    graph = load(path)
    feed = feeds_for(wide(), {})
    before = run(path, feed)["y"]
    pruned = cut(graph)
    save(pruned, path)
    assert load(path).parameters == pruned.parameters < graph.parameters
    # the dense graph maps its weights: they must still be there
    np.testing.assert_allclose(run(serialize_with_data(graph.model, graph.folder), feed)["y"], before, rtol=1e-5)


def test_cutting_in_place_leaves_one_data_file(tmp_path):
    path = write_outside(wide(), tmp_path)
    for _ in range(3):
        save(cut(load(path)), path)
    assert len(list(tmp_path.glob("model-*.data"))) == 1


# -- failures ---------------------------------------------------------------------------------------------------


def invalid(graph: Graph) -> Graph:
    """The graph with an attribute Relu does not have."""
    model = onnx.ModelProto.FromString(graph.model.SerializeToString())
    next(n for n in model.graph.node if n.op_type == "Relu").attribute.append(helper.make_attribute("no_such", 1))
    return dataclasses.replace(graph, model=model)


def raising(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


def _on_data(original, suffix, code):
    """``Path.replace`` that fails on the way to a file with this suffix only."""

    def replace(self, target):
        if Path(target).suffix == suffix:
            raise OSError(code, os.strerror(code))
        return original(self, target)

    return replace


FAILURES = {
    "the checker objects": lambda _: None,
    "no permission for a temporary file": lambda m: m.setattr(tempfile, "mkstemp", raising(errno.EACCES)),
    "a read-only file system": lambda m: m.setattr(tempfile, "mkstemp", raising(errno.EROFS)),
    "no room for the model": lambda m: m.setattr(Path, "write_bytes", raising(errno.ENOSPC)),
    "the disk fails while flushing": lambda m: m.setattr(os, "fsync", raising(errno.EIO)),
    "the model cannot be renamed": lambda m: m.setattr(Path, "replace", _on_data(Path.replace, ".onnx", errno.EACCES)),
    "the data cannot be renamed": lambda m: m.setattr(Path, "replace", _on_data(Path.replace, ".data", errno.EACCES)),
}


PLACES = [(f, o) for f in FAILURES for o in (False, True) if o or f != "the data cannot be renamed"]


@pytest.mark.parametrize("there", [False, True], ids=["new file", "old file"])
@pytest.mark.parametrize(
    ("failure", "outside"), PLACES, ids=[f"{f}, {'external' if o else 'inside'}" for f, o in PLACES]
)
def test_a_failure_leaves_everything_as_it_was(failure, outside, there, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = write_outside(wide(), tmp_path / "in") if outside else write(wide(), tmp_path / "in")
    graph = load(path)
    target = tmp_path / "out" / "out.onnx"
    if there:
        groups = find_groups(graph)
        save(rewrite(graph, make_plan(groups, score(groups), ratio=0.25, align=1)), target)
    before = {f: f.read_bytes() for f in target.parent.iterdir()}
    pruned = cut(graph)
    if failure == "the checker objects":
        pruned = invalid(pruned)
    with monkeypatch.context() as patch:
        FAILURES[failure](patch)
        checked = failure == "the checker objects"
        text = "does not pass the ONNX checker" if checked else "cannot be written"
        with pytest.raises(ModelError if checked else UsageError, match=text):
            save(pruned, target)
    assert {f: f.read_bytes() for f in target.parent.iterdir()} == before
    assert {f.name for f in path.parent.iterdir()} == {"model.onnx"} | ({"weights.bin"} if outside else set())


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    graph = load(write_outside(wide(), tmp_path))
    before = set(tmp_path.iterdir())

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(cut(graph), tmp_path / "out.onnx")
    assert set(tmp_path.iterdir()) == before


def test_success_leaves_no_temporary_file(tmp_path):
    save(cut(load(write(wide(), tmp_path))), tmp_path / "out.onnx")
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx", "out.onnx"}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_file_has_the_users_permissions(umask, tmp_path):
    """A temporary file is private; the result is not."""
    graph = load(write_outside(wide(), tmp_path))
    old = os.umask(umask)
    try:
        save(cut(graph), tmp_path / "out.onnx")
    finally:
        os.umask(old)
    for file in (tmp_path / "out.onnx", *tmp_path.glob("out-*.data")):
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_missing_folder_is_named(tmp_path):
    graph = load(write(wide(), tmp_path))
    with pytest.raises(UsageError, match="nowhere"):
        save(graph, tmp_path / "nowhere" / "out.onnx")
