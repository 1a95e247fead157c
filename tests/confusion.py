"""Which of the models of `right_and_broken` each checker passes, and the table of that in docs/checkers.md.

`python tests/confusion.py` writes the table.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from equilayers.cli._arguments import parse
from equilayers.cli._data import inputs
from equilayers.cli._measure import INVARIANT, judge
from equilayers.cli._subject import prepared
from equilayers.groups import group_from_name
from equilayers.metrics import distribution_invariance_error, equivariance_error, logit_invariance_error
from equilayers.testing import assert_equivariant, assert_invariant, locate_break
from equilayers.testing.plugin import Invariance
from pages import ROOT
from right_and_broken import BROKEN, RIGHT, Case

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAGE = ROOT / "docs" / "checkers.md"
ZERO = {"equivariance_error": 1e-6}  # of a measure, in float64; of squares 1e-12


def _command(case: Case, dtype: torch.dtype) -> bool:
    shape = ",".join(map(str, case.shape))
    settings = parse(["check", "here:model", "--group", case.group, "--input", shape, "--output", "invariant"])
    torch.manual_seed(0)
    return judge(prepared(settings, case.model(dtype), inputs(settings)), diagnose=False)[2] == INVARIANT


def _fixture(case: Case, dtype: torch.dtype) -> bool:
    checks: Any = Invariance(SimpleNamespace(user_properties=[]))  # type: ignore[arg-type]
    return bool(checks.assert_invariant(case.model(dtype), case.x(), case.group, diagnose=False).passed)


def _equivariant(case: Case, dtype: torch.dtype) -> bool:
    model, law = case.model(dtype, equivariant=True), case.law or "image"
    assert_equivariant(model, case.x(), case.group, output=law, diagnose=False)
    return True


def _measure(measure: Callable[..., Any]) -> Callable[[Case, torch.dtype], bool]:
    def certified(case: Case, dtype: torch.dtype) -> bool:
        model = copy.deepcopy(case.model(dtype, equivariant=measure is equivariance_error)).double()
        x, group = case.x().to(dtype).double(), group_from_name(case.group)
        move = {"action_out": group.act_regular if case.law == "regular" else group.act}
        options = move if measure is equivariance_error else {}
        return bool((measure(model, x, group, **options) <= ZERO.get(measure.__name__, 1e-12)).all())

    return certified


CHECKERS: dict[str, Callable[[Case, torch.dtype], bool]] = {
    "`assert_invariant`": lambda case, dtype: (
        assert_invariant(case.model(dtype), case.x(), case.group, diagnose=False) is None
    ),
    "`assert_equivariant`": _equivariant,
    "the fixture `invariance`": _fixture,
    "`locate_break`": lambda case, dtype: locate_break(case.model(dtype), case.x()[:2], case.group) is None,
    "`equilayers check`": _command,
    "LI, in float64": _measure(logit_invariance_error),
    "DI, in float64": _measure(distribution_invariance_error),
    "`equivariance_error`, in float64": _measure(equivariance_error),
}
MEASURES = tuple(name for name in CHECKERS if name.endswith("float64"))


def passed(checker: str, dtype: torch.dtype, cases: dict[str, Case]) -> list[str]:
    """The models that the checker certifies; what it fails, says nothing of, or refuses is not among them."""

    def certified(case: Case) -> bool:
        try:
            return CHECKERS[checker](case, dtype)
        except (AssertionError, ValueError, TypeError):
            return False

    return [name for name, case in cases.items() if certified(case)]


def cell(checker: str, dtype: torch.dtype) -> str:
    """How many right models pass, and how many broken ones."""
    return f"{len(passed(checker, dtype, RIGHT))}, {len(passed(checker, dtype, BROKEN))}"


def row(checker: str) -> list[str]:
    """The cells of the page in the row of a checker."""
    line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {checker} |"))
    return [text.strip() for text in line.strip("|").split("|")[1:]]


def main() -> None:
    torch.set_num_threads(1)
    head = ["checker", *(str(dtype).removeprefix("torch.") for dtype in DTYPES)]
    rows = [head, ["---"] * len(head), *([name, *(cell(name, dtype) for dtype in DTYPES)] for name in CHECKERS)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(r"\| checker \|(.*\n)+?(?=\n)", lambda _: table, text), encoding="utf-8")


if __name__ == "__main__":
    main()
