"""Samples: what files, folders, images and iterables become, in batches as the model takes them; what is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from runtime import archives, images, samples, sources, store
from runtime.archives import read_npz
from runtime.backends import TensorSpec
from runtime.errors import BackendMissing, BadRequest
from runtime.images import Preprocess, parse_preprocess
from runtime.samples import load_samples, samples_of

F32, F16, I64, I32, U8 = (np.dtype(t) for t in ("f4", "f2", "i8", "i4", "u1"))


def spec(name, *shape, dtype=F32):
    return TensorSpec(name, dtype, shape)


X = spec("x", "N", 3)
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


def together(found, size=4, name="x"):
    return np.concatenate([feeds[name] for feeds in found.batches(size)])


def npz(folder, name="data.npz", **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


# -- batches ----------------------------------------------------------------------------------------------------

BATCHES = {
    # samples, declared leading axis, size asked for -> sizes of the batches
    "even": (8, "N", 4, [4, 4]),
    "a rest": (10, "N", 4, [4, 4, 2]),
    "all at once": (10, "N", 99, [10]),
    "unnamed": (3, None, 2, [2, 1]),
    "fixed to one": (3, 1, 8, [1, 1, 1]),
    "fixed, whatever is asked for": (10, 4, 1, [4, 4]),
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches(case, tmp_path):
    count, leading, size, sizes = BATCHES[case]
    found = load_samples(npz(tmp_path, x=ROWS[:count]), [spec("x", leading, 3)])
    got = list(found.batches(size))
    assert [len(f["x"]) for f in got] == sizes
    assert len(found) == sum(sizes)
    assert all(f["x"].dtype == F32 and f["x"].flags.c_contiguous for f in got)
    np.testing.assert_array_equal(together(found, size), ROWS[: sum(sizes)])
    assert any("left out: 2" in n for n in found.notes) == (sum(sizes) < count)


def test_parts_do_not_overlap_and_fill_runs(tmp_path):
    path = npz(tmp_path, x=ROWS)
    found = load_samples(path, [X])
    np.testing.assert_array_equal(together(found.part(0, 7)), ROWS[:7])
    np.testing.assert_array_equal(together(found.part(7, 10)), ROWS[7:])
    assert len(found.part(10, 20)) == 0
    fixed = load_samples(path, [spec("x", 4, 3)]).part(0, 6)
    assert (len(fixed), fixed.notes) == (4, ("samples left out: 2, which do not fill a run of 4",))


def test_a_limit_is_a_random_subset_of_its_seed(tmp_path):
    path = npz(tmp_path, x=ROWS, y=np.arange(10))
    one, again, other = (load_samples(path, [X], limit=5, seed=s, labels=("y",)) for s in (0, 0, 1))
    assert len(one) == 5
    np.testing.assert_array_equal(together(one), together(again))
    assert not np.array_equal(together(one), together(other))
    np.testing.assert_array_equal(together(one)[:, 0] // 3, one.labels)
    assert sorted(together(one.shuffled(3))[:, 0]) == sorted(together(one)[:, 0])
    np.testing.assert_array_equal(together(load_samples(path, [X], limit=10)), ROWS)


def test_digests_tell_contents_apart(tmp_path):
    path, specs = npz(tmp_path, x=ROWS), [X]
    first = load_samples(path, specs).digest
    assert first == load_samples(npz(tmp_path, "same.npz", x=ROWS, extra=ROWS), specs).digest
    changed = ROWS.copy()
    changed[9, 2] += 1
    others = [
        load_samples(npz(tmp_path, "other.npz", x=changed), specs).digest,
        load_samples(path, specs).part(0, 9).digest,
        load_samples(path, specs).shuffled(1).digest,
        load_samples(npz(tmp_path, "double.npz", x=ROWS.astype(np.float64)), specs).digest,
    ]
    assert len({first, *others}) == 5


def test_whole_runs(tmp_path):
    """An input without a batch axis, and one whose batch is not the first axis."""
    state, rate = np.arange(8, dtype=np.float32).reshape(4, 2, 1, 1), np.full(4, 16000)
    path = npz(tmp_path, x=ROWS[:4], state=state, rate=rate)
    found = load_samples(path, [X, spec("state", 2, "N", 1), spec("rate", dtype=I64)])
    got = list(found.batches(3))
    assert len(got) == len(found) == 4
    assert [f["x"].shape for f in got] == [(1, 3)] * 4
    assert [f["state"].shape for f in got] == [(2, 1, 1)] * 4
    assert got[3]["rate"].shape == ()
    np.testing.assert_array_equal(got[3]["state"], state[3])


def test_types_follow_the_model(tmp_path):
    path = npz(tmp_path, x=np.arange(6).reshape(2, 3))
    assert together(load_samples(path, [spec("x", "N", 3, dtype=F16)])).dtype == F16
    assert together(load_samples(path, [spec("x", "N", 3, dtype=I32)])).dtype == I32
    wide = load_samples(npz(tmp_path, "wide.npz", x=np.full((1, 3), 300)), [spec("x", "N", 3, dtype=U8)])
    with pytest.raises(BadRequest, match="values from 300 to 300, which uint8 cannot hold"):
        together(wide)


def test_not_a_number_is_noted(tmp_path):
    rows = ROWS.copy()
    rows[2, 1], rows[5, 0] = np.nan, np.inf
    found = load_samples(npz(tmp_path, x=rows), [X])
    assert found.notes == ("2 of 10 samples hold NaN, infinity or numbers beyond the input's type",)
    assert np.isnan(together(found)[2, 1])
    wide = np.where(np.isfinite(rows), rows.astype(np.float64), 1e300)
    assert load_samples(npz(tmp_path, x=wide), [X]).notes == found.notes


# -- files and folders ------------------------------------------------------------------------------------------


def test_names_of_arrays(tmp_path):
    image = [spec("image", "N", 3)]
    for arrays in ({"x": ROWS, "other": ROWS}, {"anything": ROWS, "y": np.arange(10)}):
        found = load_samples(npz(tmp_path, **arrays), image, labels=("y",))
        np.testing.assert_array_equal(together(found, name="image"), ROWS)
        assert f"input 'image' is the array '{next(iter(arrays))}'" in found.notes
        assert (found.labels is None) == ("y" not in arrays)
    with pytest.raises(BadRequest, match=r"lacks image; it holds a, b\.$"):
        load_samples(npz(tmp_path, a=ROWS, b=ROWS), image)
    with pytest.raises(BadRequest, match="lacks second"):
        load_samples(npz(tmp_path, x=ROWS), [X, spec("second", "N", 3)])


def test_a_named_part_of_a_file(tmp_path):
    path = npz(tmp_path, x_train=ROWS, y_train=np.arange(10), x_test=-ROWS[:4], y_test=np.arange(4))
    found = load_samples(path.with_name("data.npz:test"), [X], labels=("y",))
    np.testing.assert_array_equal(together(found), -ROWS[:4])
    assert list(found.labels) == [0, 1, 2, 3]
    with pytest.raises(BadRequest, match=r"Name the part to take: .*data\.npz:test"):
        load_samples(path, [X])


def test_a_folder_of_arrays_is_mapped(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    np.save(tmp_path / "mask.npy", np.ones((10, 2), np.int64))
    np.save(tmp_path / "y.npy", np.arange(10))
    found = load_samples(tmp_path, [X, spec("mask", "N", 2, dtype=I64)], labels=("y",))
    assert isinstance(found.store.parts[0].load()["x"], np.memmap)
    np.testing.assert_array_equal(together(found), ROWS)
    assert list(found.labels) == list(range(10))
    with pytest.raises(BadRequest, match="lacks other"):
        load_samples(tmp_path, [X, spec("other", "N", 2)])


def test_a_folder_of_archives(tmp_path, monkeypatch):
    """Only samples of one shape share a batch; labels follow."""
    for i, (count, width) in enumerate([(2, 5), (1, 5), (3, 7)]):
        npz(tmp_path, f"{i}.npz", x=np.full((count, width), i, np.float32), y=np.full(count, i))
    found = load_samples(tmp_path, [spec("x", "N", "T")], labels=("y",))
    assert [f["x"].shape for f in found.batches(2)] == [(2, 5), (1, 5), (2, 7), (1, 7)]
    assert [f["x"].shape for f in found.batches(9)] == [(3, 5), (3, 7)]
    assert all((feeds["x"][:, 0] == labels).all() for feeds, labels in found.shuffled(1).labelled(9))
    loads = []
    monkeypatch.setattr(sources, "read_npz", lambda path, names: loads.append(path) or read_npz(path, names))
    mixed = load_samples(tmp_path, [spec("x", "N", "T")]).part(0, 3)
    order = replace(mixed, rows=np.array([0, 2, 1]))
    assert list(together(order)[:, 0]) == [0, 1, 0]
    assert len(loads) == len(set(loads)), "each file is read once"
    monkeypatch.setattr(store, "_KEPT", 1)
    found = load_samples(tmp_path, [spec("x", "N", "T")])
    assert list(together(found.part(0, 3), 1)[:, 0]) == [0, 0, 1]
    (tmp_path / "1.npz").unlink()
    with pytest.raises(BadRequest, match="not a readable"):
        list(found.batches(9))


def crafted(header: dict, data: bytes) -> bytes:
    text = repr(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def lying(folder, header, data):
    with zipfile.ZipFile(folder / "lies.npz", "w") as archive:
        archive.writestr("x.npy", crafted(header, data))
    return folder / "lies.npz"


HEADER = {"descr": "<f4", "fortran_order": False, "shape": (2, 3)}
LIES = {
    "more than there is": {**HEADER, "shape": (1 << 40, 3)},
    "less than there is": {**HEADER, "shape": (1, 3)},
    "a negative size": {**HEADER, "shape": (-2, 3)},
    "no header": {"shape": (2, 3)},
    "no type": {**HEADER, "descr": "nonsense"},
}


@pytest.mark.parametrize("lie", LIES)
def test_archives_that_lie(lie, tmp_path):
    path = lying(tmp_path, LIES[lie], bytes(24))
    with pytest.raises(BadRequest, match=r"lies\.npz"):
        load_samples(path, [X])
    assert len(load_samples(lying(tmp_path, HEADER, bytes(24)), [X])) == 2


def test_a_header_that_ends_early(tmp_path):
    text = b"{'descr': '<f4', 'shape': ((\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(24))
    with pytest.raises(BadRequest, match=r"x\.npy is not a readable \.npy"):
        load_samples(tmp_path, [X])


def test_archives_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 100)
    with pytest.raises(BadRequest, match=r"Give a folder of NAME\.npy"):
        load_samples(npz(tmp_path, x=ROWS), [X])


def damaged(folder):
    whole = npz(folder, x=ROWS).read_bytes()
    yield "truncated", whole[: len(whole) // 2]
    yield "empty", b""
    yield "text", b"hello"
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    yield "a pickle", stream.getvalue()


def test_damaged_files(tmp_path):
    for name, content in list(damaged(tmp_path)):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(BadRequest, match=r"bad\.npz is not a readable \.npz"):
            load_samples(tmp_path / "bad.npz", [X])
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.npy").write_bytes(content)
        with pytest.raises(BadRequest, match=r"x\.npy"):
            load_samples(folder, [X])


REFUSED = {
    "no samples": ({"x": ROWS[:0]}, [X], "holds no samples"),
    "too few for a run": ({"x": ROWS}, [spec("x", 16, 3)], "10 samples do not fill one run of 16"),
    "another size": ({"x": ROWS}, [spec("x", "N", 4)], r"samples of shape \[3\], the model declares x\[N, 4\]"),
    "too few axes": ({"x": ROWS}, [spec("x", "N", 3, 1, 1)], "float32 with 2 axes; expected numbers with 4"),
    "words": ({"x": np.array(["a"])}, [X], "it holds no arrays of numbers"),
    "fractions for ids": ({"x": ROWS}, [spec("x", "N", 3, dtype=I64)], "is float32, but the model takes int64"),
    "counts differ": ({"x": ROWS, "z": ROWS[:2]}, [X, spec("z", "N", 3)], "numbers of samples differ"),
    "numbers for text": ({"x": ROWS}, [TensorSpec("x", np.dtype(object), ("N", 3))], "it holds no arrays of text"),
    "complex input": ({"x": ROWS}, [TensorSpec("x", np.dtype("c8"), ("N", 3))], "no tensor of real numbers or text"),
    "no common batch": ({"x": ROWS, "h": ROWS}, [spec("x", 1, 3), spec("h", 2, 3)], "do not share a batch axis"),
    "labels of another length": ({"x": ROWS, "y": np.arange(3)}, [X], r"10 samples, but labels of shape \[3\]"),
    "no inputs": ({"x": ROWS}, [], "the model has no inputs"),
}  # fmt: skip


@pytest.mark.parametrize("files", [1, 2])
def test_what_has_no_axis_of_samples_is_for_all_of_them(tmp_path, files):
    flag, number = TensorSpec("flag", np.dtype(bool), (1,)), spec("number")
    for k in range(files):
        np.savez(tmp_path / f"{k}.npz", x=ROWS, flag=np.array([True]), number=np.float32(3))
    found = load_samples(tmp_path / "0.npz" if files == 1 else tmp_path, [X, flag, number])
    assert len(found) == files * len(ROWS)
    for feeds in found.batches(4):
        assert {n: (a.shape, a.dtype) for n, a in feeds.items() if n != "x"} == {
            "flag": ((1,), np.dtype(bool)),
            "number": ((), np.dtype(np.float32)),
        }
        assert feeds["x"].shape == (1, 3)  # one sample a run, as it has no axis for several


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    arrays, specs, message = REFUSED[case]
    with pytest.raises(BadRequest, match=message):
        load_samples(npz(tmp_path, **arrays), specs, labels=("y",))


def test_refused_sources(tmp_path):
    with pytest.raises(BadRequest, match="no such file or folder"):
        load_samples(tmp_path / "nowhere", [X])
    with pytest.raises(BadRequest, match=r"holds no samples: expected NAME\.npy"):
        load_samples(tmp_path, [X])
    with pytest.raises(BadRequest, match="limit of 0"):
        load_samples(npz(tmp_path, x=ROWS), [X], limit=0)
    with pytest.raises(BadRequest, match="batch of 0"):
        list(load_samples(npz(tmp_path, x=ROWS), [X]).batches(0))
    with pytest.raises(BadRequest, match="--preprocess is for image files"):
        load_samples(npz(tmp_path, x=ROWS), [X], preprocess=Preprocess(scale=2.0))


# -- from Python ------------------------------------------------------------------------------------------------


def test_feeds_from_python():
    feeds = [{"x": ROWS[:2], "y": np.array([0, 1])}, {"x": ROWS[2:5], "y": np.array([2, 3, 4])}]
    found = samples_of(feeds, [X], labels="y")
    assert [len(f["x"]) for f in found.batches(4)] == [4, 1]
    np.testing.assert_array_equal(together(found), ROWS[:5])
    assert list(found.labels) == [0, 1, 2, 3, 4]
    assert samples_of((f for f in feeds), [X]).digest == samples_of(feeds, [X]).digest
    assert samples_of({"x": ROWS}, [X]).digest == samples_of([{"x": ROWS}], [X]).digest


def test_feeds_that_cannot_be_put_together_are_run_as_they_are():
    specs = [X, spec("h", 2, "N", 1)]
    feeds = [{"x": ROWS[:2], "h": np.zeros((2, 2, 1), np.float32)}, {"x": ROWS[:3], "h": np.ones((2, 3, 1))}]
    got = list(samples_of(feeds, specs).batches(8))
    assert [(f["x"].shape, f["h"].shape) for f in got] == [((2, 3), (2, 2, 1)), ((3, 3), (2, 3, 1))]
    audio = samples_of([{"a": np.zeros(5, np.float32)}] * 2, [spec("a", "length")])
    assert [f["a"].shape for f in audio.batches(8)] == [(5,), (5,)]


def test_refused_feeds(monkeypatch):
    with pytest.raises(BadRequest, match="feed 1 lacks x; it holds z"):
        samples_of([{"x": ROWS}, {"z": ROWS}], [X])
    with pytest.raises(BadRequest, match=r"feed 0: 'x' has the shape \[3\]"):
        samples_of([{"x": ROWS[0]}], [X])
    for wrong, name in ((ROWS, "ndarray"), ([ROWS], "ndarray"), (([ROWS, 0] for _ in range(2)), "list")):
        with pytest.raises(BadRequest, match=rf"feed 0 is of type {name}; a dict of arrays is wanted: \{{'x': ...\}}"):
            samples_of(wrong, [X])
    with pytest.raises(BadRequest, match="holds no samples"):
        samples_of([], [X])
    monkeypatch.setattr(samples, "_MOST_FEEDS", 3)
    with pytest.raises(BadRequest, match="goes on after 3 feeds"):
        samples_of(iter([{"x": ROWS}] * 9), [X])
    assert len(samples_of([{"x": ROWS}] * 9, [X])) == 90


# -- pixels -----------------------------------------------------------------------------------------------------

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
NORMAL = ((PIXELS / 255 - MEAN) / STD).astype(np.float32)

LAYOUTS = {
    "channels last to first": (PIXELS, spec("x", "N", 3, 8, 8), NORMAL.transpose(0, 3, 1, 2)),
    "channels first": (PIXELS.transpose(0, 3, 1, 2), spec("x", "N", 3, 8, 8), NORMAL.transpose(0, 3, 1, 2)),
    "channels last": (PIXELS, spec("x", "N", 8, 8, 3), NORMAL),
    "first to last": (PIXELS.transpose(0, 3, 1, 2), spec("x", "N", 8, 8, 3), NORMAL),
    "any size": (PIXELS, spec("x", "N", 3, "H", "W"), NORMAL.transpose(0, 3, 1, 2)),
    "grey": (PIXELS[..., :1], spec("x", "N", 1, 8, 8),
             ((PIXELS[..., :1] / 255 - MEAN.mean()) / STD.mean()).transpose(0, 3, 1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_stored_pixels(case, tmp_path, monkeypatch):
    pixels, wanted, values = LAYOUTS[case]
    monkeypatch.setattr(images, "pillow", lambda: pytest.fail("pixels of the right size need no Pillow"))
    found = load_samples(npz(tmp_path, x=pixels), [wanted])
    np.testing.assert_allclose(together(found), values, atol=1e-5)
    assert "pixels of 'x': size" in found.notes[0]


def test_what_is_done_to_pixels(tmp_path):
    path, wanted = npz(tmp_path, x=PIXELS), [spec("x", "N", 3, 8, 8)]
    plain = together(load_samples(path, wanted, preprocess=parse_preprocess("none")))
    np.testing.assert_array_equal(plain, PIXELS.transpose(0, 3, 1, 2))
    scaled = together(load_samples(path, wanted, preprocess=parse_preprocess("scale=2,mean=1,std=4/2/1")))
    np.testing.assert_allclose(scaled, (plain / 2 - 1) / np.array([4, 2, 1]).reshape(3, 1, 1), rtol=1e-6)
    swapped = together(load_samples(path, wanted, preprocess=parse_preprocess("order=BGR")))
    np.testing.assert_allclose(swapped, NORMAL.transpose(0, 3, 1, 2)[:, ::-1], atol=1e-5)
    kept = load_samples(path, [spec("x", "N", 8, 8, 3, dtype=U8)])
    np.testing.assert_array_equal(together(kept), PIXELS)
    with pytest.raises(BadRequest, match=r"do not have the 4 channels of input x\[N, 4, 8, 8\]"):
        load_samples(path, [spec("x", "N", 4, 8, 8)])


def test_options_of_preprocess():
    assert parse_preprocess("resize=256, crop=224,layout=nhwc,order=bgr") == Preprocess(
        256, 224, layout="NHWC", order="BGR"
    )
    for text in ("", "size=3", "crop=x", "mean=a/b", "std=0", "scale=1/2", "scale=nan", "layout=HWC", "crop=1,crop=2"):
        with pytest.raises(BadRequest, match="--preprocess"):
            parse_preprocess(text)
    with pytest.raises(BadRequest, match="2 numbers"):
        images.recipe(spec("x", "N", 3, 8, 8), Preprocess(mean=(1.0, 2.0)), files=True)
    with pytest.raises(BadRequest, match="leave out crop"):
        images.recipe(spec("x", "N", 3, 8, 8), Preprocess(crop=9), files=True)


@pytest.fixture
def pictures(tmp_path):
    """Five images in subfolders, 20 x 12, the left half black and the right half of one colour."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = tmp_path / "images"
    for i, suffix in enumerate(["png", "bmp", "webp", "png", "png"]):
        pixels = np.zeros((12, 20, 3), np.uint8)
        pixels[:, 10:] = (50 * i, 10, 200)
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        options = {"lossless": True} if suffix == "webp" else {}
        pillow.fromarray(pixels).save(folder / f"class{i % 2}" / f"{i}.{suffix}", **options)
    return folder


def test_a_folder_of_images(pictures):
    found = load_samples(pictures, [spec("x", "N", 8, 8, 3)], preprocess=parse_preprocess("mean=0,std=1,scale=1"))
    values = together(found, 2)
    assert values.shape == (5, 8, 8, 3)
    assert values[:, 4, 0].max() < 2  # the centre crop of 9 x 15
    np.testing.assert_allclose(values[:, 4, 7], [[50 * i, 10, 200] for i in (0, 2, 4, 1, 3)], atol=2)
    assert found.digest == load_samples(pictures, [spec("x", "N", 8, 8, 3)], preprocess=Preprocess(
        mean=(0.0,), std=(1.0,), scale=1.0)).digest  # fmt: skip
    assert found.digest != load_samples(pictures, [spec("x", "N", 8, 8, 3)]).digest
    grey = together(load_samples(pictures, [spec("x", "N", 1, 8, 8)]))
    assert grey.shape == (5, 1, 8, 8)


def test_images_of_16_bits(tmp_path):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    pillow.fromarray(levels).save(tmp_path / "a.png")
    for channels in (1, 3):
        found = load_samples(tmp_path, [spec("x", "N", channels, 16, 16)], preprocess=parse_preprocess("none"))
        np.testing.assert_array_equal(together(found)[0, 0], levels // 257)
    for kind, dtype in (("whole numbers of 32 bits", np.int32), ("fractions", np.float32)):
        (tmp_path / dtype.__name__).mkdir()
        pillow.fromarray(levels.astype(dtype)).save(tmp_path / dtype.__name__ / "a.png", format="TIFF")
        with pytest.raises(BadRequest, match=rf"a\.png: its pixels are {kind}.*an \.npz by input name"):
            together(load_samples(tmp_path / dtype.__name__, [spec("x", "N", 1, 16, 16)]))


def test_images_of_their_own_size(pictures):
    as_they_are = parse_preprocess("none")
    assert together(load_samples(pictures, [spec("x", "N", 3, "H", "W")], preprocess=as_they_are)).shape == (
        5,
        3,
        12,
        20,
    )
    assert together(load_samples(pictures, [spec("x", "N", 3, "H", "W")])).shape == (5, 3, 224, 224)
    with pytest.raises(BadRequest, match="does not give the 8 x 8 of the input"):
        together(load_samples(pictures, [spec("x", "N", 3, 8, 8)], preprocess=as_they_are))


def test_labels_of_images_are_not_guessed(pictures):
    assert load_samples(pictures, [spec("x", "N", 3, 8, 8)], labels=("y", "labels")).labels is None
    np.save(pictures / "labels.npy", np.arange(5))
    assert list(load_samples(pictures, [spec("x", "N", 3, 8, 8)], labels=("y", "labels")).labels) == [0, 1, 2, 3, 4]


def test_refused_images(pictures, monkeypatch):
    with pytest.raises(BadRequest, match="fits a model with one input"):
        load_samples(pictures, [spec("x", "N", 3, 8, 8), X])
    with pytest.raises(BadRequest, match="no image: it has 2 axes"):
        load_samples(pictures, [X])
    with pytest.raises(BadRequest, match="1, 3 or 4 channels, not the 7"):
        together(load_samples(pictures, [spec("x", "N", 7, 8, 8)]))
    (pictures / "0.png").write_bytes(b"no image")
    with pytest.raises(BadRequest, match=r"0\.png is not a readable image"):
        together(load_samples(pictures, [spec("x", "N", 3, 8, 8)]))
    monkeypatch.setattr(images, "_LARGEST", 100)
    (pictures / "0.png").unlink()
    with pytest.raises(BadRequest, match="20 x 12 pixels, too many"):
        together(load_samples(pictures, [spec("x", "N", 3, 8, 8)]))


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(BackendMissing, match=r"pip install 'secateur\[images\]'"):
        load_samples(tmp_path, [spec("x", "N", 3, 8, 8)])
