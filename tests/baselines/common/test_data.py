"""The study's data: the idx reader, the checks on what was read or fetched, and the split protocol."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baselines.common import data as data_module
from baselines.common.data import DATASETS, Dataset, Split, load_arrays, load_dataset
from baselines.common.download import BASE_URLS, CHECKSUMS, FILES, PACKED_CHECKSUMS, download
from baselines.common.idx import read_idx

Contents = dict[str, bytes]
REAL = os.environ.get("EQUILAYERS_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="EQUILAYERS_DATA is not set: no MNIST here")


def idx_bytes(array: NDArray[np.uint8], magic: int | None = None) -> bytes:
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.arange(5, dtype=np.uint8)
TRAIN, TEST, LABELS_OF_TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def no_ambient_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EQUILAYERS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def small_set(seed: int) -> Contents:
    """Four idx files of 28 x 28 images, 40 to train and 20 to test, the classes taking turns."""
    rng = np.random.default_rng(seed)
    contents = {}
    for part, n in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_bytes(rng.permutation(np.arange(n, dtype=np.uint8) % 10))
    return contents


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Contents]:
    """Small stand-ins for both data sets, their sums in the table."""
    sets = {"mnist": small_set(1), "fashion-mnist": small_set(2)}
    for name, contents in sets.items():
        monkeypatch.setitem(CHECKSUMS, name, tuple(hashlib.sha256(contents[file]).hexdigest() for file in FILES))
    return sets


def fill(folder: Path, contents: Contents, suffix: str = ".gz") -> Path:
    for file, content in contents.items():
        write(folder / f"{file}{suffix}", content)
    return folder


# --- read_idx


@pytest.mark.parametrize("array", [IMAGES, LABELS], ids=["images", "labels"])
@pytest.mark.parametrize("name", ["a.gz", "a", "{}.gz", "{}", "b"])
def test_read_idx_returns_what_was_written(tmp_path: Path, name: str, array: NDArray[np.uint8]) -> None:
    path = tmp_path / name.format(TEST if array is IMAGES else "train-labels-idx1-ubyte")
    write(path, idx_bytes(array))
    if name == "b":  # gzipped without the suffix
        path.write_bytes(gzip.compress(idx_bytes(array)))
    for given in (path, str(path)):
        read = read_idx(given)
        assert read.dtype == np.uint8
        assert read.flags.writeable
        np.testing.assert_array_equal(read, array)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"magic number of 4 bytes, got 0 bytes: it is truncated"),
    "header": (idx_bytes(IMAGES)[:9], r"header of 16 bytes, got 9 bytes: it is truncated"),
    "truncated": (idx_bytes(IMAGES)[:-7], r"hold 60 bytes of data for the shape \(5, 4, 3\), got 53: it is truncated"),
    "trailing": (idx_bytes(IMAGES) + b"xy", r"end after 60 bytes .* got 2 trailing bytes"),
    "magic": (idx_bytes(IMAGES, 0x00000D03), r"0x00000803 \(images\) or 0x00000801 \(labels\), got 0x00000d03"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("case", BAD)
def test_read_idx_refuses_bad_contents(tmp_path: Path, case: str, suffix: str) -> None:
    content, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        read_idx(write(tmp_path / f"bad{suffix}", content))


def test_read_idx_says_swapped(tmp_path: Path) -> None:
    labels_named_images = write(tmp_path / "train-images-idx3-ubyte.gz", idx_bytes(LABELS))
    with pytest.raises(ValueError, match=r"0x00000803 \(images\), got 0x00000801 \(labels\).*swapped"):
        read_idx(labels_named_images)
    with pytest.raises(ValueError, match=r"0x00000801 \(labels\), got 0x00000803 \(images\).*swapped"):
        read_idx(write(tmp_path / "any", idx_bytes(IMAGES)), kind="labels")


def test_read_idx_refuses_bad_gzip_streams(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with pytest.raises(FileNotFoundError, match=r"a\.gz"):
        read_idx(path)
    path.write_bytes(idx_bytes(IMAGES))
    with pytest.raises(ValueError, match=r"to be gzipped .*'00 00 08 03'.*take '.gz' off"):
        read_idx(path)
    packed = gzip.compress(idx_bytes(IMAGES))
    flipped = packed[:40] + bytes([packed[40] ^ 0xFF]) + packed[41:]
    for corrupt in (packed[:-9], packed[:11], flipped, packed + b"garbage"):
        path.write_bytes(corrupt)
        with pytest.raises(ValueError, match="corrupt"):
            read_idx(path)


# --- load_arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["", "mnist"])
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_load_arrays_finds_the_files(
    tmp_path: Path, known: dict[str, Contents], monkeypatch: pytest.MonkeyPatch, suffix: str, inside: str, way: str
) -> None:
    """The folder of that name is preferred."""
    fill(tmp_path / inside, known["mnist"], suffix)
    fill(tmp_path / ("fashion-mnist" if inside else "elsewhere"), known["fashion-mnist"])
    if way == "environment":
        monkeypatch.setenv("EQUILAYERS_DATA", str(tmp_path))
    images, labels = load_arrays("mnist", None if way == "environment" else tmp_path)
    assert (images.shape, labels.shape) == ((60, 28, 28), (60,))
    assert images.dtype == labels.dtype == np.uint8
    for array, kind, header in ((images, "images-idx3-ubyte", 16), (labels, "labels-idx1-ubyte", 8)):
        assert array.tobytes() == b"".join(known["mnist"][f"{part}-{kind}"][header:] for part in ("train", "t10k"))
    if inside:
        fill(tmp_path, known["mnist"])
        images, _ = load_arrays("fashion-mnist", tmp_path)
        assert images[:40].tobytes() == known["fashion-mnist"][TRAIN][16:]


@pytest.mark.parametrize(
    ("folder", "got"),
    [(None, "neither"), ("nowhere", r"folder that exists, got .*nowhere"), ("", rf"without {LABELS_OF_TEST}\. ")],
)
def test_load_arrays_without_data_says_both_ways(
    tmp_path: Path, known: dict[str, Contents], folder: str | None, got: str
) -> None:
    fill(tmp_path, known["mnist"])
    (tmp_path / f"{LABELS_OF_TEST}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{got}.*--data-dir DIR.*EQUILAYERS_DATA.*--download"):
        load_arrays("mnist", None if folder is None else tmp_path / folder)


def exchanged(first: str, second: str) -> Callable[[dict[str, Contents]], Contents]:
    return lambda sets: {**sets["mnist"], first: sets["mnist"][second], second: sets["mnist"][first]}


def damaged(sets: dict[str, Contents]) -> Contents:
    """One bit of the test images is another."""
    content = sets["mnist"][TEST]
    return {**sets["mnist"], TEST: content[:-1] + bytes([content[-1] ^ 1])}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damaged, rf"{TEST}.* got "),
        (exchanged(TRAIN, TEST), "which is t10k-images.* of mnist: train and t10k are swapped"),
        (exchanged(TRAIN, "train-labels-idx1-ubyte"), "images and labels are swapped"),
        (lambda sets: sets["fashion-mnist"], f"{TRAIN} of fashion-mnist"),
    ],
    ids=["damaged", "train and t10k", "images and labels", "the other data set"],
)
def test_load_arrays_refuses_a_wrong_sum(
    tmp_path: Path, known: dict[str, Contents], change: Callable[[dict[str, Contents]], Contents], says: str
) -> None:
    contents = change(known)
    with pytest.raises(ValueError, match=says) as error:
        load_arrays("mnist", fill(tmp_path, contents))
    if change is damaged:
        assert all(hashlib.sha256(each[TEST]).hexdigest() in str(error.value) for each in (contents, known["mnist"]))


# --- download


@pytest.fixture
def server(tmp_path: Path, known: dict[str, Contents], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of gzipped mnist files behind a file:// address."""
    folder = fill(tmp_path / "server", known["mnist"])
    monkeypatch.setitem(BASE_URLS, "mnist", folder.as_uri() + "/")
    sums = tuple(hashlib.sha256((folder / f"{file}.gz").read_bytes()).hexdigest() for file in FILES)
    monkeypatch.setitem(PACKED_CHECKSUMS, "mnist", sums)
    return folder


def test_download_fetches_and_skips_what_is_right(tmp_path: Path, server: Path) -> None:
    folder = download("mnist", tmp_path / "data")
    assert folder == tmp_path / "data" / "mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{file}.gz" for file in FILES)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    damaged = folder / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    for file in FILES:
        if file != "train-labels-idx1-ubyte":
            (server / f"{file}.gz").unlink()  # it has to do without these
    assert download("mnist", folder) == folder
    assert all(path == damaged or path.stat().st_mtime_ns == time for path, time in before.items())
    load_arrays("mnist", tmp_path / "data")


def test_download_goes_where_it_is_told(
    tmp_path: Path, server: Path, known: dict[str, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or into the cache; files that the user put there are left alone."""
    assert download("mnist") == tmp_path / "cache" / "equilayers" / "mnist"
    monkeypatch.setenv("EQUILAYERS_DATA", str(tmp_path / "env"))
    assert download("mnist") == tmp_path / "env" / "mnist"
    mine = fill(tmp_path / "mine", known["mnist"], suffix="")
    assert download("mnist", mine) == mine
    assert len(list(mine.iterdir())) == 4


@pytest.mark.parametrize(
    "content",
    [b"<html>", gzip.compress(b"something else"), gzip.compress(b"cut")[:-4]],
    ids=["no gzip", "another file", "cut short"],  # gzip writes the time: two workers would not agree on the names
)
def test_download_of_corrupt_content_leaves_nothing(
    tmp_path: Path, server: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server / f"{FILES[0]}.gz").write_bytes(content)
    monkeypatch.setattr(gzip, "decompress", lambda _: pytest.fail("unpacked before it was checked"))
    with pytest.raises(ValueError, match=f"download: expected file:.*{FILES[0]}"):
        download("mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_download_that_cannot_write_or_connect(tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a file is left."""

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("baselines.common.download.os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            download("mnist", tmp_path / "data")
    assert list((tmp_path / "data" / "mnist").iterdir()) == []
    monkeypatch.setitem(BASE_URLS, "mnist", (tmp_path / "no-server").as_uri())
    with pytest.raises(ConnectionError, match=r"to be reachable, got .*Check the network.*--data-dir DIR"):
        download("mnist", tmp_path / "data")


def test_load_dataset_downloads_when_asked(tmp_path: Path, server: Path) -> None:
    first, again = (
        load_dataset("mnist", data_dir=tmp_path / "data", download=fetch, splits=(20, 20, 14))
        for fetch in (True, False)
    )
    assert first.train.x.shape == (20, 1, 36, 36)
    assert torch.equal(first.train.x, again.train.x)


# --- load_dataset


@pytest.fixture
def load(tmp_path: Path, known: dict[str, Contents]) -> Callable[..., Dataset]:
    """Load the small MNIST, 54 images without class 9."""
    fill(tmp_path / "mnist", known["mnist"])
    return lambda splits=(30, 14, 10), **options: load_dataset("mnist", data_dir=tmp_path, splits=splits, **options)


def check_protocol(dataset: Dataset, size: int, pad: int) -> None:
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
        assert split.x.shape == (len(split.y), 1, size, size)
        assert int(split.y.min()) >= 0
        assert int(split.y.max()) < dataset.num_classes == 9
        frame = split.x.clone()
        frame[:, :, pad:-pad, pad:-pad] = frame[0, 0, 0, 0]
        assert (frame == frame[0, 0, 0, 0]).all()
        assert float(frame[0, 0, 0, 0]) == pytest.approx(-dataset.mean / dataset.std, rel=1e-6)
        pixels = split.x.double() * dataset.std + dataset.mean
        assert float(pixels.min()) == pytest.approx(0, abs=1e-6)
        assert float(pixels.max()) == pytest.approx(1, abs=1e-6)
    train = dataset.train.x.double()
    assert float(train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_digits_follow_the_protocol() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    dataset = load_dataset("digits")
    assert dataset.name == "digits"
    assert [len(split.y) for split in (dataset.train, dataset.test, dataset.validation)] == [900, 517, 200]
    check_protocol(dataset, size=12, pad=2)


def test_padded_after_standardising_a_frame_is_grey(load: Callable[..., Dataset]) -> None:
    first, after = load(seed=3), load(seed=3, pad_first=False)
    inside = after.train.x[:, :, 4:-4, 4:-4].double()
    assert float(inside.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inside.std(correction=0)) == pytest.approx(1, abs=1e-5)
    frame = after.test.x.clone()
    frame[:, :, 4:-4, 4:-4] = 0
    assert not frame.any()
    pixels = first.test.x * first.std + first.mean, after.test.x * after.std + after.mean
    assert torch.allclose(*(each[:, :, 4:-4, 4:-4] for each in pixels), atol=1e-6)


def as_integers(split: Split, of: Dataset) -> list[bytes]:
    """The pixels as they were in the file, one bytes object an image."""
    pixels = ((split.x * of.std + of.mean) * 255).round().to(torch.uint8)
    return [image.numpy().tobytes() for image in pixels]


def test_splits_are_disjoint_complete_and_depend_on_the_seed(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (load(seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    check_protocol(first, size=36, pad=4)
    splits = first.train, first.validation, first.test
    pixels = [as_integers(split, first) for split in splits]
    images, labels = load_arrays("mnist", tmp_path)
    padded = [image.tobytes() for image in np.pad(images, ((0, 0), (4, 4), (4, 4)))]
    label_of = {image: int(label) for image, label in zip(padded, labels, strict=True) if label != 9}
    assert sorted(image for each in pixels for image in each) == sorted(label_of)
    assert len(label_of) == 54
    for split, each in zip(splits, pixels, strict=True):
        assert [label_of[image] for image in each] == split.y.tolist(), "labels stay with their images"
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.test.y, again.test.y)
    assert set(as_integers(other.train, other)) != set(pixels[0])
    small = load((30, 2, 10), seed=3)  # the size of the test split leaves the others alone
    assert torch.equal(first.train.x, small.train.x)
    assert torch.equal(first.validation.x, small.validation.x)


def test_the_dtype_is_float32_whatever_the_default(load: Callable[..., Dataset]) -> None:
    torch.set_default_dtype(torch.float64)
    assert load().test.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"splits": (30, 15, 10)}, ValueError, r"at most the 54 images .* got 30 \+ 15 \+ 10 = 55"),
        ({"splits": None}, ValueError, "at most the 54 images"),
        *(({"splits": each}, ValueError, "three ints of at least 1") for each in ((30, 14, 0), (30, -1, 2), (30, 14))),
        *(({"splits": splits}, TypeError, "load_dataset: expected") for splits in ((30.0, 14, 10), 30, (True, 14, 10))),
        *(({"seed": seed}, TypeError, "load_dataset: expected") for seed in (1.5, None)),
    ],
    ids=str,
)
def test_bad_requests(
    load: Callable[..., Dataset], options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        load(**options)


@pytest.mark.parametrize("name", ["cifar10", "", "MNIST"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"\['digits', 'mnist', 'fashion-mnist'\]"):
        load_dataset(name)
    assert DATASETS == ("digits", "mnist", "fashion-mnist")
    for call in (load_arrays, download):
        with pytest.raises(ValueError, match=r"\['mnist', 'fashion-mnist'\]"):
            call(name)


def test_digits_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((20, 8, 8), dtype=np.uint8), np.zeros(20, dtype=np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(data_module, "_digits", lambda: blank)
        with pytest.raises(ValueError, match="more than one pixel value, got 5 constant images"):
            load_dataset("digits", splits=(5, 5, 5))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install equilayers\[study\]"):
        load_dataset("digits")


@needs_real_data
@pytest.mark.parametrize(("name", "kept"), [("mnist", 63_042), ("fashion-mnist", 63_000)])
def test_real_data(name: str, kept: int) -> None:
    images, labels = load_arrays(name, REAL)
    assert (images.shape, labels.shape) == ((70_000, 28, 28), (70_000,))
    assert int((labels != 9).sum()) == kept
    if name == "mnist":
        check_protocol(load_dataset(name, data_dir=REAL, splits=(10_000, 2_000, 2_000)), size=36, pad=4)
