r"""`python -m pytest benchmarks`: the same cases under pytest-benchmark. Timings are shown, never asserted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.linear import ALGORITHMS, Case, competitors, training_step

CASES = [
    Case(group, size=size, batch=batch, backward=backward, threads=threads)
    for group in ("C4", "D4", "T3")
    for size in (12, 36)
    for batch in (1, 512)
    for backward in (False, True)
    for threads in (1, 2)
]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["torch Linear", "expanded matrix", *ALGORITHMS])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lifting_linear(benchmark: Any, case: Case, name: str) -> None:
    benchmark.group = str(case)
    torch.set_num_threads(case.threads)
    benchmark(competitors(case)[name])


@pytest.mark.parametrize("group", ["C4", "T3"])
@pytest.mark.parametrize("method", ["WT", "DA"])
def test_training_step(benchmark: Any, method: str, group: str) -> None:
    benchmark.group = f"training step, {group}"
    torch.set_num_threads(1)
    benchmark(training_step(method == "WT", group))
