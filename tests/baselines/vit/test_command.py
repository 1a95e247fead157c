"""Training of vision transformers: what a step meets, resuming after a kill, and what the command leaves."""

import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.__main__ import main
from baselines.common.data import load_dataset
from baselines.common.runner import Result, SerialExecutor
from baselines.common.tables import markdown_table
from baselines.vit import command, runs
from baselines.vit.models import Shape
from baselines.vit.runs import METHODS, TURNS, Run, ViTJob, batches, images_of, turned
from studies import refused

DOCS = Path(__file__).parents[3] / "docs"
TINY = replace(
    runs.PROTOCOLS["digits"],
    splits=(64, 40, 17),
    steps=5,
    shape=Shape(16, 1, 1),
    batch=16,
    every=2,
    watched=20,
    orbits=20,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few digits and narrow networks, in this process."""
    monkeypatch.setitem(runs.PROTOCOLS, "digits", TINY)
    monkeypatch.setattr(command, "pool", lambda workers: contextlib.nullcontext(SerialExecutor()))
    images_of.cache_clear()


def run_of(**more: Any) -> Run:
    return Run(**({"data": "digits", "data_dir": None, "method": "augmented", "seed": 0, "steps": 5} | more))


def test_images_are_turned_once_each() -> None:
    x, g = torch.randn(20, 1, 4, 4), torch.arange(20) % 8
    expected = torch.stack([TURNS.act(int(h), image) for h, image in zip(g, x, strict=True)])
    assert torch.equal(turned(x, g), expected)
    train, test, classes = images_of("digits", None)
    upright = load_dataset("digits", splits=TINY.splits)
    for found, split in ((train, upright.train), (test, upright.test)):
        moved = [[torch.equal(TURNS.act(g, x), y) for g in range(8)] for x, y in zip(split.x, found.x, strict=True)]
        assert all(map(any, moved))
        assert len({row.index(True) for row in moved}) == 8
        assert torch.equal(found.y, split.y)
    assert classes == 9


def test_a_step_meets_the_same_images_wherever_a_training_begins() -> None:
    whole = list(itertools.islice(batches(10, 3, 1, 0), 9))
    for first in (2, 3, 7):
        for found, expected in zip(batches(10, 3, 1, first), whole[first:], strict=False):
            assert all(map(torch.equal, found, expected))
    passes = [torch.cat([n for n, _ in whole[i : i + 3]]).tolist() for i in (0, 3, 6)]
    assert all(len(set(seen)) == 9 for seen in passes)
    assert passes[0] != passes[1]
    assert not torch.equal(whole[0][0], next(batches(10, 3, 2, 0))[0])
    assert len({int(h) for _, g in whole for h in g}) > 4


def without_seconds(result: Result) -> Result:
    curve = [[step, accuracy] for step, _, accuracy in result["curve"]]
    return {key: value for key, value in result.items() if key != "training_seconds"} | {"curve": curve}


@pytest.mark.parametrize("method", METHODS)
def test_a_training_goes_on_where_it_was_killed(method: str, tmp_path: Path) -> None:
    whole, parted = (ViTJob(run_of(method=method), tmp_path / name) for name in ("whole", "parted"))
    expected = whole.carry_out(lambda step: None)

    def killed(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parted.carry_out(killed)
    assert parted.finished() is None
    steps: list[int] = []
    result = parted.carry_out(steps.append)
    assert steps == [3, 4, 5]  # the checkpoint was of step 2
    assert without_seconds(result) == without_seconds(expected)
    assert [step for step, *_ in result["curve"]] == [2, 4, 5]
    assert without_seconds(parted.finished() or {}) == without_seconds(expected)
    assert not parted.checkpoint.exists()
    assert (result["LI"] < 1e-8) == (method == "D4")


def test_results_and_checkpoints_of_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step = ViTJob(run_of(), tmp_path), []
    with pytest.raises(StopIteration):
        job.carry_out(lambda n: step.append(n) or (next(iter(())) if n == 2 else None))
    monkeypatch.setitem(runs.PROTOCOLS, "digits", replace(TINY, lr=0.1))
    with pytest.raises(ValueError, match=r"vit: expected .* to be of the settings asked for"):
        job.carry_out(lambda n: None)
    job.checkpoint.unlink()
    job.carry_out(lambda n: None)
    monkeypatch.setitem(runs.PROTOCOLS, "digits", TINY)
    with pytest.raises(ValueError, match=r"vit: expected .* of protocol .* got"):
        job.finished()


def test_tied_networks_get_as_many_steps_as_the_plain_one_has_time_for() -> None:
    planned = [run_of(method=method, steps=100) for method in METHODS]
    results = [{"training_seconds": seconds} for seconds in (9.0, 11.0, 5.0, 4.0)]
    assert [run.steps for run in command.of_equal_time(planned, results)] == [100, 100, 200, 250]


def test_the_command_leaves_tables_curves_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["vit", "--data", "digits", "--out", str(tmp_path), "--workers", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "vit.json").read_text())
    table = (tmp_path / "vit.md").read_text()
    assert table == page_of(kept) + "\n"
    for equal in ("steps", "time"):
        assert [result["method"] for result in kept[equal]] == list(METHODS)
    numbers = [result["parameters"] - 9 for result in kept["steps"]]
    assert numbers[0] == numbers[1] == 4 * numbers[2] == 8 * numbers[3]
    assert kept["time"][:2] == kept["steps"][:2]  # trained once
    for words in ("plain, augmented", "consistency %", "vit.json, vit.md and vit.png are in"):
        assert words in printed
    assert (tmp_path / "vit.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(ViTJob, "carry_out", lambda *_: pytest.fail("carried out again"))
    assert main([*arguments, "--resume"]) == 0
    assert json.loads((tmp_path / "vit.json").read_text()) == kept
    with pytest.raises(pytest.fail.Exception, match="carried out again"):
        main([*arguments, "--equal", "steps"])


def page_of(kept: Any) -> str:
    """The table of a vit.json."""
    lines = [row for equal in ("steps", "time") for row in command.rows(equal, kept[equal])]
    return markdown_table(command.HEAD, lines)


def test_means_over_seeds_stand_in_the_table() -> None:
    made = {"data": "mnist", "method": "D4", "parameters": 1234, "steps": 10, "LI": 1e-12, "consistency": 1.0}
    results = [made | {"accuracy": share, "training_seconds": 60.0} for share in (0.9, 0.91)]
    (row,) = command.rows("steps", results)
    assert row == ("mnist", "steps", "D4", "1,234", "10", "1.0", "90.50 ± 0.71", "1e-12", "100.0")


def test_the_page_shows_the_committed_results() -> None:
    if not (DOCS / "vit.json").exists():
        pytest.skip("docs/vit.json: the trainings are still to be run")
    kept = json.loads((DOCS / "vit.json").read_text())
    assert page_of(kept) in (DOCS / "vit.md").read_text()
    assert {result["data"] for result in kept["steps"]} == {"mnist", "fashion-mnist"}


def test_what_cannot_be_compared_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EQUILAYERS_DATA", raising=False)
    out = ["--out", str(tmp_path)]
    assert "--methods with a plain network" in refused(["vit", "--methods", "D4", *out], capsys)
    assert "EQUILAYERS_DATA" in refused(["vit", *out], capsys)
