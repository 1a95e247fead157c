"""What the README says runs, and it says how to run everything."""

import re
from pathlib import Path

import pytest

from equilayers.groups import Dihedral
from equilayers.metrics import logit_invariance_error
from pages import ROOT, blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len([block for block in blocks(README) if block.language == "python"]) >= 2
    monkeypatch.chdir(tmp_path)
    names = run(README, "README.md")
    model, plain, tied, x = (names[name] for name in ("model", "plain", "tied", "x"))
    errors = [float(logit_invariance_error(f, x, Dihedral(4))) for f in (model, tied, plain)]
    assert errors[0] == 0
    assert errors[1] < 1e-8 < errors[2]


def test_it_is_short_and_says_how_to_run_everything() -> None:
    first = next(block for block in blocks(README) if block.language == "python")
    assert len([line for line in first.text.splitlines() if line]) <= 8
    assert len(README.splitlines()) <= 90
    assert all(command in README for command in ("make study", "make test", "equilayers check"))
    links = set(re.findall(r"\]\((?!http)([^)#]+)", README))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_speeds_are_those_that_were_measured() -> None:
    """Each row of the README stands in the page that has all of them."""
    blocks_of = re.findall(r"^\| transformer block, (\w+), (\d+) wide \| (.*) \| (.*) \|$", README, re.MULTILINE)
    text = (ROOT / "docs" / "transformer.md").read_text(encoding="utf-8")
    for group, width, *ours in blocks_of:
        row = re.search(
            rf"^\| {group}, {width} wide \| 1 \| forward \|.*\| (.*) \|\n\| \| 1 \| step \|.*\| (.*) \|$", text, re.M
        )
        assert row is not None, (group, width)
        assert list(row.groups()) == ours, (group, width)
    convolutions = re.findall(
        r"^\| 3x3 convolution, (\w+), (\d+ fields), (\w+) \| (.*) \| (.*) \|$", README, re.MULTILINE
    )
    text = (ROOT / "docs" / "benchmarks-conv.md").read_text(encoding="utf-8")
    for group, fields, size, *ours in convolutions:
        case = f"| {group} {fields} {size}, batch 8, 3x3"
        for what, mine in zip(("forward", "training step"), ours, strict=True):
            row = re.search(rf"^{re.escape(case)}, {what}, 1 thread \|(.*)\|$", text, re.MULTILINE)
            assert row is not None, case
            assert row[1].split("|")[-3].strip() == mine, (case, what)
    assert (len(blocks_of), len(convolutions)) == (4, 4)
