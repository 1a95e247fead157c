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
from baselines.common.data import DATASETS, Dataset, load_arrays, load_dataset
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
    path = tmp_path / name.format("t10k-images-idx3-ubyte" if array is IMAGES else "train-labels-idx1-ubyte")
    write(path, idx_bytes(array))
    if name == "b":  # gzipped without the suffix
        path.write_bytes(gzip.compress(idx_bytes(array)))
    read = read_idx(path)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(read_idx(str(path)), array)


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
    path.write_bytes(idx_bytes(IMAGES))
    with pytest.raises(ValueError, match=r"to be gzipped .*'00 00 08 03'.*take '.gz' off"):
        read_idx(path)
    packed = gzip.compress(idx_bytes(IMAGES))
    flipped = packed[:40] + bytes([packed[40] ^ 0xFF]) + packed[41:]
    for corrupt in (packed[:-9], packed[:11], flipped, packed + b"garbage"):
        path.write_bytes(corrupt)
        with pytest.raises(ValueError, match="corrupt"):
            read_idx(path)


def test_read_idx_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gz"):
        read_idx(tmp_path / "nowhere.gz")


# --- load_arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["", "mnist"])
@pytest.mark.parametrize("by_environment", [False, True])
def test_load_arrays_finds_the_files(
    tmp_path: Path,
    known: dict[str, Contents],
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    inside: str,
    by_environment: bool,
) -> None:
    fill(tmp_path / inside, known["mnist"], suffix)
    if by_environment:
        monkeypatch.setenv("EQUILAYERS_DATA", str(tmp_path))
    images, labels = load_arrays("mnist", None if by_environment else tmp_path)
    assert images.shape == (60, 28, 28)
    assert labels.shape == (60,)
    assert images.dtype == labels.dtype == np.uint8
    assert images.tobytes() == b"".join(known["mnist"][f"{part}-images-idx3-ubyte"][16:] for part in ("train", "t10k"))
    assert labels.tobytes() == b"".join(known["mnist"][f"{part}-labels-idx1-ubyte"][8:] for part in ("train", "t10k"))


def test_load_arrays_prefers_the_folder_of_that_name(tmp_path: Path, known: dict[str, Contents]) -> None:
    fill(tmp_path, known["mnist"])
    fill(tmp_path / "fashion-mnist", known["fashion-mnist"])
    images, _ = load_arrays("fashion-mnist", tmp_path)
    assert images[:40].tobytes() == known["fashion-mnist"]["train-images-idx3-ubyte"][16:]


@pytest.mark.parametrize(
    ("folder", "got"),
    [
        (None, "got neither"),
        ("nowhere", r"folder that exists, got .*nowhere"),
        ("", r"without t10k-labels-idx1-ubyte\. "),
    ],
)
def test_load_arrays_without_data_says_both_ways(
    tmp_path: Path, known: dict[str, Contents], folder: str | None, got: str
) -> None:
    fill(tmp_path, known["mnist"])
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{got}.*--data-dir DIR.*EQUILAYERS_DATA.*--download"):
        load_arrays("mnist", None if folder is None else tmp_path / folder)


def test_load_arrays_refuses_a_wrong_sum(tmp_path: Path, known: dict[str, Contents]) -> None:
    fill(tmp_path, known["mnist"])
    file = "t10k-images-idx3-ubyte"
    wrong = bytearray(known["mnist"][file])
    wrong[-1] ^= 1
    write(tmp_path / f"{file}.gz", bytes(wrong))
    with pytest.raises(ValueError, match=file) as error:
        load_arrays("mnist", tmp_path)
    assert hashlib.sha256(wrong).hexdigest() in str(error.value)
    assert hashlib.sha256(known["mnist"][file]).hexdigest() in str(error.value)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (
            "train-images-idx3-ubyte",
            "t10k-images-idx3-ubyte",
            "which is t10k-images.* of mnist: train and t10k are swapped",
        ),
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "images and labels are swapped"),
    ],
)
def test_load_arrays_says_what_is_swapped(
    tmp_path: Path, known: dict[str, Contents], first: str, second: str, says: str
) -> None:
    contents = dict(known["mnist"])
    contents[first], contents[second] = contents[second], contents[first]
    with pytest.raises(ValueError, match=says):
        load_arrays("mnist", fill(tmp_path, contents))


def test_load_arrays_recognises_the_other_data_set(tmp_path: Path, known: dict[str, Contents]) -> None:
    with pytest.raises(ValueError, match="train-images-idx3-ubyte of fashion-mnist"):
        load_arrays("mnist", fill(tmp_path, known["fashion-mnist"]))


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


def test_download_leaves_files_that_the_user_put_there(
    tmp_path: Path, server: Path, known: dict[str, Contents]
) -> None:
    mine = fill(tmp_path / "mine", known["mnist"], suffix="")
    assert download("mnist", mine) == mine
    assert len(list(mine.iterdir())) == 4


def test_download_without_a_folder_uses_the_environment_then_the_cache(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert download("mnist") == tmp_path / "cache" / "equilayers" / "mnist"
    monkeypatch.setenv("EQUILAYERS_DATA", str(tmp_path / "env"))
    assert download("mnist") == tmp_path / "env" / "mnist"


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


def test_download_that_cannot_write_leaves_no_part(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("baselines.common.download.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        download("mnist", tmp_path / "data")
    assert list((tmp_path / "data" / "mnist").iterdir()) == []


def test_download_without_network(tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASE_URLS, "mnist", (tmp_path / "no-server").as_uri())
    with pytest.raises(ConnectionError, match=r"to be reachable, got .*Check the network.*--data-dir DIR"):
        download("mnist", tmp_path / "data")


def test_load_dataset_downloads_when_asked(tmp_path: Path, server: Path) -> None:
    dataset = load_dataset("mnist", data_dir=tmp_path / "data", download=True, splits=(20, 20, 14))
    assert dataset.train.x.shape == (20, 1, 36, 36)
    again = load_dataset("mnist", data_dir=tmp_path / "data", splits=(20, 20, 14))
    assert torch.equal(dataset.train.x, again.train.x)


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


def as_integers(dataset: Dataset, scale: int) -> list[list[bytes]]:
    """The pixels of each split as they were in the file, one bytes object an image."""
    return [
        [image.numpy().tobytes() for image in ((split.x * dataset.std + dataset.mean) * scale).round().to(torch.uint8)]
        for split in (dataset.train, dataset.validation, dataset.test)
    ]


def test_splits_are_disjoint_complete_and_depend_on_the_seed(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (load(seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    check_protocol(first, size=36, pad=4)
    pixels = as_integers(first, 255)
    images, labels = load_arrays("mnist", tmp_path)
    padded = [image.tobytes() for image in np.pad(images, ((0, 0), (4, 4), (4, 4)))]
    label_of = {image: int(label) for image, label in zip(padded, labels, strict=True) if label != 9}
    assert sorted(image for each in pixels for image in each) == sorted(label_of)
    assert len(label_of) == 54
    for split, each in zip((first.train, first.validation, first.test), pixels, strict=True):
        assert [label_of[image] for image in each] == split.y.tolist(), "labels stay with their images"
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.test.y, again.test.y)
    assert set(as_integers(other, 255)[0]) != set(pixels[0])


def test_the_test_size_leaves_training_and_validation_alone(load: Callable[..., Dataset]) -> None:
    big, small = load(), load((30, 2, 10))
    assert torch.equal(big.train.x, small.train.x)
    assert torch.equal(big.validation.x, small.validation.x)


def test_the_dtype_is_float32_whatever_the_default(load: Callable[..., Dataset]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert load().test.x.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


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


def test_constant_training_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((20, 8, 8), dtype=np.uint8), np.zeros(20, dtype=np.uint8)
    monkeypatch.setattr(data_module, "_digits", lambda: blank)
    with pytest.raises(ValueError, match="more than one pixel value, got 5 constant images"):
        load_dataset("digits", splits=(5, 5, 5))


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install equilayers\[study\]"):
        load_dataset("digits")


@needs_real_data
@pytest.mark.parametrize(("name", "kept"), [("mnist", 63_042), ("fashion-mnist", 63_000)])
def test_real_data(name: str, kept: int) -> None:
    images, labels = load_arrays(name, REAL)
    assert images.shape == (70_000, 28, 28)
    assert labels.shape == (70_000,)
    assert int((labels != 9).sum()) == kept
    dataset = load_dataset(name, data_dir=REAL, splits=(10_000, 2_000, 2_000))
    check_protocol(dataset, size=36, pad=4)
