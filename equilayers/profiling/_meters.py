r"""Time, operations and memory of the runs of a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from equilayers.profiling._recorder import Node, Recorder, Segment

WARMUP, LEAST, MOST = 2, 5, 50
ATEN = torch.ops.aten
# Attention on the CPU, which torch's table of operations leaves out.
ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
Key = tuple[Node, bool]


@dataclass
class Runs:
    r"""How to run a model: forward, backward (or None), where."""

    recorder: Recorder
    call: Callable[[], Any]
    back: Callable[[Any], Any] | None
    device: torch.device

    def plain(self) -> tuple[float, float]:
        r"""Seconds forward and backward, nothing watched."""
        self.synchronize()
        start = time.perf_counter()
        out = self.call()
        self.synchronize()
        middle = time.perf_counter()
        if self.back is not None:
            self.back(out)
            self.synchronize()
        return middle - start, time.perf_counter() - middle

    def synchronize(self) -> None:
        r"""Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


@dataclass
class Times:
    r"""Seconds by node and direction: they add up to the plain totals."""

    own: dict[Key, float]
    forward: float
    backward: float
    repeats: int


def measure_time(runs: Runs, seconds: float, progress: Callable[[str], None]) -> Times:
    r"""Medians of plain runs in turn with watched ones, whose shares divide the plain medians among the nodes."""
    cuda = runs.device.type == "cuda"
    clock = _cuda_event if cuda else time.perf_counter
    plain, shares = [], []
    begin = time.perf_counter()
    for i in range(WARMUP + MOST):
        one = runs.plain()
        runs.synchronize()
        _, segments = runs.recorder.run(runs.call, runs.back, clock)
        runs.synchronize()
        if i >= WARMUP:
            plain.append(one)
            shares.append(_shares(segments, cuda))
            progress(f"time: {len(plain)} runs")
        if len(plain) >= LEAST and time.perf_counter() - begin > seconds:
            break
    forward, backward = median(f for f, _ in plain), median(b for _, b in plain)
    middle = {key: median(run.get(key, 0.0) for run in shares) for key in {k for run in shares for k in run}}
    sums: Counter[bool] = Counter()
    for (_, back), share in middle.items():
        sums[back] += share  # type: ignore[assignment]
    own = {(n, b): s / (sums[b] or 1) * (backward if b else forward) for (n, b), s in middle.items()}
    return Times(own, forward, backward if runs.back else 0.0, len(plain))


def _cuda_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _shares(segments: list[Segment], cuda: bool) -> dict[Key, float]:
    spent: dict[Key, float] = {}
    totals = {False: 0.0, True: 0.0}
    for s in segments:
        took = s.start.elapsed_time(s.end) if cuda else s.end - s.start
        spent[s.node, s.backward] = spent.get((s.node, s.backward), 0.0) + took
        totals[s.backward] += took
    return {key: took / (totals[key[1]] or 1.0) for key, took in spent.items()}


def measure_flops(runs: Runs) -> dict[Key, int]:
    r"""Operations of products and convolutions that are executed, two for a multiplication and an addition."""
    found: dict[Key, int] = {}
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        _, segments = runs.recorder.run(runs.call, runs.back, counter.get_total_flops)
    for s in segments:
        found[s.node, s.backward] = found.get((s.node, s.backward), 0) + s.end - s.start
    return found


@dataclass
class Kept:
    r"""Bytes that autograd keeps for the backward pass, each storage once, by the node that kept it first."""

    ignored: set[int]
    recorder: Recorder
    seen: set[int] = field(default_factory=set)
    own: Counter[Node] = field(default_factory=Counter)

    def pack(self, x: Tensor) -> Tensor:
        r"""Count a tensor that is kept."""
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.ignored | self.seen:
            self.seen.add(storage.data_ptr())
            self.own[self.recorder.stack[-1]] += storage.nbytes()
        return x.detach()  # what is kept may not keep its own graph


def measure_kept(runs: Runs, ignored: list[Tensor]) -> Counter[Node]:
    r"""Kept bytes by node; parameters, buffers and inputs (`ignored`) are there anyway."""
    kept = Kept({x.untyped_storage().data_ptr() for x in ignored}, runs.recorder)
    with saved_tensors_hooks(kept.pack, lambda x: x):
        out, _ = runs.recorder.run(runs.call, None, int)
    del out
    return kept.own


def measure_peak(runs: Runs) -> tuple[dict[Node, int], int]:
    r"""Highest bytes allocated beyond those at the start while a node runs forward, and of the whole run."""
    if runs.device.type == "cuda":
        return _cuda_peak(runs)
    if runs.device.type != "cpu":
        return {}, 0
    with torch_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _, segments = runs.recorder.run(runs.call, runs.back, time.time_ns)
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]  # the order stands nowhere else
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    if not changes:
        return {}, 0
    times = np.array([at for at, _ in changes])
    level = np.cumsum([size for _, size in changes])
    peaks: dict[Node, int] = {}
    for s in segments:
        first, last = np.searchsorted(times, (s.start, s.end))
        before = int(level[first - 1]) if first else 0
        _raise(peaks, s, max([before, *level[first:last].tolist()]))
    return peaks, int(level.max())


def _cuda_peak(runs: Runs) -> tuple[dict[Node, int], int]:
    def clock() -> int:
        highest = torch.cuda.max_memory_allocated(runs.device)
        torch.cuda.reset_peak_memory_stats(runs.device)
        return highest

    start = torch.cuda.memory_allocated(runs.device)
    clock()
    _, segments = runs.recorder.run(runs.call, runs.back, clock)
    peaks: dict[Node, int] = {}
    for s in segments:
        _raise(peaks, s, s.end - start)
    return peaks, max(s.end - start for s in segments)


def _raise(peaks: dict[Node, int], segment: Segment, level: int) -> None:
    node: Node | None = None if segment.backward else segment.node
    while node is not None:
        peaks[node] = max(peaks.get(node, 0), level)
        node = node.parent
