"""Inputs: sizes for dynamic axes, values a model accepts, and recorded values that are checked before they are used."""

from __future__ import annotations

import gc
import struct
import traceback
import zipfile

import numpy as np
import pytest

from runtime.backends import TensorSpec
from runtime.batches import samples_in
from runtime.errors import BadRequest
from runtime.feeds import PROFILES, Constraint, Profile, bind, constraints, parse_shapes, seeded
from runtime.recorded import read_recorded
from runtime.words import Words
from tests.onnx_builder import build, node, weights

F32, F16, I64, I32, BOOL = (np.dtype(t) for t in ("f4", "f2", "i8", "i4", "?"))
TRIED = Profile(batch=2, image=224, other=16)


def spec(name, *shape, dtype=F32):
    return TensorSpec(name, dtype, shape)


# -- --shape ----------------------------------------------------------------------------------------------------

SHAPES = {
    "x:1x3x224x224": ("x", (1, 3, 224, 224)),
    "x:7": ("x", (7,)),
    "x:1X2": ("x", (1, 2)),
    "x:1 x 2": ("x", (1, 2)),
    "input:0:4x5": ("input:0", (4, 5)),
    "x:": ("x", ()),
}


def test_what_declares_no_axes_gets_those_asked_for():
    assert bind([spec("x"), spec("y", "N")], {"x": (2, 3)}).shapes == {"x": (2, 3), "y": (PROFILES[0].batch,)}
    assert bind([spec("x")], {}).shapes == {"x": ()}
    with pytest.raises(BadRequest, match=r"input 'x' declares no shape.*--shape x:"):
        seeded([spec("x")], {}, 0)


@pytest.mark.parametrize("text", SHAPES)
def test_shape_options(text):
    name, shape = SHAPES[text]
    assert parse_shapes([text]) == {name: shape}


def test_the_last_shape_of_a_name_wins():
    assert parse_shapes(["x:1x2", "y:3", "x:4x5"]) == {"x": (4, 5), "y": (3,)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1x3",
        ":1x3",
        "x:0x3",
        "x:-1x3",
        "x:1x",
        "xx1",
        "x:1,3",
        "x:1.5",
        "x:NxM",
        "x:3²",
    ],
)
def test_bad_shape_options(text):
    with pytest.raises(BadRequest, match="expected NAME:1x3x224x224, sizes of at least 1") as caught:
        parse_shapes(["good:1", text])
    assert str(caught.value).startswith(f"--shape {text}")


# -- sizes ------------------------------------------------------------------------------------------------------

BINDINGS = {
    "fixed": ([spec("x", 4, 5)], {}, {"x": (4, 5)}, 4),
    "scalar": ([spec("x")], {}, {"x": ()}, 1),
    "an image": ([spec("x", "N", 3, "H", "W")], {}, {"x": (2, 3, 224, 224)}, 2),
    "an image, channels last": ([spec("x", "N", "H", "W", 3)], {}, {"x": (2, 224, 224, 3)}, 2),
    "a feature map of unnamed axes": ([spec("x", None, 64, None, None)], {}, {"x": (2, 64, 224, 224)}, 2),
    "a sequence": ([spec("ids", "batch", "seq", dtype=I64)], {}, {"ids": (2, 16)}, 2),
    "a cache is no image": ([spec("past_key", "batch", 4, "past", 64)], {}, {"past_key": (2, 4, 16, 64)}, 2),
    "four axes of integers are no image": ([spec("x", "N", 3, "H", "W", dtype=I64)], {}, {"x": (2, 3, 16, 16)}, 2),
    "a vector is no batch": ([spec("x", "length")], {}, {"x": (16,)}, 1),
    "a batch by name": ([spec("x", "batch_size")], {}, {"x": (2,)}, 2),
    "a batch in second place": ([spec("x", 7, "batch", 8)], {}, {"x": (7, 2, 8)}, 2),
    "a state has the batch of the others": (
        [spec("x", None, None), spec("h", 2, None, 8)], {"x": (3, 5)}, {"x": (3, 5), "h": (2, 3, 8)}, 3,
    ),
    "a state before the others": ([spec("h", 2, None, 8), spec("x", "N", "T")], {}, {"h": (2, 2, 8), "x": (2, 16)}, 2),
    "features are no state": ([spec("x", 1, None, 80)], {}, {"x": (1, 16, 80)}, 1),
    "two batches": ([spec("x", "N", 4), spec("z", "M", 4)], {}, {"x": (2, 4), "z": (2, 4)}, 2),
    "one symbol, one size": (
        [spec("x", "N", "T", 4), spec("z", "N", "T")], {"x": (5, 9, 4)}, {"x": (5, 9, 4), "z": (5, 9)}, 5,
    ),
    "unnamed axes are told apart": (
        [spec("x", None, None, 4), spec("z", None, None, 4)], {"x": (5, 9, 4)}, {"x": (5, 9, 4), "z": (2, 16, 4)}, 1,
    ),
    "a sum": (
        [spec("x", "N", "seq"), spec("past", "N", "past"), spec("mask", "N", "past + seq")],
        {}, {"x": (2, 16), "past": (2, 16), "mask": (2, 32)}, 2,
    ),
    "a sum of what was asked for": (
        [spec("x", "N", "seq"), spec("past", "N", "past"), spec("mask", "N", "past + seq")],
        {"x": (1, 3), "past": (1, 8)}, {"x": (1, 3), "past": (1, 8), "mask": (1, 11)}, 1,
    ),
    "a sum before its parts": (
        [spec("mask", "N", "past+seq"), spec("x", "N", "seq"), spec("past", "N", "past")],
        {"x": (1, 3)}, {"mask": (1, 19), "x": (1, 3), "past": (1, 16)}, 1,
    ),
    "a sum with a number": ([spec("x", "N", "seq"), spec("m", "N", "seq + 1")], {}, {"x": (2, 16), "m": (2, 17)}, 2),
    "one asked for of two": (
        [spec("x", "N", "H", "W"), spec("s", "N", "T")], {"x": (1, 64, 32)}, {"x": (1, 64, 32), "s": (1, 16)}, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BINDINGS)
def test_sizes_of_dynamic_axes(name):
    inputs, requested, shapes, batch = BINDINGS[name]
    binding = bind(inputs, requested, TRIED)
    assert binding.shapes == shapes
    assert samples_in(inputs, binding.shapes) == batch


def test_symbols_are_reported():
    binding = bind([spec("x", "N", None, 3), spec("m", "N + 1")], {}, TRIED)
    assert binding.symbols == {"N": 2, "x:1": 16, "N + 1": 3}


def test_profiles_give_other_sizes():
    """A model that does not run with the first sizes is tried with others."""
    inputs = [spec("x", "N", 3, "H", "W"), spec("s", "N", "T")]
    assert len({str(bind(inputs, {}, p).shapes) for p in PROFILES}) == len(PROFILES)
    assert bind(inputs, {}).shapes == bind(inputs, {}, PROFILES[0]).shapes
    assert PROFILES[0].batch == 2  # two in the batch show what one hides


REFUSED = {
    "no such input": ([spec("x", "N", 4)], {"z": (1, 4)}, r"--shape z: the model has no such input. Inputs: x\."),
    "no inputs at all": ([], {"z": (1,)}, "no such input. Inputs: none"),
    "too few axes": ([spec("x", "N", None, 4)], {"x": (4,)}, r"--shape x: 1 axis given, .* x\[N, \?, 4\]"),
    "too many axes": ([spec("x", 4)], {"x": (4, 1)}, r"--shape x: 2 axes given, the model declares x\[4\]"),
    "a fixed axis": ([spec("x", "N", 4)], {"x": (1, 5)}, r"axis 1 is fixed to 4 in x\[N, 4\], not 5"),
    "one symbol, two sizes": (
        [spec("x", "N", 4), spec("z", "N", 4)], {"x": (2, 4), "z": (3, 4)}, "--shape z: 'N' is 2 in another input",
    ),
    "one symbol, two sizes in one input": ([spec("x", "N", "N")], {"x": (2, 3)}, "'N' is 2"),
    "a sum that does not add up": (
        [spec("x", "seq"), spec("past", "past"), spec("mask", "past + seq")],
        {"x": (3,), "past": (8,), "mask": (12,)}, "'past [+] seq'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused(name):
    inputs, requested, text = REFUSED[name]
    with pytest.raises(BadRequest, match=text):
        bind(inputs, requested)


# -- values -----------------------------------------------------------------------------------------------------


def embedding(between=(), index="x", axis=0, **constants):
    """``w[9, 4]`` read by ``x``."""
    nodes = [*between, node("Gather", f"w {index}", "y", axis=axis)]
    return build(nodes, {"x": ["N", "S"]}, ["y"], weights(w=(9, 4)) | constants, kinds={"x": "i"}).graph


def compared(first, second, constant):
    nodes = [node("Equal", f"{first} {second}", "y")]
    return build(nodes, {"x": ["N", "S"]}, ["y"], {"c": constant}, kinds={"x": "i", "y": "b"}).graph


def _in_a_constant_node():
    from onnx import numpy_helper

    nodes = [
        node("Constant", "", "w", value=numpy_helper.from_array(weights(w=(6, 4))["w"])),
        node("Gather", "w x", "y"),
    ]
    return build(nodes, {"x": ["N"]}, ["y"], kinds={"x": "i"}).graph


def _two_tables(first, second):
    nodes = [node("Gather", f"{first} x", "a"), node("Gather", f"{second} x", "b"), node("Add", "a b", "y")]
    return build(nodes, {"x": ["N"]}, ["y"], weights(w=(9, 4), v=(3, 4)), kinds={"x": "i"}).graph


def _two_inputs():
    nodes = [node("Gather", "w x", "a"), node("Gather", "v z", "b"), node("Add", "a b", "y")]
    arrays = weights(w=(9, 4), v=(5, 4))
    return build(nodes, {"x": ["N"], "z": ["N"]}, ["y"], arrays, kinds={"x": "i", "z": "i"}).graph


def _in_a_branch():
    from onnx import helper

    output = [helper.make_tensor_value_info("r", 1, None)]
    then = helper.make_graph([node("Gather", "w x", "r")], "then", [], output)
    other = helper.make_graph([node("Gather", "v x", "r")], "other", [], output)
    nodes = [node("If", "flag", "y", then_branch=then, else_branch=other)]
    inputs = {"x": ["N"], "flag": []}
    return build(nodes, inputs, ["y"], weights(w=(9, 4), v=(5, 4)), kinds={"x": "i", "flag": "b"}).graph


CONSTRAINTS = {
    "a table read in a branch": (_in_a_branch(), {"x": Constraint(5)}),
    "rows of a table": (embedding(), {"x": Constraint(9)}),
    "columns of a table": (embedding(axis=1), {"x": Constraint(4)}),
    "the last axis": (embedding(axis=-1), {"x": Constraint(4)}),
    "through a cast": (embedding(between=[node("Cast", "x", "c", to=6)], index="c"), {"x": Constraint(9)}),
    "through reshapes": (
        embedding(between=[node("Unsqueeze", "x i", "u"), node("Flatten", "u", "f")], index="f", i=np.array([0])),
        {"x": Constraint(9)},
    ),
    "the smaller of two tables": (_two_tables("w", "v"), {"x": Constraint(3)}),
    "the smaller of two tables, first": (_two_tables("v", "w"), {"x": Constraint(3)}),
    "a table in a Constant node": (_in_a_constant_node(), {"x": Constraint(6)}),
    "two inputs": (_two_inputs(), {"x": Constraint(9), "z": Constraint(5)}),
    "compared with a number": (compared("x", "c", np.array(7)), {"x": Constraint(None, (7,))}),
    "compared the other way round": (compared("c", "x", np.array(7)), {"x": Constraint(None, (7,))}),
    "compared with a row": (compared("x", "c", np.array([[4, 2, 4]])[:, :1]), {"x": Constraint(None, (4,))}),
    "nothing known": (
        build([node("Mul", "x c", "y")], {"x": ["N"]}, ["y"], {"c": np.array(2)}, kinds={"x": "i", "y": "i"}).graph, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_integers_may_hold(name):
    graph, expected = CONSTRAINTS[name]
    assert constraints(graph) == expected


def test_choices_are_collected_over_the_graph():
    nodes = [node("Equal", "x a", "p"), node("Equal", "x b", "q"), node("Or", "p q", "y")]
    constants = {"a": np.array([3, 1]), "b": np.array(5)}
    graph = build(nodes, {"x": ["N", 2]}, ["y"], constants, kinds={"x": "i", "y": "b"}).graph
    assert constraints(graph) == {"x": Constraint(None, (1, 3, 5))}


EVERYTHING = [
    spec("f", 200, 30), spec("h", 200, 30, dtype=F16), spec("i", 200, 30, dtype=I64), spec("j", 200, 30, dtype=I32),
    spec("c", 200, 30, dtype=I64), spec("m", 200, 30, dtype=I64), spec("b", 200, 30, dtype=BOOL),
    spec("u", 200, 30, dtype=np.dtype("u1")), spec("d", 200, 30, dtype=np.dtype("f8")),
]  # fmt: skip
ALLOWED = {"i": Constraint(7), "j": Constraint(3), "c": Constraint(None, (2, 11)), "f": Constraint(4)}


def made(seed=0, inputs=EVERYTHING):
    return seeded(inputs, {s.name: s.shape for s in inputs}, seed, ALLOWED)


def test_seeded_values_are_what_the_input_takes():
    values = made()
    assert {n: (v.dtype, v.shape) for n, v in values.items()} == {s.name: (s.dtype, s.shape) for s in EVERYTHING}
    assert abs(values["f"].mean()) < 0.05
    assert values["f"].std() == pytest.approx(1, abs=0.05)
    assert values["h"].astype(np.float64).std() == pytest.approx(1, abs=0.05)
    assert set(np.unique(values["i"])) == set(range(7))
    assert set(np.unique(values["j"])) == set(range(3))
    assert set(np.unique(values["c"])) == {2, 11}
    assert (values["m"] == 1).all()  # a mask, a length, a flag
    assert values["b"].all()
    assert (values["u"] == 1).all()


def test_the_seed_decides_everything():
    one, same, other = made(3), made(3), made(4)
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert all((one[n] != other[n]).any() for n in "fhijcd")
    assert (one["f"] != one["d"].astype(np.float32)).any()  # inputs do not repeat each other


def test_a_table_of_one_row():
    assert not seeded([spec("i", 4, dtype=I64)], {"i": (4,)}, 0, {"i": Constraint(1)})["i"].any()


@pytest.mark.parametrize("dtype", [None, np.dtype("c8")])
def test_what_is_neither_number_nor_text_cannot_be_fed(dtype):
    with pytest.raises(BadRequest, match="input 'z' is no tensor of real numbers or text"):
        seeded([TensorSpec("z", dtype, (2,))], {"z": (2,)}, 0)


def test_texts_are_words_of_those_allowed():
    inputs, shapes = [TensorSpec("t", np.dtype(object), ("N", 2))], {"t": (32, 2)}
    found = seeded(inputs, shapes, 0, {"t": Constraint(words=Words((("a", "b"), ("c",))))})["t"]
    assert (found.dtype, {*found[:, 0]}, {*found[:, 1]}) == (np.dtype(object), {"a", "b"}, {"c"})
    assert seeded(inputs, shapes, 0)["t"].shape == (32, 2)


# -- recorded values --------------------------------------------------------------------------------------------

IMAGE, LABEL = spec("image", "N", 3, "H", "W"), spec("ids", "N", "S", dtype=I64)


def stored(path, **arrays):
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (0, 1 << 62, 2)])
def test_what_memory_cannot_hold_is_not_made_up(shape):
    with pytest.raises(BadRequest, match=r"input 'x' of shape \[.*\] is too large to be made up"):
        seeded([spec("x", *shape)], {"x": shape}, 0)


def test_samples_lie_along_the_leading_axis(tmp_path):
    images = np.random.default_rng(0).random((5, 3, 4, 6), np.float32)
    ids = np.arange(10).reshape(5, 2)
    runs = read_recorded(stored(tmp_path, image=images, ids=ids, unused=np.zeros(1)), [IMAGE, LABEL])
    assert len(runs) == 5
    for k, run in enumerate(runs):
        assert list(run) == ["image", "ids"]
        np.testing.assert_array_equal(run["image"], images[k : k + 1])
        np.testing.assert_array_equal(run["ids"], ids[k : k + 1])
        assert run["image"].flags.c_contiguous


def test_texts_are_recorded_as_such(tmp_path):
    runs = read_recorded(stored(tmp_path, t=np.array(["a", "bc"])), [TensorSpec("t", np.dtype(object), ("N",))])
    assert [run["t"].tolist() for run in runs] == [["a"], ["bc"]]
    assert runs[0]["t"].dtype == object


def test_a_flag_is_recorded_once_for_all(tmp_path):
    flag = TensorSpec("flag", np.dtype(bool), (1,))
    runs = read_recorded(
        stored(tmp_path, x=np.ones((3, 4), np.float32), flag=np.array([True])), [spec("x", "N", 4), flag]
    )
    assert [run["flag"].tolist() for run in runs] == [[True]] * 3
    with pytest.raises(BadRequest, match="numbers of samples differ"):
        read_recorded(stored(tmp_path, x=np.ones((3, 4)), flag=np.array([True, False])), [spec("x", "N", 4), flag])


def test_whole_batches_are_kept(tmp_path):
    batches = np.random.default_rng(0).random((2, 4, 3, 5, 5), np.float32)
    runs = read_recorded(stored(tmp_path, image=batches), [IMAGE])
    assert [r["image"].shape for r in runs] == [(4, 3, 5, 5)] * 2


def test_a_fixed_leading_axis_decides_how_many_samples_go_into_a_run(tmp_path):
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    runs = read_recorded(stored(tmp_path, x=values), [spec("x", 4, 2)])
    np.testing.assert_array_equal(np.concatenate([run["x"] for run in runs]), values[:8])
    assert [run["x"].shape for run in runs] == [(4, 2)] * 2
    with pytest.raises(BadRequest, match="samples of shape"):
        read_recorded(stored(tmp_path, x=values), [spec("x", 4, 3)])


def test_a_batch_is_that_of_every_run(tmp_path):
    path, inputs = stored(tmp_path, x=np.zeros((10, 2), np.float32)), [spec("x", "N", 2)]
    assert [run["x"].shape for run in read_recorded(path, inputs, batch=4)] == [(4, 2)] * 2
    with pytest.raises(BadRequest, match=r"--batch 11: .*data.npz holds 10 samples"):
        read_recorded(path, inputs, batch=11)
    with pytest.raises(BadRequest, match="holds whole runs"):
        read_recorded(stored(tmp_path, x=np.zeros((3, 4, 2), np.float32)), inputs, batch=2)


def test_values_get_the_type_of_the_input(tmp_path):
    runs = read_recorded(
        stored(tmp_path, image=np.ones((1, 3, 2, 2), np.uint8), ids=np.ones((1, 2), np.int32)), [IMAGE, LABEL]
    )
    assert runs[0]["image"].dtype == np.float32
    assert runs[0]["ids"].dtype == np.int64


def test_at_most_limit_runs(tmp_path):
    path = stored(tmp_path, ids=np.zeros((100, 2), np.int64))
    assert len(read_recorded(path, [LABEL])) == 64
    assert len(read_recorded(path, [LABEL], limit=3)) == 3


class Trap:
    """What unpickling must never run."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def _objects(path):
    np.savez(path, ids=np.array([Trap()], dtype=object))


def _not_numbers(path):
    np.savez(path, ids=np.array([["a", "b"]]))


def _plain_array(path):
    with path.open("wb") as stream:
        np.save(stream, np.zeros((1, 2), np.int64))


def _truncated(path):
    np.savez(path, ids=np.zeros((4, 2), np.int64))
    path.write_bytes(path.read_bytes()[:-40])


def _corrupt(path):
    np.savez(path, ids=np.arange(800).reshape(400, 2))
    data = bytearray(path.read_bytes())
    data[500:520] = bytes(20)
    path.write_bytes(data)


def _header(text):
    """An .npz whose one array says this of itself."""
    data = text.encode() + b"\n"

    def make(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ids.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + bytes(32))

    return make


UNREADABLE = {
    "more than any memory": (
        _header("{'descr': '<i8', 'fortran_order': False, 'shape': (17592186044416, 2)}"),
        "The file is damaged",
    ),
    "an open bracket": (_header("{'descr': '<i8', 'shape': (("), "is not a readable .npz"),
    "no file": (lambda path: None, "No such file"),
    "text": (lambda path: path.write_text("ids: 1, 2\n"), "is not a readable .npz"),
    "objects": (_objects, "'ids' holds Python objects, which are not read: save numbers as np.asarray("),
    "one array": (_plain_array, "is not a readable .npz"),
    "a folder": (lambda path: path.mkdir(), "is not a readable .npz"),
    "empty file": (lambda path: path.write_bytes(b""), "is not a readable .npz"),
    "truncated": (_truncated, "is not a readable .npz"),
    "corrupt": (_corrupt, "is not a readable .npz"),
    "no arrays": (np.savez, "lacks ids; it holds nothing"),
    "another name": (lambda path: np.savez(path, words=np.zeros((1, 2))), "lacks ids; it holds words"),
    "one number": (lambda path: np.savez(path, ids=np.int64(3)), "ids"),
    "no samples": (lambda path: np.savez(path, ids=np.zeros((0, 2), np.int64)), "no samples"),
    "too few axes": (lambda path: np.savez(path, ids=np.zeros(4, np.int64)), "ids"),
    "too many axes": (lambda path: np.savez(path, ids=np.zeros((4, 1, 2, 2), np.int64)), "ids"),
    "text in an array": (_not_numbers, "ids"),
    "fractions": (lambda path: np.savez(path, ids=np.full((1, 2), 0.5)), "float64, but the model takes int64"),
    "complex": (lambda path: np.savez(path, ids=np.zeros((1, 2), complex)), "'ids' holds complex numbers"),
}  # fmt: skip


def refusal(path):
    """Kind and text of the error. What numpy leaves open then is closed here, not in the middle of another test."""
    try:
        read_recorded(path, [LABEL])
    except Exception as error:
        told = type(error), str(error)
        traceback.clear_frames(error.__traceback__)
    else:
        told = None, ""
    gc.collect()
    return told


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", UNREADABLE)
def test_bad_recordings_are_refused(name, tmp_path):
    make, text = UNREADABLE[name]
    path = tmp_path / "data.npz"
    make(path)
    kind, told = refusal(path)
    assert kind is BadRequest
    assert text in told
    assert str(path) in told
    assert not Trap.sprung


def test_different_numbers_of_samples_are_refused(tmp_path):
    path = stored(tmp_path, image=np.zeros((3, 3, 4, 4)), ids=np.zeros((4, 2), np.int64))
    with pytest.raises(BadRequest, match=r"numbers of samples differ: \{'image': 3, 'ids': 4\}"):
        read_recorded(path, [IMAGE, LABEL])
