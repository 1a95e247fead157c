"""What the README says runs, and it says how to run everything."""

import re
from pathlib import Path

import pytest

from equilayers.groups import Dihedral
from equilayers.metrics import logit_invariance_error
from pages import ROOT, blocks, module_of_docs, run

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


def test_the_table_of_cost_is_that_of_the_pages() -> None:
    """The pages with all cases have the numbers; `python docs/hooks.py` writes them here."""
    hooks = module_of_docs("hooks")
    assert hooks.with_cost(README) == README
    assert hooks.with_cost(README.replace(" 1.85 |", " 1.57 |", 1)) == README
