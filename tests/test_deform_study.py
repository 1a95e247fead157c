"""`python -m baselines deform` on few digits."""

import json
from pathlib import Path

import pytest

from baselines.__main__ import main
from baselines.deform import MAGNITUDES, MODELS


def test_the_command_leaves_numbers_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deform", "--epochs", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "deform.json").read_text(encoding="utf-8"))
    assert list(results["models"]) == list(MODELS)
    for result in results["models"].values():
        assert len(result["distance"]) == len(MAGNITUDES)
        assert result["distance"][0] == result["interpolation_floor"][0] == 0  # the identity
        assert result["distance"][1] < result["distance"][-1]
    assert (tmp_path / "deform.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "deform.md").read_text(encoding="utf-8") in capsys.readouterr().out


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deform", "--epochs", "0", "--out", str(tmp_path)]) == 2
    assert "deform: expected --epochs >= 1, got 0" in capsys.readouterr().err
