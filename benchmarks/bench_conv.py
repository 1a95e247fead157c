r"""`python -m pytest benchmarks`: convolutions under pytest-benchmark. Timings are shown, never asserted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.conv import ALGORITHMS, ESCNN, ESCNN_EVAL, PLAIN, Case, both_passes, competitors
from benchmarks.timing import threads

CASES = both_passes([Case("C4", 8, 36), Case("C4", 64, 18), Case("C4", 128, 9), Case("D4", 64, 9)])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", [PLAIN, *ALGORITHMS, ESCNN, ESCNN_EVAL])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_group_convolution(benchmark: Any, case: Case, name: str, count: int) -> None:
    case = replace(case, threads=count)
    calls = competitors(case, [name])
    if name not in calls:
        pytest.skip("escnn is not installed (`make env`)" if name == ESCNN else "escnn has no training in eval mode")
    benchmark.group = str(case)
    with threads(count):
        benchmark(calls[name])
