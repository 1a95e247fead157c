r"""Timings of a machine, and the constants of the cost model that fit them best."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from equilayers.functional._costs_file import Constants
from equilayers.functional.calibration._cases import Call, Case, calls, random_cases

Array = NDArray[np.float64]
Sample = tuple[str, tuple[float, ...], float]  # the kind of work, its counts, nanoseconds
ROUNDS, LEAST_ROUNDS, SECONDS = 9, 3, 0.25  # of a case
TRUST = 0.1  # how much the three prices of the whole machine count beside the timings of one algorithm
CALL = 4  # operations that a call costs beside those that are counted, as long as nothing else is known
SMALLEST = (1e2, 1e-3, 1e-6)  # prices, nanoseconds, that are taken for nothing


def timings(case: Case, device: torch.device, seconds: float = SECONDS) -> dict[str, float]:
    r"""Nanoseconds of each algorithm, called in turn: medians."""
    made = calls(case, device)
    taken: dict[str, list[float]] = {name: [] for name in made}
    for call in made.values():
        call()
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for rounds in range(ROUNDS):
            if rounds >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for name, call in made.items():
                call()  # what its predecessor left in the caches is not counted
                taken[name].append(1e9 * _seconds(call, device))
    finally:
        if collecting:
            gc.enable()
    return {name: statistics.median(values) for name, values in taken.items()}


def _seconds(call: Call, device: torch.device) -> float:
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def samples(device: torch.device, seconds: float, seed: int) -> Iterator[tuple[float, list[Sample]]]:
    r"""Timings of random cases for so many seconds, with the share of the time that is gone."""
    start = time.perf_counter()
    for case in random_cases(seed):
        works, taken = case.work(), timings(case, device)
        gone = (time.perf_counter() - start) / seconds
        yield min(1.0, gone), [(works[name].kind, works[name].quantities, taken[name]) for name in taken]
        if gone >= 1:
            return


def fit(measured: Sequence[Sample]) -> Constants:
    r"""A price of each count of each kind of work, of least relative error.

    What a few timings leave open is taken from three prices that fit all of them together.
    """
    three = [(q[1], sum(q[2:-1]), q[-1]) for _, q, _ in measured]
    prior = np.maximum(_least_squares(np.array(three), np.array([t for *_, t in measured]), None), SMALLEST)
    kinds: dict[str, list[Sample]] = {}
    for sample in measured:
        kinds.setdefault(sample[0], []).append(sample)
    made = {}
    for kind, rows in kinds.items():
        counts, taken = np.array([q for _, q, _ in rows]), np.array([t for *_, t in rows])
        expected = np.array([CALL * prior[0], prior[0], *[prior[1]] * (counts.shape[1] - 3), prior[2]])
        made[kind] = tuple(_least_squares(counts, taken, expected).tolist())
    return made


def errors(measured: Sequence[Sample], constants: Mapping[str, Sequence[float]]) -> list[float]:
    r"""How far each timing is from what the constants say, relative to it."""
    return [abs(float(np.dot(q, constants[kind])) / taken - 1) for kind, q, taken in measured]


def _least_squares(counts: Array, taken: Array, expected: Array | None) -> Array:
    r"""Prices x >= 0 of least `|counts x / taken - 1|^2 + TRUST |x / expected - 1|^2`, coordinate by coordinate."""
    rows, goals = counts / taken[:, None], np.ones(len(taken))
    if expected is not None:
        rows = np.vstack([rows, np.diag(TRUST**0.5 / expected)])
        goals = np.concatenate([goals, np.full(len(expected), TRUST**0.5)])
    scale = np.maximum(rows.max(0), 1e-300)
    matrix = (rows / scale).T @ (rows / scale)
    right, x = (rows / scale).T @ goals, np.zeros(rows.shape[1])
    for _ in range(500):
        for j in np.flatnonzero(matrix.diagonal()):
            x[j] = max(0.0, x[j] + (right[j] - matrix[j] @ x) / matrix[j, j])
    made: Array = x / scale
    return made


def cases(seed: int, count: int) -> list[Case]:
    r"""So many random cases."""
    return list(islice(random_cases(seed), count))
