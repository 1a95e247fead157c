r"""Timing competitors in turn, so that a drift of the machine's speed touches all of them alike."""

from __future__ import annotations

import contextlib
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

import torch

from baselines.common.terminal import processor

Call = Callable[[], object]
SETTLE = 1e-2


@dataclass(frozen=True)
class Timing:
    r"""Median and quartiles of one competitor, in milliseconds."""

    median: float
    low: float
    high: float


def in_turn(calls: Mapping[str, Call], *, seconds: float = 2.0, warmup: int = 3, rounds: int = 9) -> dict[str, Timing]:
    r"""Time the calls A B C A B C ..., at least `rounds` and about `seconds` in all, garbage collection off.

    Each is called uncounted for `SETTLE` seconds, at least once, right before its counted call: so what its predecessor
    left in the caches and in the allocator, and memory that has to be fetched from the system again, are not counted.

    Args:
        calls: the competitors, by name.
        seconds: how long to go on.
        warmup: rounds that are not counted.
        rounds: how many are counted at least, two or more.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    wait: Call = torch.cuda.synchronize if torch.get_default_device().type == "cuda" else lambda: None
    torch.empty(31 << 20, dtype=torch.uint8)  # glibc learns from the largest block freed below 32 MiB to keep memory
    for _ in range(warmup):
        for call in calls.values():
            call()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(next(iter(taken.values()))) < rounds:
            for name, call in calls.items():
                settled = time.perf_counter() + SETTLE
                call()
                while time.perf_counter() < settled:
                    call()
                wait()
                start = time.perf_counter()
                call()
                wait()
                taken[name].append(1e3 * (time.perf_counter() - start))
    finally:
        gc.enable()
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in taken.items()}
    return {name: Timing(middle, low, high) for name, (low, middle, high) in quartiles.items()}


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    r"""So many threads for torch, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_count(count: int) -> str:
    r"""The number of threads in words."""
    return f"{count} thread{'s' * (count > 1)}"


def machine() -> str:
    r"""One line on what was measured where, and whether convolutions had numba."""
    device = f"{processor()} ({torch.backends.cpu.get_cpu_capability()})"
    if torch.get_default_device().type == "cuda":
        device = f"{torch.cuda.get_device_name()}, {device}"
    compiler = f"numba {version('numba')}" if find_spec("numba") else "no numba"
    return f"{device}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, {compiler}"
