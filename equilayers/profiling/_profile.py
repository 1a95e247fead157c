r"""Profile a model on an input."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equilayers._checks import check_model, check_positive, refuse
from equilayers._modules import named_modules, tensors
from equilayers.profiling._algorithms import measure_algorithms
from equilayers.profiling._meters import Runs, Times, measure_flops, measure_kept, measure_peak, measure_time
from equilayers.profiling._recorder import Node, Recorder
from equilayers.profiling._result import Profile
from equilayers.profiling._rows import Row
from equilayers.profiling._words import said

CALLER = "profile"


def profile(
    model: Callable[..., Any],
    x: Any,
    *,
    compare_with: Callable[..., Any] | None = None,
    backward: bool = True,
    seconds: float = 2.0,
    progress: Callable[[str], None] | None = None,
) -> Profile:
    r"""What each module of a model costs.

    The model runs as it is, in the modes its modules are in. Buffers, the state of random numbers, gradients and hooks
    are afterwards as before.

    Args:
        model: a module, or a function that calls some.
        x: the input (B, ...), a list or tuple of several, or a dictionary of those it takes by name.
        compare_with: a model to compare with, such as the plain twin, on the same input; rows are matched by their
            paths, and among the rest by the size of the output and the order of the calls.
        backward: whether to run the backward pass too, with respect to the parameters.
        seconds: how long to repeat the measurement of time, about, for each model.
        progress: is told what is being measured.

    Returns:
        A `Profile`: a row for each module where it is called.

    Raises:
        TypeError: the model cannot be called, or there is no tensor in the input.
        ValueError: seconds is not positive.

    Law: own times add up to the total, which is the median of runs in which nothing is watched.
    """
    check_model(CALLER, model)
    check_positive(CALLER, "seconds", seconds)
    if next(tensors(x), None) is None:
        refuse(CALLER, "x to be a tensor, several, or a dictionary", type(x).__name__, "Pass an input.", TypeError)
    if compare_with is not None:
        check_model(CALLER, compare_with)
    tell = progress or (lambda _: None)
    models = [model] if compare_with is None else [model, compare_with]
    with contextlib.ExitStack() as stack, torch.set_grad_enabled(backward):
        for one in models:
            stack.enter_context(_undisturbed(one, x))
        tell("first runs")
        subjects = [_subject(one, x, backward) for one in models]
        times = measure_time([subject.runs for subject in subjects], seconds * len(models), tell)
        found = [_measured(subject, each, seconds, tell) for subject, each in zip(subjects, times, strict=True)]
    return found[0] if compare_with is None else found[0].against(found[1])


@dataclass
class Subject:
    r"""A model that has run once. ignored: tensors that are there anyway, and count as kept by nobody."""

    runs: Runs
    ignored: list[Tensor]
    notes: list[str]


def _subject(model: Any, x: Any, backward: bool) -> Subject:
    args, kwargs = ((), x) if isinstance(x, dict) else (tuple(x) if isinstance(x, list | tuple) else (x,), {})
    state = [t for _, m in named_modules(model) for t in chain(m.parameters(False), m.buffers(False))]
    weights = [p for p in state if p.requires_grad]

    def call() -> Any:
        return model(*args, **kwargs)

    def back(out: Any) -> None:
        ends = [t for t in tensors(out) if t.requires_grad]
        torch.autograd.grad(ends, weights, [torch.ones_like(t) for t in ends], allow_unused=True)

    notes: list[str] = []
    runs = Runs(Recorder(model), call, None, next(tensors(x)).device)
    out, _ = runs.recorder.run(call, None, int, keep=True)
    runs.back = back if backward and _has_backward(out, weights, back, notes) else None
    for _, node in runs.recorder.root.walk():
        node.calls = 0
    return Subject(runs, [*state, *tensors(x)], notes)


def _has_backward(out: Any, weights: list[Tensor], back: Callable[[Any], None], notes: list[str]) -> bool:
    if not weights or not any(t.requires_grad for t in tensors(out)):
        notes.append("No backward pass: no output depends on a parameter that requires a gradient.")
        return False
    try:
        back(out)
    except Exception as error:  # whatever a model raises: the forward pass has its figures all the same
        notes.append(f"No backward pass: it raised {said(error)}.")
        return False
    return True


def _measured(subject: Subject, times: Times, seconds: float, tell: Callable[[str], None]) -> Profile:
    runs, notes = subject.runs, subject.notes
    root = runs.recorder.root
    calls = max(root.calls, 1)
    counts = {node: node.calls // calls for _, node in root.walk()}
    flops: dict[Any, int] = {}
    tell("operations and memory")
    try:
        flops = measure_flops(runs)
    except Exception as error:  # torch counts operations by means that not every model bears
        notes.append(f"No operations: counting them raised {said(error)}.")
    kept = measure_kept(runs, subject.ignored) if runs.back else {}
    peaks, peak = measure_peak(runs)
    rows = []
    several = [node for _, node in root.walk() if node.args is not None]
    for depth, node in root.walk():
        row = _row(depth, node, times, flops, kept)
        row.peak, row.calls = peaks.get(node, 0), counts[node]
        if node.args is not None:
            tell(f"algorithms: {node.path}")
            took = measure_algorithms(node.module, node.args, runs.synchronize, seconds / len(several))
            row.algorithm, row.alternatives = took
        rows.append(row)
    if runs.recorder.compiled:
        notes.append("What is compiled is one row; its operations are those of the model before it was compiled.")
    return Profile(rows, times.forward, times.backward, peak, times.repeats, notes)


def _row(depth: int, node: Node, times: Times, flops: dict[Any, int], kept: Any) -> Row:
    below = [inner for _, inner in node.walk()]
    own = [times.own.get((node, b), 0.0) for b in (False, True)]
    whole = [sum(times.own.get((n, b), 0.0) for n in below) for b in (False, True)]
    module = node.module
    weights = [p for _, m in named_modules(module) for p in m.parameters(recurse=False)] if depth == 0 else None
    if weights is None:
        weights = list(module.parameters())
    return Row(
        path=node.path,
        kind=type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", "function"),
        depth=depth,
        forward=whole[0],
        backward=whole[1],
        own_forward=own[0],
        own_backward=own[1],
        flops=sum(flops.get((n, b), 0) for n in below for b in (False, True)),
        kept=sum(kept.get(n, 0) for n in below),
        own_kept=kept.get(node, 0),
        parameters=sum(p.numel() for p in {id(p): p for p in weights}.values()),
        width=node.width,
    )


@contextlib.contextmanager
def _undisturbed(model: Any, x: Any) -> Iterator[None]:
    r"""Random numbers and buffers afterwards as before: batch norm in train mode counts what it sees."""
    buffers = [b for _, m in named_modules(model) for b in m.buffers(recurse=False)]
    before = [b.detach().clone() for b in buffers]
    devices = sorted({t.device.index or 0 for t in tensors(x) if t.is_cuda})
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
