r"""`python -m pytest benchmarks`: convolutions under pytest-benchmark. Timings are shown, never asserted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.conv import ALGORITHMS, ESCNN, ESCNN_EVAL, PLAIN, Case, both_passes, competitors

CASES = both_passes([Case("C4", 8, 36), Case("C4", 64, 18), Case("C4", 128, 9), Case("D4", 64, 9)])


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [PLAIN, *ALGORITHMS, ESCNN, ESCNN_EVAL])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_group_convolution(benchmark: Any, case: Case, name: str, threads: int) -> None:
    case = replace(case, threads=threads)
    calls = competitors(case, [name])
    if name not in calls:
        pytest.skip("escnn is not installed (`make escnn`)" if name == ESCNN else "escnn has no training in eval mode")
    benchmark.group = str(case)
    torch.set_num_threads(threads)
    benchmark(calls[name])
