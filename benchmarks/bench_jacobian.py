r"""`python -m pytest benchmarks`: singular values of Jacobians under pytest-benchmark; timings are not asserted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.jacobian import CASES, Case, competitors
from benchmarks.timing import threads

PAIRS = [(case, name) for case in CASES for name in case.names]


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=[f"{case}-{name}" for case, name in PAIRS])
def test_spectral_norm(benchmark: Any, case: Case, name: str) -> None:
    benchmark.group = str(case)
    with threads(case.threads):
        benchmark(competitors(case)[name])
