"""`python -m baselines deform` on few digits."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from baselines.__main__ import main
from baselines.study import deform
from baselines.study.deform import MAGNITUDES, MODELS


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that were trained, not read."""
    names: list[str] = []
    build = deform.build

    def note(name: str, *rest: Any) -> nn.Module:
        names.append(name)
        return build(name, *rest)

    monkeypatch.setattr(deform, "build", note)
    return names


def test_the_command_leaves_numbers_a_table_and_a_picture(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deform", "--epochs", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "deform.json").read_text(encoding="utf-8"))
    assert list(results["models"]) == list(MODELS)
    for result in results["models"].values():
        assert len(result["distance"]) == len(MAGNITUDES)
        assert result["distance"][0] == result["interpolation_floor"][0] == 0  # the identity
        assert result["distance"][1] < result["distance"][-1]
    assert (tmp_path / "deform.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "deform.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert trained == list(MODELS)
    (tmp_path / "blur-pooling.json").unlink()
    before = (tmp_path / "deform.json").read_bytes()
    assert main(["deform", "--epochs", "1", "--out", str(tmp_path), "--resume"]) == 0
    assert trained[3:] == ["blur pooling"]
    assert (tmp_path / "deform.json").read_bytes() == before


def test_what_was_trained_otherwise_is_not_taken(tmp_path: Path) -> None:
    (job, *_), (other, *_) = (deform.jobs_of("digits", None, epochs, tmp_path) for epochs in (1, 2))
    assert job.finished() is None
    job.path.write_text(json.dumps(job.settings()))
    assert job.finished() == job.settings()
    assert other.path == job.path
    assert other.finished() is None


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["deform", "--epochs", "0", "--out", str(tmp_path)])
    assert "argument --epochs: expected an int >= 1, got '0'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["deform", "--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deform: expected --out to be a writable folder, got ")
