r"""`python -m pytest benchmarks`: the same cases under pytest-benchmark. Timings are shown, never asserted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.linear import ALGORITHMS, Case, competitors, training_step
from benchmarks.timing import threads

CASES = [
    Case(group, size=size, batch=batch, backward=backward, threads=count)
    for group in ("C4", "D4", "T3")
    for size in (12, 36)
    for batch in (1, 512)
    for backward in (False, True)
    for count in (1, 2)
]


@pytest.mark.parametrize("name", ["torch Linear", "expanded matrix", *ALGORITHMS])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lifting_linear(benchmark: Any, case: Case, name: str) -> None:
    benchmark.group = str(case)
    with threads(case.threads):
        benchmark(competitors(case)[name])


@pytest.mark.parametrize("group", ["C4", "T3"])
@pytest.mark.parametrize("method", ["WT", "DA"])
def test_training_step(benchmark: Any, method: str, group: str) -> None:
    benchmark.group = f"training step, {group}"
    with threads(1):
        benchmark(training_step(method == "WT", group))
