"""Rotated MNIST: the protocol, the networks, resuming after a kill, and the tables."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.common.figures import save
from baselines.common.tables import markdown_table
from baselines.rotmnist import command as rotmnist
from baselines.rotmnist import runs as rotmnist_runs
from baselines.rotmnist.curves import drawing, invariance_curves
from baselines.rotmnist.models import MODELS, build, parameters
from baselines.rotmnist.runs import Digits, RotMnistJob, Run, wrong_answers
from planted import Does

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in the place of the data."""
    monkeypatch.setattr(rotmnist_runs, "rotated_mnist", fake)
    rotmnist_runs.digits_of.cache_clear()


@pytest.mark.parametrize("name", MODELS)
def test_networks_of_equal_size_that_quarter_turns_leave_alone(name: str) -> None:
    model, x = build(name, 0).eval(), torch.randn(2, 1, 28, 28)
    assert 21_000 < parameters(model) < 27_000
    with torch.no_grad():
        y, turned = model(x), model(torch.rot90(x, 1, (-2, -1)))
    assert y.shape == (2, 10)
    assert torch.allclose(y, turned, rtol=1e-4, atol=1e-5) == (name != "Z2CNN")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), build(name, 0).parameters(), strict=True))


def fake(*_: Any, **__: Any) -> list[Digits]:
    generator = torch.Generator().manual_seed(0)
    return [Digits(torch.randn(n, 1, 28, 28, generator=generator), torch.arange(n) % 10) for n in (96, 32, 40)]


def run_of(**more: Any) -> Run:
    return Run(**({"model": "Z2CNN", "seed": 0, "epochs": 3, "validate": False, "data_dir": None} | more))


def test_a_training_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    whole, parted = (RotMnistJob(run_of(), tmp_path / name) for name in ("whole", "parted"))
    for job in (whole, parted):
        job.out.mkdir()
    expected = whole.carry_out(lambda epoch: None)

    def killed(epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parted.carry_out(killed)
    assert parted.finished() is None
    epochs: list[int] = []
    result = parted.carry_out(epochs.append)
    assert epochs == [3]
    ours, theirs = (torch.load(job.out / "Z2CNN-seed0.pt", weights_only=True)["model"] for job in (parted, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert result["test_error"] == expected["test_error"]
    assert parted.finished() == result
    with pytest.raises(ValueError, match=r"rotmnist: expected .* of epochs 4, got 3"):
        RotMnistJob(run_of(epochs=4), parted.out).finished()
    with pytest.raises(ValueError, match=r"rotmnist: expected .* to be of the settings asked for"):
        RotMnistJob(run_of(epochs=4), parted.out).carry_out(lambda epoch: None)


def test_errors_are_counted() -> None:
    *_, data = fake()
    perfect = Does(lambda x: torch.eye(10)[data.y[: len(x)]])
    assert wrong_answers(perfect, data) == 0
    assert wrong_answers(perfect, Digits(data.x, (data.y + 1) % 10)) == len(data.y)


def test_tables_stand_beside_what_was_published() -> None:
    results = [{"model": "P4CNN", "test_error": e, "parameters": 24680, "training_seconds": 600.0} for e in (2.0, 3.0)]
    (row,) = rotmnist.rows(results)
    assert row[:3] == ("P4CNN", "24,680", "2.50 ± 0.71")
    assert row[3].startswith("2.28 (Cohen and Welling 2016)")


def test_the_page_shows_the_committed_results() -> None:
    kept = json.loads((DOCS / "rotmnist.json").read_text())
    page = (DOCS / "rotmnist.md").read_text()
    assert markdown_table(rotmnist.HEAD, rotmnist.rows(kept["runs"])) in page
    assert [run["model"] for run in kept["runs"]] == list(MODELS) == list(kept["invariance"])
    assert all(run["test_digits"] == 50_000 and run["epochs"] == rotmnist_runs.EPOCHS for run in kept["runs"])


def test_curves_are_drawn_from_the_weights_that_were_kept(tmp_path: Path) -> None:
    runs = [run_of(model=name, epochs=1) for name in ("Z2CNN", "P4CNN")]
    RotMnistJob(runs[1], tmp_path).carry_out(lambda epoch: None)
    curves = invariance_curves(runs, tmp_path)  # of the one that has some
    assert list(curves) == ["P4CNN"]
    at = dict(zip(curves["P4CNN"].angles.tolist(), curves["P4CNN"].error.tolist(), strict=True))
    assert at[90] < 1e-4 < at[45]
    save(drawing(curves), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_all_networks_are_trained_by_default() -> None:
    parser = argparse.ArgumentParser()
    rotmnist.add_arguments(parser)
    assert parser.parse_args([]).models == list(MODELS)
    assert json.loads(json.dumps(run_of().settings()))["epochs"] == 3
