"""`python -m baselines shift`, on tiny runs: what it shows, writes and keeps, and how it says no."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.__main__ import main
from baselines.shift import command as shift
from baselines.shift import figures as shift_figures
from baselines.shift import measures as shift_measures
from baselines.shift import runs as shift_runs
from baselines.shift.models import KINDS, TASKS, build, upsample
from baselines.shift.scenes import MOTIONS, Layout, Scenes
from baselines.shift.tables import verdict
from baselines.shift.toy_signal import SIGNAL, apart, pool, shifted, toy_rows
from planted import Does
from studies import refused, small_shifts

COMMAND = ["shift", "--epochs", "1"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shifts(monkeypatch)


def results_of(out: Path) -> list[dict[str, Any]]:
    """The runs of shift.json without their times."""
    runs = json.loads((out / "shift.json").read_text())["runs"]
    return [{key: value for key, value in run.items() if key != "training_seconds"} for run in runs]


def test_toy_signal_by_hand() -> None:
    assert SIGNAL == (0, 0, 1, 1, 0, 0, 1, 1)
    assert shifted() == (1, 0, 0, 1, 1, 0, 0, 1)
    found = {row.pooling: (row.plain, row.shifted, row.apart) for row in toy_rows()}
    assert found == {
        "max": ((0, 1, 0, 1), (1, 1, 1, 1), 1),
        "blur, 3 taps": ((0.5, 1, 0.5, 1), (0.75,) * 4, 0.25),
        "blur, 4 taps": ((0.625, 0.875) * 2, (0.625, 0.875) * 2, 0),
        "polyphase": ((1,) * 4, (1,) * 4, 0),
    }


def test_polyphase_pooling_keeps_any_signal_and_the_others_do_not() -> None:
    signals = [tuple(signal.tolist()) for signal in torch.rand(20, 12, dtype=torch.float64)]
    left = {
        name: max(apart(pool(name, signal), pool(name, shifted(signal))) for signal in signals)
        for name in ("max", "blur, 3 taps", "blur, 4 taps", "polyphase")
    }
    assert left["polyphase"] == 0
    assert 0.01 < left["blur, 4 taps"] < left["max"]
    assert 0.01 < left["blur, 3 taps"] < left["max"]


def test_windows_of_a_canvas_by_hand() -> None:
    layout = Layout(digit=1, window=3, shifts=3)
    canvas = torch.arange(25.0).view(1, 5, 5)
    seen = Scenes(layout, canvas, canvas.long(), torch.zeros(1, dtype=torch.int64))
    x, labels = seen.move("cropped", 0, 2)
    assert x.tolist() == [[[[2, 3, 4], [7, 8, 9], [12, 13, 14]]]]
    assert labels.tolist() == x[:, 0].tolist()
    middle, _ = seen.move("circular", 0, 0)
    assert middle.tolist() == [[[[6, 7, 8], [11, 12, 13], [16, 17, 18]]]]
    assert torch.equal(seen.move("circular", 1, 2)[0], middle.roll((1, 2), (-2, -1)))
    two = Scenes(layout, canvas.repeat(2, 1, 1), canvas.long().repeat(2, 1, 1), torch.zeros(2))
    each, _ = two.move("circular", torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert torch.equal(each[1:], middle.roll((1, 2), (-2, -1)))


@pytest.mark.usefixtures("tiny")
def test_scenes_hold_the_whole_digit_in_every_window() -> None:
    *_, test, _ = shift_runs.data_of("digits", None, 0)
    moves = itertools.product(MOTIONS, range(4), range(4))
    counts = [(test.move(*move)[1] > 0).sum((1, 2)) for move in moves]
    assert (counts[0] > 5).all()
    assert all(torch.equal(count, counts[0]) for count in counts)
    for labels, y in zip(test.labels, test.y, strict=True):
        assert set(labels.unique().tolist()) == {0, int(y) + 1}


@pytest.mark.parametrize("task", TASKS)
def test_polyphase_networks_commute_with_cyclic_shifts_and_max_networks_do_not(task: str) -> None:
    x = torch.rand(3, 1, 16, 16, dtype=torch.float64)
    errors = {}
    for kind in KINDS:
        model = build(task, kind, 9, (4, 8, 8)).double().eval()
        y, moved = model(x).detach(), model(x.roll((1, 2), (-2, -1))).detach()
        errors[kind] = float((moved - (y if task == "detector" else y.roll((1, 2), (-2, -1)))).norm() / y.norm())
    assert errors["polyphase"] < 1e-14
    assert min(errors["max"], errors["blur"]) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_upsampling_keeps_constants(kind: str) -> None:
    choice = torch.tensor([[0, 1], [1, 1]]) if kind == "polyphase" else None
    assert torch.equal(upsample(torch.full((2, 3, 4, 4), 5.0), kind, choice), torch.full((2, 3, 8, 8), 5.0))


def corner(x: torch.Tensor) -> torch.Tensor:
    """Class 0 or 1 by one pixel: as far from invariant as can be."""
    bright = x[:, 0, 0, 0] > 0
    return torch.stack([~bright, bright], 1).float()


def test_consistency_by_hand() -> None:
    layout = Layout(digit=1, window=4, shifts=4)
    canvas = torch.randn(400, 7, 7)
    seen = Scenes(layout, canvas, torch.zeros(400, 7, 7, dtype=torch.int64), torch.zeros(400, dtype=torch.int64))
    for motion in MOTIONS:
        found = shift_measures.consistency(Does(corner), seen, motion, torch.Generator().manual_seed(0))
        # Equal shifts, one pair in 16, always agree; two unlike pixels do half the time.
        assert found == pytest.approx(1 / 16 + 15 / 32, abs=0.08)
    assert shift_measures.measure_detector(Does(corner), seen.first(9))["circular"]["largest_wobble"] > 0.4


@pytest.mark.usefixtures("tiny")
def test_command_writes_whole_files_twice_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*COMMAND, "--out", str(first)]) == 0
    said = capsys.readouterr().out
    assert "0.75 0.75 0.75 0.75" in said
    assert "polyphase: under circular shifts always the same class (100.0 % before and 100.0 % after training)" in said
    assert sorted(path.name for path in first.iterdir()) == sorted(["runs", "shift.json", "shift.md", *shift.FIGURES])
    assert all((first / name).read_bytes().startswith(b"\x89PNG") for name in shift.FIGURES)
    assert "| polyphase | 1 1 1 1 | 1 1 1 1 | 0 |" in (first / "shift.md").read_text()
    monkeypatch.setattr(shift_figures, "drawings", lambda results: {})  # once is enough
    assert main([*COMMAND, "--out", str(second)]) == 0
    assert results_of(first) == results_of(second)
    for run in results_of(first):
        if run["task"] == "detector" and run["kind"] == "polyphase":
            assert run["consistency_at_initialisation"]["circular"] == run["consistency"]["circular"] == 1
            assert run["circular"]["largest_wobble"] < 1e-5 < run["cropped"]["largest_wobble"]
        if run["task"] == "segmentor":
            assert (run["circular"]["largest_error"] < 1e-5) == (run["kind"] == "polyphase")
    kept = first / "runs"
    (kept / "digits-segmentor-blur-seed0.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert main([*COMMAND, "--out", str(first), "--resume"]) == 0
    changed = [path.name for path in kept.iterdir() if path.stat().st_mtime_ns != before.get(path.name)]
    assert changed == ["digits-segmentor-blur-seed0.json"]
    assert results_of(first) == results_of(second)
    assert main(["shift", "--epochs", "2", "--out", str(first), "--resume"]) == 2
    assert "of epochs 2, got 1" in capsys.readouterr().err


def test_a_broken_law_is_said() -> None:
    consistency = {"circular": 0.999, "cropped": 0.9}
    run = {"task": "detector", "kind": "polyphase", "consistency": consistency, "circular": {"largest_wobble": 0.5}}
    lines = verdict([{**run, "consistency_at_initialisation": {"circular": 1.0}}])
    assert "not always the same class" in lines[0]
    assert "is broken" in lines[1]


@pytest.mark.usefixtures("tiny")
def test_a_fault_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--consistency-samples", "41"], "expected --consistency-samples to be at most the 40 test scenes of digits"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "nowhere"),
    ):
        assert message in refused([*COMMAND, "--out", str(tmp_path), *options], capsys)


@pytest.mark.usefixtures("tiny")
def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    job = shift_runs.ShiftJob(shift.runs_of("digits", None, 1, 1, None)[0], tmp_path)
    assert job.finished() is None
    for text in ("{", "[]", "{}", json.dumps(job.run.settings())):
        job.path.write_text(text)
        with pytest.raises(ValueError, match=job.run.name):
            job.finished()
