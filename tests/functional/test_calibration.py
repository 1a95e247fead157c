"""Calibrations: measured, kept, used, and ignored with one warning where they do not fit."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import choices, conv, cuda, linear, timing, transformer
from equilayers.cli import main
from equilayers.functional._convolution.dispatch import choose_algorithm
from equilayers.functional._costs_file import calibration, costs_path, read_costs, write_costs
from equilayers.functional.calibration._cases import Case, calls
from equilayers.functional.calibration._fit import cases, errors, fit
from equilayers.functional.cost import forget_choices
from equilayers.nn import GroupConv2d

GOOD = {1: {"dense group convolution": (1e3, 0.1, 0.1, 0.1, 0.01)}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of calibrations of its own; nothing is remembered before and after."""
    monkeypatch.setenv("EQUILAYERS_COSTS", str(tmp_path))
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def forget() -> None:
    calibration.cache_clear()
    forget_choices()
    choose_algorithm.cache_clear()


def test_written_and_read(folder: Path) -> None:
    assert read_costs("cpu", 1) is None
    path = write_costs("cpu", GOOD)
    write_costs("cpu", {2: GOOD[1]})
    assert path.parent == folder
    assert read_costs("cpu", 1) == read_costs("cpu", 2) == GOOD[1]
    assert read_costs("cpu", 3) is read_costs("cuda of nobody", 1) is None


def changed(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


UNFIT: dict[str, Callable[[Path], object]] = {
    "another torch": changed("torch", "1.0.0"),
    "another device": changed("device", "another"),
    "an old format": changed("format", 0),
    "no threads": changed("threads", None),
    "no prices": changed("threads", {"1": {"dense": ["nan"]}}),
    "negative": changed("threads", {"1": {"dense": [-1.0, 1.0]}}),
    "no JSON": lambda path: path.write_text("{"),
    "no text": lambda path: path.write_bytes(bytes(range(128, 256))),
    "a list": lambda path: path.write_text("[]"),
    "a folder": a_folder,
    "too deep": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_what_does_not_fit_is_ignored_with_one_warning(fault: str, folder: Path) -> None:
    UNFIT[fault](write_costs("cpu", GOOD))
    forget()
    layer, x = GroupConv2d("C4", 2, 2, 3), torch.zeros(1, 2, 4, 5, 5)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for size in (5, 6):
            layer(torch.zeros(1, 2, 4, size, size))
        assert "roofline" in layer.chosen(x).why
    assert len(said) == 1
    assert "equilayers calibrate" in str(said[0].message)
    assert str(folder) in str(said[0].message)


def test_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_costs("cpu", GOOD)
    monkeypatch.setenv("EQUILAYERS_COSTS", "off")
    forget()
    assert read_costs("cpu", 1) is None
    assert costs_path("cpu") is None
    with pytest.raises(OSError, match="off"):
        write_costs("cpu", GOOD)


def test_a_calibration_decides(folder: Path) -> None:
    """Prices by which the transform is free, then ones by which it is dear."""
    torch.set_num_threads(1)
    layer, x = GroupConv2d("C4", 2, 2, 3), torch.zeros(1, 2, 4, 5, 5)
    free, dear = (*[0.0] * 8, 1e-9), (1e9,) * 9
    for fourier, taken in ((free, "fourier"), (dear, "dense")):
        rows = {"dense": (1.0,) * 6, "orbit": (9e9,) * 6, "compiled patterns": fourier}
        write_costs("cpu", {1: {f"{name} group convolution": row for name, row in rows.items()}})
        forget()
        with torch.no_grad():
            choice = layer.chosen(x)
        assert choice.algorithm == taken
        assert "calibration of cpu, 1 thread" in choice.why


def test_the_fit_finds_prices() -> None:
    """Timings made of prices give them back; noise of a tenth leaves a tenth."""
    draw = np.random.default_rng(0)
    true = {"a": (1e4, 5e3, 0.3, 0.7, 0.01), "b": (3e4, 2e4, 0.1, 0.05)}
    for noise, most in ((0.0, 0.03), (0.1, 0.2)):
        measured = []
        for kind, row in true.items():
            for _ in range(60):
                q = (1.0, *10 ** draw.uniform(3, 6, len(row) - 1) / np.array(row[1:]) / 1e3)
                measured.append((kind, q, float(np.dot(q, row)) * (1 + noise * draw.uniform(-1, 1))))
        made = fit(measured)
        assert np.median(errors(measured, made)) < most
        assert all(price >= 0 for row in made.values() for price in row)


def test_calls_agree() -> None:
    """All algorithms of a case that is timed give one result."""
    seen = set()
    for case in cases(3, 60):
        if case.training or case.multiplications > 2e7 or case.kind in seen:
            continue
        seen.add(case.kind)
        first, *others = [call() for call in calls(case, torch.device("cpu")).values()]
        for other in others:
            assert torch.allclose(other, first, atol=1e-3 * float(first.abs().max()))
    assert len(seen) >= 4


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["calibrate", "--seconds", "0.1", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    path = costs_path("cpu")
    assert path is not None
    assert str(path) in out.replace("\n", "")
    assert read_costs("cpu", 1)
    path.write_text("{")
    forget()
    assert main(["calibrate", "--seconds", "0.1", "--threads", "1"]) == 0  # what is broken is replaced
    assert read_costs("cpu", 1)
    capsys.readouterr()
    beneath = folder / "file"
    beneath.write_text("")
    for arguments, variable in (
        (["--seconds", "no"], str(folder)),
        (["--threads", "0"], str(folder)),
        (["--threads", "9999"], str(folder)),
        (["--device", "meta"], str(folder)),
        ([], "off"),
        ([], str(beneath / "under")),
    ):
        monkeypatch.setenv("EQUILAYERS_COSTS", variable)
        assert main(["calibrate", *arguments]) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert said.err.startswith("equilayers calibrate: expected ")


@pytest.mark.skipif(os.name == "nt", reason="modes of folders are of POSIX")
def test_a_read_only_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # who may write everywhere
        os.seteuid(65534)
    try:
        assert main(["calibrate", "--seconds", "0.1"]) == 2
        assert "EQUILAYERS_COSTS" in capsys.readouterr().err
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


def test_how_near_the_choices_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of the fastest are those of the timings; a run that was cut off goes on; who chooses badly is seen."""
    timed = []

    def timings(case: Case, *_: object) -> dict[str, float]:
        """The roofline is right about forward passes, and takes twice the time of any other in training steps."""
        timed.append(case)
        costs = case.costs(1, roofline=True)
        return {**dict.fromkeys(costs, 3.0), min(costs, key=costs.__getitem__): 6.0 if case.training else 2.0}

    monkeypatch.setattr(choices, "timings", timings)
    monkeypatch.setattr(choices.os, "cpu_count", lambda: 1)
    file = tmp_path / "lines"
    measured = choices.measure(20, 5, 0.0, file, lambda _: None)
    file.write_text(file.read_text()[:-9])
    assert choices.measure(20, 5, 0.0, file, lambda _: None) == measured
    assert len(timed) == 21
    training = sum(one.case.training for one in measured)
    assert 0 < training < 20
    (row,) = choices.summary(measured, ["roofline"])
    assert row[1:5] == [f"{5 * (20 - training):.1f} %"] * 3 + ["2.00"]
    seen = {tuple(one.case) for one in measured}
    assert not seen & {tuple(case) for case in cases(1, 400)}  # not those of a calibration


def test_the_table_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is made on the device that is asked for: here on one that computes nothing."""
    for module in (linear, conv):
        monkeypatch.setattr(module, "CASES", module.CASES[:1])
    monkeypatch.setattr(transformer, "CASES", (transformer.Block("C4", 64, 4, 1), transformer.Pointwise("C4", 8)))
    monkeypatch.setattr(linear, "training_step", lambda *_: lambda: None)
    monkeypatch.setattr(timing, "SETTLE", 0)
    lines = "".join(cuda.report(0.0, "meta"))
    assert all(name in lines for name in (str(linear.CASES[0]), str(conv.CASES[0]), str(transformer.CASES[1])))
    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", ["benchmarks", "cuda"])
        with pytest.raises(SystemExit):
            benchmarks.main()
