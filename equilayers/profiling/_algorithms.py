r"""What the layers of this library ran, and what their other algorithms cost on the same input."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from equilayers._modules import tensors

LEAST, MOST = 3, 9  # times that each algorithm runs
FAMILIES = ("auto", "bitwise")  # names that stand for the fastest of several methods
Result = tuple[int, list[Any]]


def measure_algorithms(
    layer: Any, args: Any, synchronize: Callable[[], None], seconds: float
) -> tuple[str, dict[str, float]]:
    r"""The algorithm a layer ran, and seconds of each that it has, measured in turn on the same input.

    Where gradients are wanted the seconds are of forward and backward. What "auto" took is told by its result: the
    method with the same operations and the same bits.
    """
    given = layer.algorithm
    results: dict[str, Result] = {}
    took: dict[str, list[float]] = {}
    try:
        for name in type(layer).ALGORITHMS:
            try:
                layer.algorithm = name
                results[name] = _result(layer, args)
                _step(layer, args)
            except (ValueError, NotImplementedError):  # not for this group, or these sizes
                results.pop(name, None)
                continue
            took[name] = []
        begin = time.perf_counter()
        for i in range(MOST):
            for name, each in took.items():
                layer.algorithm = name
                synchronize()
                start = time.perf_counter()
                _step(layer, args)
                synchronize()
                each.append(time.perf_counter() - start)
            if i + 1 >= LEAST and time.perf_counter() - begin > seconds:
                break
    finally:
        layer.algorithm = given
    ran = _ran(given, results)
    if ran == given in FAMILIES and hasattr(layer, "chosen") and args[0]:  # a variant of it that has no name
        ran = f"{given} -> {layer.chosen(args[0][0]).algorithm}"
    return ran, {name: median(each) for name, each in took.items()}


def _step(layer: Any, args: Any) -> None:
    r"""Forward, and backward where gradients are wanted."""
    ends = [t for t in tensors(layer(*args[0], **args[1])) if t.requires_grad]
    if ends:
        wanted = [t for t in (*layer.parameters(), *tensors(args[0]), *tensors(args[1])) if t.requires_grad]
        torch.autograd.grad(ends, wanted, [torch.ones_like(t) for t in ends], allow_unused=True)


def _result(layer: Any, args: Any) -> Result:
    r"""Operations and outputs; with the same random numbers each time, for dropout inside."""
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        out = layer(*args[0], **args[1])
    return counter.get_total_flops(), [t.detach() for t in tensors(out)]


def _ran(given: str, results: dict[str, Result]) -> str:
    if given not in FAMILIES or given not in results:
        return str(given)
    flops, out = results[given]
    same = [
        name
        for name, (count, other) in results.items()
        if name not in FAMILIES and count == flops and len(out) == len(other)
        if all(torch.equal(a, b) for a, b in zip(out, other, strict=True))
    ]
    return f"{given} -> {' or '.join(same)}" if same else str(given)
