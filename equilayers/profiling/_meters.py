r"""Time, operations and memory of the runs of a model."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from equilayers.profiling._recorder import Node, Recorder, Segment

WARMUP, LEAST, MOST = 2, 5, 50
LONGEST_HOOK = 2e-5  # seconds that watching adds to a segment, at most
ATEN = torch.ops.aten
# Attention on the CPU, which torch's table of operations leaves out.
ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(
        grad, q, k, v
    ),
}
Key = tuple[Node, bool]
LEVEL = "KINETO_LOG_LEVEL"  # torch's profiler reads it when it is first used


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


Sample = tuple[tuple[float, float], list[tuple[Key, float]]]  # seconds of a plain run, and of a watched one's segments


def measure_time(models: list[Runs], seconds: float, progress: Callable[[str], None]) -> list[Times]:
    r"""Times of several models, run in turn, so that a drift of the machine touches all of them."""
    samples: list[list[Sample]] = [[] for _ in models]
    begin = time.perf_counter()
    for i in range(WARMUP + MOST):
        taken = [_sample(runs) for runs in models]
        if i >= WARMUP:
            for kept, sample in zip(samples, taken, strict=True):
                kept.append(sample)
            progress(f"time: {len(samples[0])} runs")
        if len(samples[0]) >= LEAST and time.perf_counter() - begin > seconds:
            break
    return [_times(kept, runs.back is not None) for kept, runs in zip(samples, models, strict=True)]


def _sample(runs: Runs) -> Sample:
    plain = runs.plain()
    runs.synchronize()
    cuda = runs.device.type == "cuda"
    _, segments = runs.recorder.run(runs.call, runs.back, _cuda_event if cuda else time.perf_counter)
    runs.synchronize()
    ends = ((s, s.start.elapsed_time(s.end) / 1e3 if cuda else s.end - s.start) for s in segments)
    return plain, [((s.node, s.backward), took) for s, took in ends]


def _times(samples: list[Sample], back: bool) -> Times:
    r"""Medians of plain runs, divided among the nodes by the medians of their shares in watched ones."""
    forward, backward = (median(plain[i] for plain, _ in samples) for i in (0, 1))
    added = [median(_added(plain[i], segments, bool(i)) for plain, segments in samples) for i in (0, 1)]
    shares = [_shares(segments, added) for _, segments in samples]
    middle = {key: median(run.get(key, 0.0) for run in shares) for key in {k for run in shares for k in run}}
    sums = [sum(share for (_, b), share in middle.items() if b == i) or 1.0 for i in (False, True)]
    own = {(n, b): s / sums[b] * (backward if b else forward) for (n, b), s in middle.items()}
    return Times(own, forward, backward if back else 0.0, len(samples))


def _cuda_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _added(plain: float, segments: list[tuple[Key, float]], back: bool) -> float:
    r"""Seconds that watching adds to each segment."""
    took = [one for (_, backward), one in segments if backward == back]
    return min(max(sum(took) - plain, 0.0) / max(len(took), 1), LONGEST_HOOK)


def _shares(segments: list[tuple[Key, float]], added: list[float]) -> dict[Key, float]:
    r"""Shares of the nodes in each direction, less what watching adds."""
    spent: defaultdict[Key, float] = defaultdict(float)
    for key, took in segments:
        spent[key] += max(took - added[key[1]], 0.0)
    sums = [sum(took for (_, b), took in spent.items() if b == i) or 1.0 for i in (False, True)]
    return {key: took / sums[key[1]] for key, took in spent.items()}


def measure_flops(runs: Runs) -> dict[Key, int]:
    r"""Operations of products and convolutions that are executed, two for a multiplication and an addition."""
    found: dict[Key, int] = {}
    with _uncompiled(runs), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        _, segments = runs.recorder.run(runs.call, runs.back, counter.get_total_flops)
    for s in segments:
        found[s.node, s.backward] = found.get((s.node, s.backward), 0) + s.end - s.start
    return found


@contextlib.contextmanager
def _uncompiled(runs: Runs) -> Iterator[None]:
    r"""A compiled graph hides its operations from the counter: the model runs as it was before."""
    if not runs.recorder.compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile")  # of the counter's hooks, which are not compiled
        yield


@dataclass
class Kept:
    r"""Bytes that autograd keeps for the backward pass, each storage once, by the node that kept it first."""

    seen: set[int]
    recorder: Recorder
    own: Counter[Node] = field(default_factory=Counter)

    def pack(self, x: Tensor) -> Tensor:
        r"""Count a tensor that is kept."""
        if x.layout != torch.strided:  # it has no storage of its own
            return x.detach()
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.own[self.recorder.stack[-1]] += storage.nbytes()
        return x.detach()  # what is kept may not keep its own graph


def measure_kept(runs: Runs, ignored: list[Tensor]) -> Counter[Node]:
    r"""Kept bytes by node; parameters, buffers and inputs (`ignored`) are there anyway."""
    kept = Kept({x.untyped_storage().data_ptr() for x in ignored if x.layout == torch.strided}, runs.recorder)
    # Where nothing is compiled, torch's compiler need not be imported, which takes a second.
    pack = torch.compiler.disable(kept.pack) if runs.recorder.compiled else kept.pack
    with saved_tensors_hooks(pack, lambda x: x):
        out, _ = runs.recorder.run(runs.call, None, int)
    del out
    return kept.own


def measure_peak(runs: Runs) -> tuple[dict[Node, int], int]:
    r"""Highest bytes allocated beyond those at the start while a node runs forward, and of the whole run."""
    if runs.device.type == "cuda":
        return _cuda_peak(runs)
    if runs.device.type != "cpu":
        return {}, 0
    with _quiet(), torch_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _, segments = runs.recorder.run(runs.call, runs.back, time.time_ns)
    results: Any = profiler.profiler.kineto_results  # the order of events stands nowhere else
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    r"""Without the lines that torch's profiler writes when it starts, unless the user asks for some."""
    if LEVEL in os.environ:
        yield
        return
    os.environ[LEVEL] = "6"  # above all that it has
    try:
        yield
    finally:
        del os.environ[LEVEL]


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
