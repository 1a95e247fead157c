"""The command `equilayers profile`: what it writes, and how it says no."""

import json
from pathlib import Path

import pytest

from equilayers.cli import main

MODELS = """
from torch import nn
def plain():
    conv, head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
class Two(nn.Module):
    def forward(self, image, mask):
        print("shown")
        return image * mask
class Sulks(nn.Module):
    def forward(self, x):
        raise SystemExit("no\\x1b[31m")
"""
QUICK = ["--batch", "2", "--seconds", "0.1"]


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MODELS, encoding="utf-8")
    return f"{tmp_path / 'mine.py'}:"


def test_a_converted_model(mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "p.json"), "--html", str(tmp_path / "p.html")]
    how = [*QUICK, "--input", "1,8,8", "--group", "C4", "--threads", "1"]
    assert main(["profile", f"{mine}plain", *how, *files]) == 0
    out, err = capsys.readouterr()
    assert " times " in out.splitlines()[0]
    assert "LiftingConv2d" in out
    assert "time" in err.splitlines()  # progress, a line for each stage where it is no terminal
    found = json.loads((tmp_path / "p.json").read_text())
    assert [row["algorithm"].partition(" ")[0] for row in found["rows"] if row["kind"] == "LiftingConv2d"] == ["auto"]
    assert {row["kind"] for row in found["compared"]["rows"]} >= {"Conv2d", "Linear"}
    page = (tmp_path / "p.html").read_text()
    times = [row["forward"] + row["backward"] for row in found["rows"]]
    drawn = page.count("<rect")  # but for bars thinner than a line
    assert sum(time > times[0] / 100 for time in times) <= drawn <= len(times)
    assert "http://" not in page.replace("http-equiv", "")


def test_inputs_by_name_forward_only(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--input", "image=1,8,8", "--input", "mask=1,8,8"]
    assert main(["profile", f"{mine}Two", *QUICK, *inputs, "--forward-only", "--eval"]) == 0
    out, err = capsys.readouterr()
    assert "backward" not in out
    assert "shown" not in out  # what a model prints goes to standard error
    assert "shown" in err


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("plain", ["--input", "1,8"], "expected the model to run on these inputs, got"),
        ("plain", ["--input", "x"], "expected --input to be the shape of one input, got 'x'"),
        ("plain", ["--input", "1,8,8", "--batch", "0"], "expected --batch to be a whole number from 1 on, got '0'"),
        ("plain", ["--input", "1,8,8", "--threads", "99999"], "expected --threads to be at most"),
        ("plain", ["--input", "1,8,8", "--device", "abacus"], "expected --device to be one that torch has here"),
        ("plain", ["--input", "1,8,8", "--html", "no/where/p.html"], "expected --html to be a file in a folder"),
        ("plain", ["--input", "1,8,8", "--against", "nothing:here"], "expected a module nothing"),
        ("plain", ["--input", "1,8,8", "--against", "a:b", "--group", "C4"], "not allowed with argument"),
        ("plain", ["--input", "1,8,8", "--group", "Q9"], "expected --group to be a name"),
        ("Sulks", ["--input", "1,8,8", "--group", "C4"], "expected a model that converts to C4, got ValueError: to_eq"),
        ("Two", ["--input", "1,8,8", "--input", "1,8,8", "--group", "C4"], "expected one input with --group"),
        ("plain", ["--input", "1,8,8", "--seconds", "soon"], "expected --seconds to be a number from 0 on, got 'soon'"),
        ("plain", ["--input", "1,8,8", "--frobnicate"], "unrecognized arguments: --frobnicate. Run equilayers profile"),
        ("Sulks", ["--input", "1,8,8"], "expected the model to run on these inputs, got SystemExit: no"),
        ("nobody", ["--input", "1,8,8"], "to have nobody, got no 'nobody'"),
    ],
)
def test_bad_input_is_one_line(
    mine: str, name: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", f"{mine}{name}", *arguments]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert (out, last.startswith("equilayers profile: "), says in last, last.isprintable()) == ("", True, True, True)
