"""The command `equilayers profile`."""

import json
from pathlib import Path

import pytest

from equilayers.cli import main

MODELS = """
from torch import nn
def plain():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MODELS, encoding="utf-8")
    return f"{tmp_path / 'mine.py'}:plain"


def test_a_converted_model(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "p.json"), "--html", str(tmp_path / "p.html")]
    how = ["--input", "1,8,8", "--batch", "2", "--seconds", "1", "--group", "C4", "--threads", "1"]
    assert main(["profile", target, *how, *files]) == 0
    assert "times the model compared with" in capsys.readouterr().out
    rows = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert {"LiftingConv2d", "ReLU"} <= {row["kind"] for row in rows} or rows[1]["algorithm"]
    assert "<svg" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "1,8"], "expected the model to run on these inputs, got"),
        (["--input", "x"], "expected --input to be the shape of one input, got 'x'"),
        (["--input", "1,8,8", "--batch", "0"], "expected --batch to be a whole number from 1 on, got '0'"),
        (["--input", "1,8,8", "--against", "nothing:here"], "expected a module nothing"),
        (["--input", "1,8,8", "--group", "Q9"], "expected --group to be a name"),
        (["--input", "1,8,8", "--frobnicate"], "unrecognized arguments: --frobnicate. Run equilayers profile --help."),
    ],
)
def test_bad_input_is_one_line(
    target: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", target, *arguments]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert (out, last.startswith("equilayers profile: "), says in last) == ("", True, True), err
