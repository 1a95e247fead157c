r"""Peak memory of a training step, each competitor in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from baselines.common.tables import head_lines, row_line
from benchmarks.conv import ALGORITHMS, PLAIN, Case, competitors
from benchmarks.timing import machine

CASES = (Case("C4", 64, 18, batch=64, training=True), Case("D4", 32, 18, batch=64, training=True))


def peak(case: Case, name: str) -> float:
    r"""Peak memory in megabytes that a few training steps add to the process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (case, name))


def _peak(case: Case, name: str) -> float:
    torch.set_num_threads(1)
    competitors(Case("C2", 2, 4, batch=1, training=True), [name])[name]()  # libraries load what they load at first
    before = resident("VmRSS")
    step = competitors(case, [name])[name]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    for _ in range(5):
        step()
    return (resident("VmHWM") - before) / 1e3


def allocated_peak(step: Callable[[], object]) -> float:
    r"""Peak of what a call allocates for tensors, in megabytes; on the CPU, as torch's own allocator reports it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results  # the order of the allocations stands nowhere else
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 1e6


def resident(key: str) -> int:
    r"""A figure of this process's memory in kilobytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def report(seconds: float) -> Iterator[str]:  # noqa: ARG001  every report takes it
    r"""The lines of a Markdown report, as they are measured."""
    yield f"Machine: {machine()}. Peak memory of a training step in megabytes, inputs and gradients included.\n"
    names = PLAIN, *ALGORITHMS
    yield head_lines(["case", *names, "auto / Conv2d"])
    for case in CASES:
        megabytes = {name: peak(case, name) for name in names}
        cells = (f"{megabytes[name]:.0f}" for name in names)
        yield row_line([str(case), *cells, f"{megabytes['auto'] / megabytes[PLAIN]:.2f}"])
