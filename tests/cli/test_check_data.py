"""The command `equilayers check --data`: which groups it says the data are symmetric under, and how it says no."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from equilayers.cli import _image_files, _of_data, main
from equilayers.groups import group_from_name
from equilayers.testing import _data_symmetry


def letters(count: int = 160, group: str = "C1", seed: int = 0, size: int = 12) -> NDArray[np.uint8]:
    """Noise with an F in it, moved by elements at random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(60, (count, size, size), generator=generator)
    x[:, 2:10, 3] += 120
    x[:, 2, 3:9] += 120
    x[:, 5, 3:7] += 120
    moves = group_from_name(group)
    elements = torch.randint(moves.order, (count,), generator=generator).tolist()
    return torch.stack([moves.act(g, image) for g, image in zip(elements, x, strict=True)]).numpy().astype(np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_data_symmetry, "FEATURES", 64)


def write(kind: str, x: NDArray[np.uint8], y: NDArray[np.uint8]) -> list[str]:
    """Save images with their labels; the arguments that read them."""
    if kind == "npz":
        np.savez("data.npz", x=x, y=y)
        return ["data.npz"]
    if kind == "npy":  # channels last, in floats
        np.save("data.npy", x[..., None] / np.float32(255))
        np.save("labels.npy", y)
        return ["data.npy", "--labels", "labels.npy"]
    if kind == "idx":
        for name, array in (("images-idx3", x), ("labels-idx1", y)):
            head = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            Path(f"t-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
        return ["t-images-idx3-ubyte.gz"]
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        Path("images", str(label)).mkdir(parents=True, exist_ok=True)
        pillow.fromarray(image).save(Path("images", str(label), f"{i}.png"))
    return ["images"]


@pytest.mark.parametrize("kind", ["npz", "npy", "idx", "folder"])
def test_every_kind_of_file_and_each_class(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An upside-down class: all images together are as often upright as not, each class by itself is not."""
    x, y = letters(200), np.arange(200, dtype=np.uint8) % 2
    x[y == 1] = x[y == 1, ::-1, ::-1]
    x[:, :, -1] += 40  # cyclic shifts leave nothing in its place
    arguments = ["check", "--data", *write(kind, x, y), "--group", "C2", "--group", "D1", "--json", "found.json"]
    x[:, :, 0] += 40
    assert main([*arguments, "--by-class", "--level", "0.01"]) == 1
    found = json.loads(Path("found.json").read_text())
    assert found["shape"] == [200, 1, 12, 12]
    assert found["symmetric"] == []
    assert not any(test["symmetric"] for each in found["classes"].values() for test in each["groups"])
    out = capsys.readouterr().out
    assert "200 images of 1×12×12" in out
    assert "Tie nothing" in out


def test_what_holds_of_the_whole_and_not_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = letters(240), np.arange(240) % 2
    x[y == 1] = x[y == 1, ::-1, ::-1]
    np.savez("data.npz", images=x, labels=np.array(["six", "nine"])[y])
    arguments = ["check", "--data", "data.npz", "--group", "C2", "--level", "0.01"]
    assert main(arguments) == 0
    assert "Tie C2, by equilayers.convert.to_equivariant or LiftingConv2d and GroupConv2d" in capsys.readouterr().out
    assert main([*arguments, "--by-class"]) == 1
    out = capsys.readouterr().out
    assert "C2: of all images, but not of each class" in out
    assert "nine  none" in out


def test_all_groups_by_default_and_what_to_tie(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("data.npy", letters(120, "C4"))
    assert main(["check", "--data", "data.npy", "--level", "0.01", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert [test["group"] for test in found["groups"]] == ["C2", "C4", "D1", "D2", "D4", "T6", "T6:-2"]
    assert found["symmetric"] == ["C2", "C4"]
    assert found["advice"].startswith("Tie C4, by equilayers.convert.to_equivariant")
    assert capsys.readouterr().out.splitlines()[-1] == found["advice"]
    noise = np.random.default_rng(0).standard_normal((60, 3, 8, 7)).astype(np.float32)
    np.save("data.npy", noise)
    assert main(["check", "--data", "data.npy", "--samples", "50", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert found["shape"] == [50, 3, 8, 7]
    assert [test["group"] for test in found["groups"]] == ["C2", "D1", "D2", "T7", "T8:-2"]
    assert "not square" in found["left_out"][0]
    assert "keep to shifts (T7, T8:-2)" in found["advice"]


BAD_INPUT = {
    "nothing there": (["none.npy"], ["a folder of images, or an .npz, .npy or idx file", "none.npy"]),
    "few": (["few.npy"], ["40 images or more", "39 in few.npy"]),
    "an empty folder": (["empty"], ["40 images or more", "0 in empty"]),
    "no images": (["flat.npy"], ["images (N, H, W)", "(50,) in flat.npy"]),
    "integers": (["ints.npy"], ["uint8 or floating-point", "int64"]),
    "not finite": (["nan.npy"], ["finite numbers"]),
    "no idx": (["text.idx"], ["no idx file of unsigned bytes"]),
    "objects": (["objects.npy"], ["ValueError", "objects.npy"]),
    "other labels": (["good.npy", "--labels", "few.npy"], ["labels (N,) of whole numbers"]),
    "too few labels": (["good.npy", "--labels", "three.npy"], ["a label for each of 50 images", "got 3"]),
    "labels of a folder": (["empty", "--labels", "three.npy"], ["--labels with a file of images"]),
    "no labels": (["good.npy", "--by-class"], ["labels, with --by-class"]),
    "another shape": (["good.npy", "--input", "1,9,9"], ["images (1, 9, 9)", "(1, 6, 5)"]),
    "no shape": (["good.npy", "--input", "9,9"], ["--input C,H,W of one image"]),
    "a group of squares": (["good.npy", "--group", "C4"], ["acts on images of 6 x 5", "C4"]),
    "no group": (["good.npy", "--group", "E8"], ["--group to be a name"]),
    "no level": (["good.npy", "--level", "2"], ["--level between 0 and 1"]),
    "few samples": (["good.npy", "--samples", "8"], ["--samples to be a whole number from 40 on"]),
    "an option of models": (["good.npy", "--html", "a.html"], ["a TARGET, with --html"]),
    "no classifier": (["good.npy", "--classifier", "svm"], ["arguments as --help shows them"]),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = np.zeros((50, 6, 5), dtype=np.float32)
    arrays = {
        "good": good,
        "few": good[:39],
        "flat": good[:, 0, 0],
        "ints": good.astype(np.int64),
        "nan": good * np.nan,
    }
    for name, array in (arrays | {"three": np.arange(3)}).items():
        np.save(f"{name}.npy", array)
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Path("text.idx").write_text("words")
    Path("empty").mkdir()
    arguments, words = BAD_INPUT[what]
    assert main(["check", "--data", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("equilayers check: expected ")
    assert all(word in line for word in words), line


def test_no_fewer_images_than_the_library_takes() -> None:
    assert _image_files.LEAST == _data_symmetry.LEAST
    assert _of_data.PLANE == _data_symmetry.GROUPS


def test_options_of_data_are_not_for_models(capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--by-class"], ["--group", "C2"]):
        assert main(["check", "models.py:net", "--group", "C4", "--input", "1,8,8", *more]) == 2
        assert "expected no TARGET, but data alone" in (line := capsys.readouterr().err) or "one --group" in line
