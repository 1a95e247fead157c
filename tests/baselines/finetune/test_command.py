"""A pretrained ViT made equivariant: what each method ends in, resuming, and what the command leaves."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from baselines.__main__ import main
from baselines.common.runner import SerialExecutor
from baselines.finetune import command, runs
from baselines.finetune.runs import METHODS, FinetuneJob, Run
from baselines.vit.models import Shape

TINY = replace(
    runs.PROTOCOLS["digits"], splits=(64, 40, 17), shape=Shape(16, 1, 1), pretrain=4, steps=4, batch=16, tested=20
)
ARGUMENTS = ["finetune", "--data", "digits", "--group", "D1"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few digits and narrow networks, in this process."""
    monkeypatch.setitem(runs.PROTOCOLS, "digits", TINY)
    monkeypatch.setattr(command, "pool", lambda workers: contextlib.nullcontext(SerialExecutor()))
    monkeypatch.setattr(command, "SOFTNESS", (1.0, 0.0))
    runs.images_of.cache_clear()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is equivariant by its weights is invariant, what is not is not; resuming leaves the same bytes."""
    assert main([*ARGUMENTS, "--out", str(tmp_path)]) == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"finetune.json", "finetune.md", "finetune.png", "runs"}
    first = json.loads((tmp_path / "finetune.json").read_text())
    errors = {(r["method"], r["softness"]): r["LI_normalized"] for r in first["results"]}
    assert {method for method, _ in errors} == set(METHODS)
    for case in ("converted", 0.0), ("annealed", 1.0), ("softened", 0.0), ("projected", 0.0), ("scratch", 0.0):
        assert errors.pop(case) < 1e-9, case
    assert min(errors.values()) > 1e-6, errors
    found = {(r["method"], r["softness"]): r for r in first["results"]}
    assert found["projected", 1.0]["LI_normalized"] == pytest.approx(found["plain", 0.0]["LI_normalized"])
    assert found["converted", 0.0]["parameters"] < 0.7 * found["plain", 0.0]["parameters"]
    (tmp_path / "runs" / "digits-D1-scratch-seed0.json").unlink()
    assert main([*ARGUMENTS, "--out", str(tmp_path), "--resume"]) == 0
    again = json.loads((tmp_path / "finetune.json").read_text())
    assert again["results"] == first["results"]
    capsys.readouterr()


def test_weights_of_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FinetuneJob(Run("digits", None, "D1", "plain", 0), tmp_path)
    plain.carry_out(lambda step: None)
    monkeypatch.setitem(runs.PROTOCOLS, "digits", replace(TINY, lr=1.0))
    with pytest.raises(ValueError, match=r"finetune: expected .* to be of the settings asked for"):
        FinetuneJob(Run("digits", None, "D1", "converted", 0), tmp_path).carry_out(lambda step: None)
