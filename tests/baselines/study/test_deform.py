"""`python -m baselines deform` on few digits."""

import json
from pathlib import Path

import pytest

from baselines.__main__ import main
from baselines.study.parts import deform
from baselines.study.parts.deform import MAGNITUDES, MODELS
from baselines.study.runs import cached_dataset
from studies import few_digits


def test_the_command_leaves_numbers_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few_digits(monkeypatch)
    monkeypatch.setattr(deform, "SAMPLES", 20)
    command = ["deform", "--epochs", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "deform.json").read_text(encoding="utf-8"))
    assert list(results["models"]) == list(MODELS)
    for result in results["models"].values():
        assert len(result["distance"]) == len(MAGNITUDES)
        assert result["distance"][0] == result["interpolation_floor"][0] == 0  # the identity
        assert result["distance"][1] < result["distance"][-1]
    assert (tmp_path / "deform.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "deform.md").read_text(encoding="utf-8") in capsys.readouterr().out
    kept = [tmp_path / f"{name.replace(' ', '-')}.json" for name in MODELS]
    times = [path.stat().st_mtime_ns for path in kept]
    kept[1].unlink()
    before = (tmp_path / "deform.json").read_bytes()
    assert main([*command, "--resume"]) == 0
    assert [path.stat().st_mtime_ns != time for path, time in zip(kept, times, strict=True)] == [False, True, False]
    assert (tmp_path / "deform.json").read_bytes() == before
    cached_dataset.cache_clear()


def test_what_was_trained_otherwise_is_not_taken(tmp_path: Path) -> None:
    (job, *_), (other, *_) = (deform.jobs_of("digits", None, epochs, tmp_path) for epochs in (1, 2))
    assert job.finished() is None
    job.path.write_text(json.dumps(job.settings()))
    assert job.finished() == job.settings()
    assert other.path == job.path
    assert other.finished() is None
