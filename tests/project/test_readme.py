"""What the README says runs, and it says how to run everything."""

import re
from pathlib import Path

import pytest
import torch

from pages import ROOT, blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len([block for block in blocks(README) if block.language == "python"]) >= 2
    monkeypatch.chdir(tmp_path)
    names = run(README, "README.md")
    model, plain, x = names["model"], names["plain"], names["x"]
    assert isinstance(x, torch.Tensor)
    assert float(names["logit_invariance_error"](model, x, names["group"])) == 0.0  # type: ignore[operator]
    assert float(names["logit_invariance_error"](plain, x, names["group"])) > 0.0  # type: ignore[operator]


def test_it_is_short_and_says_how_to_run_everything() -> None:
    first = next(block for block in blocks(README) if block.language == "python")
    assert len([line for line in first.text.splitlines() if line]) <= 15
    assert len(README.splitlines()) <= 200
    assert all(command in README for command in ("make study", "make test", "python -m baselines study"))
    links = set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


# What the README repeats of the measurements: the columns there, and where the row begins.
STUDY = {"weight tying": "WT", "augmentation": "DA", "regularisation": "IR"}


def test_the_study_is_the_one_that_was_measured() -> None:
    measured = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (R4|T3) \| (\w+ ?\w*) \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 6
    for group, method, numbers in rows:
        assert re.search(rf"^\| {group} \| {STUDY[method]} \|[^|]*\| {re.escape(numbers)} \|", measured, re.MULTILINE)


def test_the_speeds_are_those_that_were_measured() -> None:
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (C4|D4), (\d+ fields), (\w+)(, two threads)? \| (.*) \| (.*) \| (.*) \|$", README, re.M)
    assert len(rows) == 8
    for group, fields, size, two, *ours in rows:
        case = f"| {group.replace('C', 'R')} {fields} {size}, batch 8, 3x3"
        threads = "2 threads" if two else "1 thread"
        forward, step = (
            re.search(rf"^{re.escape(case)}, {what}, {threads} \|(.*)\|$", measured, re.MULTILINE)
            for what in ("forward", "training step")
        )
        assert forward is not None
        assert step is not None
        columns = [[cell.strip() for cell in row[1].split("|")] for row in (forward, step)]
        assert ours == [columns[0][-3], columns[1][-3], columns[1][-2]], case
